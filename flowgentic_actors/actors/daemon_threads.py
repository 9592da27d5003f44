"""Daemon threads: blocking functions for event loops, and event loops for blocking code.

A thread pool would make the interpreter wait at exit for a call that never returns (a Dragon call
can be one); a daemon thread is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from flowgentic_actors import deadlines

P = ParamSpec("P")
T = TypeVar("T")


async def on_daemon_thread(
    timeout: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run a blocking function on a thread of its own.

    While the interpreter ends it runs on this one, which blocks: Python starts no thread then.

    Args:
        timeout: Seconds, in which the loop turns, until it is abandoned; it may then still run to
            its end, unobserved.
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
        with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiter
            loop.call_soon_threadsafe(settle, value, error)

    name = getattr(function, "__qualname__", repr(function))
    thread = threading.Thread(target=run, name=f"flowgentic:{name}", daemon=True)
    if not start_unless_ending(thread):
        run()
    async with deadlines.timeout(timeout):
        return await result


def start_unless_ending(thread: threading.Thread) -> bool:
    """Start a thread; False while the interpreter ends and none can be started.

    Raises:
        RuntimeError: If there are too many threads.
    """
    if sys.is_finalizing():  # up to Python 3.11, it would be waited for without end
        return False
    try:
        thread.start()
    except RuntimeError as error:
        if "interpreter shutdown" not in str(error):
            raise
        return False
    return True


def run_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work from blocking code, and wait for it.

    It runs on this thread, or, where an event loop runs here already, on one of its own. It has to
    end within a bound by itself.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="flowgentic:blocking", daemon=True)
    if not start_unless_ending(thread):
        raise RuntimeError("the interpreter is ending: nothing can be run beside its event loop")
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
