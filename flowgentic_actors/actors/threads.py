"""Blocking calls off the event loop, on daemon threads that can be abandoned.

A thread pool would make the interpreter wait at exit for a call that never returns (a Dragon call
can be one); a daemon thread is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def on_daemon_thread(
    timeout: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run a blocking function on a thread of its own.

    Args:
        timeout: Seconds until it is abandoned; it may then still run to its end, unobserved.
        function: What to run.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Raises:
        TimeoutError: If it did not return in time.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # None is a T when error is None

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = function(*args, **kwargs)
        except BaseException as caught:  # noqa: BLE001 - handed to the waiter
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    name = getattr(function, "__qualname__", repr(function))
    threading.Thread(target=run, name=f"flowgentic:{name}", daemon=True).start()
    async with asyncio.timeout(timeout):
        return await result
