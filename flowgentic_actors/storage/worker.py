"""A daemon thread that does one journal's blocking work, in order: reads, removals, allocation."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs functions one after the other off the event loop.

    What a reader has found must not be closed under it: so reads and removals share one thread.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Run a function after those before it; called on an event loop, which gets the result."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if result.cancelled():
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)  # type: ignore[arg-type]  # a T when error is None

        def job() -> None:
            value: T | None = None
            error: Exception | None = None
            try:
                value = function(*args, **kwargs)
            except Exception as caught:  # noqa: BLE001 - handed to the waiter
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiter
                loop.call_soon_threadsafe(settle, value, error)

        self.put(job)
        return result

    def put(self, job: Callable[[], None]) -> None:
        """Run a job after those before it, without a result; it must not raise."""
        self.start()
        self._jobs.put(job)

    def start(self) -> None:
        """Start the thread, which `put` does otherwise."""
        if self._thread is None:
            with self._starting:  # appending and reading threads may both start it
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread

    def close(self, timeout: float) -> None:
        """End the thread after all submitted jobs; wait for that, within a bound."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
