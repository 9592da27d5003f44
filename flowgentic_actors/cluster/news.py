"""Waiting, on event loops and threads, until a thread tells that something is not as it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic


class News:
    """Wakes those who wait. It has no lock, which a forked child might find taken for ever."""

    def __init__(self) -> None:
        self._waiting: set[Future[None]] = set()

    def tell(self) -> None:
        """Have everybody look again; callable from any thread."""
        with contextlib.suppress(KeyError):  # nobody is left
            while True:
                future = self._waiting.pop()
                if future.set_running_or_notify_cancel():
                    future.set_result(None)

    def forget(self) -> None:
        """Forget who waits: in a forked child, those are the parent's."""
        self._waiting = set()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so, but no longer than that."""
        deadline = monotonic() + seconds
        while not condition() and (left := deadline - monotonic()) > 0:
            future = self._expect()
            heard = asyncio.wrap_future(future)
            try:
                if not condition():
                    await asyncio.wait([heard], timeout=left)
            finally:
                self._waiting.discard(future)
                heard.cancel()

    def wait_sync(self, condition: Callable[[], bool], seconds: float) -> None:
        """The same, blocking."""
        deadline = monotonic() + seconds
        while not condition() and (left := deadline - monotonic()) > 0:
            future = self._expect()
            try:
                if not condition():
                    future.result(left)
            except TimeoutError:
                return
            finally:
                self._waiting.discard(future)

    def _expect(self) -> Future[None]:
        # The condition is looked at after this as well: what is told in between is not missed.
        future: Future[None] = Future()
        self._waiting.add(future)
        return future
