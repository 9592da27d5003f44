"""Cancellation of a piece of work at every one of its awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Literal

from flowgentic_actors.actors.daemon_threads import on_daemon_thread

When = Literal["waiting", "done"]
"""`waiting`: cancelled as soon as it waits. `done`: cancelled when what it waited for is there and
it has not been told yet, the moment in which a result is most easily lost."""

_MOST = 10_000
_FILE_WAIT = 10.0


class _Cancelling:
    """Runs a coroutine within the current task, and cancels that task at one of its awaits."""

    def __init__(self, work: Coroutine[Any, Any, object], at: int, when: When) -> None:
        self._work = work
        self._at = at
        self._when = when
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, object]:
        task = asyncio.current_task()
        assert task is not None
        suspensions, answer = 0, None
        error: BaseException | None = None
        while True:
            try:
                awaited = self._work.send(answer) if error is None else self._work.throw(error)
            except StopIteration as end:
                return end.value
            if suspensions == self._at:
                self._cancel(task, awaited)
            suspensions += 1
            answer, error = None, None
            try:
                answer = yield awaited
            except BaseException as thrown:  # noqa: BLE001 - for the coroutine to deal with
                error = thrown

    def _cancel(self, task: asyncio.Task[Any], awaited: object) -> None:
        self.cancelled = True
        if self._when == "done" and isinstance(awaited, asyncio.Future) and not awaited.done():
            # The task adds its own callback after this one, so it is woken after it.
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


class SwallowedCancellationError(AssertionError):
    """A cancelled scenario went on as if it had not been cancelled."""


async def cancel_at_every_await(
    scenario: Callable[[int], Coroutine[Any, Any, object]],
    check: Callable[[int], Awaitable[None]],
    when: When = "waiting",
) -> int:
    """Run a scenario repeatedly, cancelled at its first await, its second, and so on.

    Args:
        scenario: Makes the work, given the number of the run.
        check: Called after each run, with its number: raises if something is not as it must be.
        when: At which moment of an await.

    Returns:
        At how many awaits it was cancelled; the run after those ended without.

    Raises:
        SwallowedCancellationError: If the work went on in spite of its cancellation.
    """
    for run in range(_MOST):
        work = _Cancelling(scenario(run), run, when)
        task = asyncio.create_task(_await(work))
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # an error of its own is passed on
            if work.cancelled:
                raise SwallowedCancellationError(f"the cancellation at await {run} was swallowed")
        await check(run)
        if not work.cancelled:
            return run
    raise AssertionError(f"the scenario has more than {_MOST} awaits")


async def _await(work: _Cancelling) -> object:
    return await work


class Footprint:
    """The tasks, sockets and child processes of this process, to be compared later."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held: set[str] = set()

    @classmethod
    async def take(cls) -> Footprint:
        """Take the footprint of now."""
        footprint = cls()
        footprint._tasks = asyncio.all_tasks()
        footprint._held = await on_daemon_thread(_FILE_WAIT, _held)
        return footprint

    async def settled(self, timeout: float = 5.0) -> None:
        """Wait until no more is held than at first, within a bound.

        Raises:
            AssertionError: If something is left.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while extra := await self._extra():
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"left behind: {extra}")
            await asyncio.sleep(0.01)

    async def _extra(self) -> list[str]:
        tasks = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        held = await on_daemon_thread(_FILE_WAIT, _held)
        return [*(repr(task) for task in tasks if not task.done()), *sorted(held - self._held)]


def _held() -> set[str]:
    return held_sockets() | {f"process {pid}" for pid in _children()}


def held_sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # the listing's own, closed by now
        if target.startswith("socket:"):
            found.add(target)
    return found


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue  # a thread that has ended; its children are the main thread's now
    return found
