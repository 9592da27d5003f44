"""Staying awake: looking for an expected message for a moment before sleeping.

Waking up takes longer than a short request and its answer do. Each look offers the processor to
other processes, the sender of the message among them. Where one of them takes it for long, there is
none to spare, and a yield costs its caller a whole slice of the scheduler's: so this process sleeps
at once for a while.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import ClassVar, Final

from flowgentic_actors.environment import processors
from flowgentic_actors.foreign import is_foreign

_TAKEN: Final = 0.0005
"""Seconds of a yield from which on another process needs the processor: longer than the sender of
the message needs it, less than a slice."""

_REST: Final = (0.02, 1.0)
"""Seconds without staying awake after that, first and at most: twice as many each time when the
last rest ended just now, as on a machine whose processors are all in use. One late yield costs
the first.
"""

_SOON: Final = 0.1  # seconds after a rest within which the next one is longer


def time_awake(wanted: float) -> float:
    """Seconds for which to stay awake in this process. Blocks.

    0 where there is one processor: the sender of the message would wait for it.

    Args:
        wanted: The setting `stay_awake`.
    """
    return wanted if wanted and processors() >= 2 else 0.0


class Moment:
    """A moment of looking again instead of sleeping.

    Args:
        seconds: Its length, 0 for none.
    """

    __slots__ = ("_seconds", "_until")

    rests_until: ClassVar[float] = 0.0
    """No moment begins before this time, in the whole process."""

    _rest: ClassVar[float] = 0.0  # the length of the last rest

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0

    def begin(self) -> bool:
        """Begin, or begin anew; whether it had ended, and has begun."""
        now = monotonic()
        if not self._seconds or now < Moment.rests_until:
            return False
        had_ended = now >= self._until
        self._until = now + self._seconds
        return had_ended

    def end(self) -> None:
        """End before the time."""
        self._until = 0.0

    def goes_on(self) -> bool:
        """Offer the processor to others; whether to look again after that."""
        now = monotonic()
        if now >= self._until:
            return False
        os.sched_yield()
        if (again := monotonic()) - now > _TAKEN:
            least, most = _REST
            soon = now - Moment.rests_until < _SOON
            Moment._rest = min(2 * Moment._rest, most) if soon else least
            Moment.rests_until, self._until = again + Moment._rest, 0.0
        return True


class LoopAwake:
    """Keeps an event loop awake for a moment.

    A callback asks for the loop's next turn again and again. So the loop looks at its sockets
    without waiting, and all other callbacks have their turns.

    Args:
        seconds: Length of the moment, 0 for none.
        expects: Whether a message is expected still; otherwise the moment ends.
    """

    __slots__ = ("_expects", "_moment", "_number")

    def __init__(self, seconds: float, expects: Callable[[], object] = lambda: True) -> None:
        self._moment = Moment(seconds)
        self._expects = expects
        self._number = 0  # of the moment: an exception may have ended the last one's callbacks

    def stay(self) -> None:
        """Stay awake for a moment from now on."""
        if self._moment.begin():
            self._number += 1
            asyncio.get_running_loop().call_soon(self._turn, self._number)

    def _turn(self, number: int) -> None:
        if number != self._number:
            return
        if not self._expects():
            self._moment.end()
        elif self._moment.goes_on():
            asyncio.get_running_loop().call_soon(self._turn, number)


def read_awake(sock: socket.socket, moment: Moment, most: int) -> bytes | None:
    """Read from a socket without sleeping; None if nothing comes. Its timeout is changed.

    Args:
        sock: The socket.
        moment: For how long to look.
        most: Bytes to read at most.
    """
    if not moment.begin():
        return None
    sock.settimeout(0)
    while moment.goes_on():
        try:
            return sock.recv(most)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            if is_foreign(error):
                raise
    return None
