"""The sweeper of a shard without an event loop: removes what has expired."""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable
from typing import Final

SWEEP_SECONDS: Final = 1.0
"""Time between two looks at what is over."""


class Sweeper:
    """Calls a function at intervals, on a daemon thread.

    Args:
        sweep: The function; it returns quickly.
        every: Seconds between two calls.
    """

    def __init__(self, sweep: Callable[[], None], every: float = SWEEP_SECONDS) -> None:
        self._sweep = sweep
        self._every = every
        self._closed = threading.Event()
        self._running = threading.Lock()  # held by the thread that calls

    def start(self) -> None:
        """Start the thread, unless it was started or closed already."""
        if not self._running.locked() and not self._closed.is_set():
            # One call: the start of a `threading.Thread` raises KeyError where it is interrupted.
            with contextlib.suppress(RuntimeError):  # too many threads: the next write tries again
                _thread.start_new_thread(self._run, ())

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._closed.set()

    def _run(self) -> None:
        if self._running.acquire(blocking=False):
            while not self._closed.wait(self._every):
                self._sweep()
