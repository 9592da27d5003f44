"""A condition variable for event loops and threads alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic


class Notifier:
    """Wakes waiting tasks and threads, which then check their condition again.

    It has no lock, which a forked child, or a thread that was interrupted by an exception, might
    leave locked for ever.
    """

    def __init__(self) -> None:
        self._waiting: set[Callable[[], object]] = set()

    def tell(self) -> None:
        """Wake all waiters to check their condition; callable from any thread."""
        with contextlib.suppress(KeyError):  # no waiter is left
            while True:
                self._waiting.pop()()

    def forget(self) -> None:
        """Drop the waiters: in a forked child, they are the parent's."""
        self._waiting = set()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition holds, within a timeout."""
        deadline = monotonic() + seconds
        loop = asyncio.get_running_loop()
        while not condition() and (left := deadline - monotonic()) > 0:
            heard: asyncio.Future[None] = loop.create_future()
            wake = partial(_tell_loop, loop, heard)
            self._waiting.add(wake)
            try:
                # Checked again after registering, so that no news is missed.
                if not condition():
                    await asyncio.wait([heard], timeout=left)
            finally:
                self._waiting.discard(wake)

    def wait_sync(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition holds, blocking; see `wait`."""
        deadline = monotonic() + seconds
        while not condition() and (left := deadline - monotonic()) > 0:
            heard: SimpleQueue[None] = SimpleQueue()
            wake = partial(heard.put, None)
            self._waiting.add(wake)
            try:
                if not condition():
                    heard.get(timeout=left)
            except Empty:
                return
            finally:
                self._waiting.discard(wake)


def _tell_loop(loop: asyncio.AbstractEventLoop, heard: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiters
        loop.call_soon_threadsafe(_tell, heard)


def _tell(heard: asyncio.Future[None]) -> None:
    if not heard.done():
        heard.set_result(None)
