"""Forgets what is over in a shard that has no event loop of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

SWEEP_SECONDS: Final = 1.0
"""Time between two looks at what is over."""


class Sweeper:
    """Calls a function now and then, on a daemon thread.

    Args:
        sweep: The function; it returns quickly.
        every: Seconds between two calls.
    """

    def __init__(self, sweep: Callable[[], None], every: float = SWEEP_SECONDS) -> None:
        self._sweep = sweep
        self._every = every
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it was begun or closed already."""
        if self._thread is None and not self._closed.is_set():
            thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
            thread.start()
            self._thread = thread  # only now: an interrupted start is made again

    def close(self) -> None:
        """End, without waiting for it."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            self._sweep()
