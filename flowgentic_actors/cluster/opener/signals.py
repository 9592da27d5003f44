"""Handling of signals to the opener's program: SIGTERM, and the scheduler's warning.

Handlers are set on the main thread only, only over the default ones, and are taken back. A handler
runs between any two instructions of the main thread, which may hold any lock: it only starts a
thread.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger("flowgentic_actors")

_OBEYS = 2.0  # seconds for the main thread to take a signal

Action = Callable[[], object]


class SignalActions:
    """The actions for one signal, by owner.

    Args:
        number: The signal.
        final: Whether this process then ends as the signal would have ended it.
    """

    def __init__(self, number: signal.Signals, *, final: bool) -> None:
        self._number = number
        self._final = final
        self._actions: dict[object, Action] = {}
        self._pid = os.getpid()
        self._set = False
        self._over = False
        self.received = False
        self.done = threading.Event()

    def add(self, key: object, action: Action) -> None:
        """Add an action for the signal; call this on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._set:
            if signal.getsignal(self._number) is not signal.SIG_DFL:
                return  # the program has its own idea of what is to happen
            self._pid = os.getpid()
            signal.signal(self._number, self._handle)
            self._set = True
        self._actions[key] = action

    def remove(self, key: object) -> None:
        """Remove an action; without any, the default handler is restored where that is possible."""
        self._actions.pop(key, None)
        if self._actions or not self._set or self.received:
            return
        if threading.current_thread() is not threading.main_thread():
            return  # the handler stays, and does what the default would
        if signal.getsignal(self._number) == self._handle:
            signal.signal(self._number, signal.SIG_DFL)
        self._set = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        unused = not self._actions and not self.received
        if self._over or unused or os.getpid() != self._pid:  # a forked child owns nothing
            signal.signal(self._number, signal.SIG_DFL)
            os.kill(os.getpid(), self._number)
        elif not self.received:
            self.received = self._final
            if not self._start():
                self._over = True  # the interpreter is ending, and closes the clusters by itself
                signal.signal(self._number, signal.SIG_DFL)

    def _start(self) -> bool:
        if sys.is_finalizing():
            return False
        try:
            _thread.start_new_thread(self._act, ())  # `threading` takes locks for it
        except RuntimeError:
            return False
        return True

    def _act(self) -> None:
        actions = list(self._actions.values())
        threads = [threading.Thread(target=action, daemon=True) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # each of them ends within close_timeout and what killing takes
        if self._final:
            self._over = True
            self.done.set()
            os.kill(os.getpid(), self._number)
            # The kernel does that to no process that is the first of its PID namespace, as in a
            # container; and a main thread that is in a call of C takes no signal before its end.
            time.sleep(0.0 if os.getpid() == 1 else _OBEYS)
            if signal.getsignal(self._number) in (self._handle, signal.SIG_DFL):
                os._exit(128 + self._number)


on_sigterm = SignalActions(signal.SIGTERM, final=True)
"""Ends the open clusters in order, then the process."""

on_stop_signal = {
    name: SignalActions(signal.Signals[name], final=False) for name in ("SIGUSR1", "SIGUSR2")
}
"""The warnings that a scheduler can be told to send; the program goes on."""
