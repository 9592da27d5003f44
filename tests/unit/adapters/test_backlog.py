"""The queue of writes of a thread with too many bytes pending."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowgentic_actors.adapters.backlog import InFlightBytes, WriteInFlight
from flowgentic_actors.errors import BackpressureError

pytestmark = pytest.mark.anyio

SOON = 0.3
PATIENCE = 20.0


async def write(
    backlog: InFlightBytes, name: str, size: int, done: asyncio.Event, log: list[str]
) -> None:
    """A write of thread "t", as the saver makes one."""
    own = WriteInFlight()
    try:
        if "t" in backlog.crowded:
            await backlog.wait(own, "t")
        backlog.begin(own, "t", size)
        log.append(name)
        await done.wait()
    finally:
        backlog.end(own)


def begun(backlog: InFlightBytes, size: int = 100, thread_id: str = "t") -> WriteInFlight:
    """A write that is under way."""
    own = WriteInFlight()
    backlog.begin(own, thread_id, size)
    return own


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_writes_wait_in_order_while_the_limit_is_under_way() -> None:
    backlog, log = InFlightBytes(100, PATIENCE), list[str]()
    done = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(write(backlog, str(n), 50, done[n], log)) for n in range(6)]
    await settle()
    assert log == ["0", "1"]
    for n in range(6):
        done[n].set()
        await settle()
        assert log == [str(k) for k in range(min(6, n + 3))]
    await asyncio.gather(*tasks)
    assert not backlog.crowded


async def test_a_write_larger_than_the_limit_goes_when_there_is_room() -> None:
    backlog, log, done = InFlightBytes(100, PATIENCE), list[str](), asyncio.Event()
    first = asyncio.Event()
    tasks = [
        asyncio.create_task(write(backlog, "small", 100, first, log)),
        asyncio.create_task(write(backlog, "large", 1000, done, log)),
        asyncio.create_task(write(backlog, "last", 1, done, log)),
    ]
    await settle()
    assert log == ["small"]
    first.set()
    await settle()
    assert log == ["small", "large"]
    done.set()
    await asyncio.gather(*tasks)
    assert log == ["small", "large", "last"]


async def test_a_cancelled_write_gives_its_place_back() -> None:
    backlog, log = InFlightBytes(100, PATIENCE), list[str]()
    first, rest = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(write(backlog, "0", 100, first, log))]
    tasks += [asyncio.create_task(write(backlog, str(n), 100, rest, log)) for n in (1, 2, 3)]
    await settle()
    tasks[1].cancel()  # while it waits
    first.set()
    await tasks[0]  # and "2" has its turn now, but did not take it yet
    tasks[2].cancel()
    await settle()
    assert log == ["0", "3"]
    rest.set()
    await asyncio.wait(tasks)
    assert not backlog.crowded


async def test_a_write_that_cannot_be_made_gives_its_turn_back() -> None:
    backlog, log, done = InFlightBytes(100, PATIENCE), list[str](), asyncio.Event()
    first = begun(backlog)

    async def fails() -> None:
        own = WriteInFlight()
        try:
            await backlog.wait(own, "t")
            raise TypeError("cannot be serialized")
        finally:
            backlog.end(own)

    failing = asyncio.create_task(fails())
    await settle()
    waiting = asyncio.create_task(write(backlog, "next", 1, done, log))
    await settle()
    backlog.end(first)
    await settle()
    assert log == ["next"]
    done.set()
    await waiting
    with pytest.raises(TypeError):
        await failing


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_write_whose_turn_does_not_come_names_the_setting_and_leaves_the_line(
    blocking: bool,
) -> None:
    backlog = InFlightBytes(100, SOON)
    first, own = begun(backlog), WriteInFlight()
    waiting = backlog.wait(own, "t")
    if blocking:
        waiting.close()
        waiting = asyncio.to_thread(backlog.wait_sync, own, "t")
    with pytest.raises(BackpressureError, match=r"thread_backlog=100.*request_timeout.*not sent"):
        await waiting
    backlog.end(own)
    backlog.end(first)
    assert not backlog.crowded


async def test_a_timeout_of_another_kind_is_not_taken_for_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def interrupted(_: object) -> None:
        raise TimeoutError("a signal handler's")

    monkeypatch.setattr(asyncio, "wrap_future", interrupted)
    backlog = InFlightBytes(100, PATIENCE)
    first, own = begun(backlog), WriteInFlight()
    with pytest.raises(TimeoutError, match="a signal handler's"):
        await backlog.wait(own, "t")
    backlog.end(own)
    backlog.end(first)
    assert not backlog.crowded


async def test_threads_of_a_graph_do_not_wait_for_each_other() -> None:
    backlog = InFlightBytes(100, PATIENCE)
    large, small = begun(backlog, 100, "a"), begun(backlog, 1, "b")
    assert list(backlog.crowded) == ["a"]
    backlog.end(small)
    backlog.end(large)
    assert not backlog.crowded


async def test_a_blocking_write_on_the_loops_own_thread_does_not_wait_for_that_loop() -> None:
    backlog = InFlightBytes(100, PATIENCE)
    begun(backlog)
    start = time.monotonic()
    backlog.wait_sync(WriteInFlight(), "t")
    assert time.monotonic() - start < SOON


def test_writes_of_many_threads_and_loops_share_the_bound() -> None:
    limit, size, most, now = 100, 30, 0, 0
    backlog, lock = InFlightBytes(limit, PATIENCE), threading.Lock()

    def count(amount: int) -> None:
        nonlocal most, now
        with lock:
            now += amount
            most = max(most, now)

    def begin(own: WriteInFlight) -> None:
        count(size)  # first: the next one may begin at once
        backlog.begin(own, "t", size)

    def blocking(_: int) -> None:
        for _ in range(50):
            own = WriteInFlight()
            backlog.wait_sync(own, "t")
            begin(own)
            time.sleep(0.001)
            count(-size)
            backlog.end(own)

    async def awaiting() -> None:
        async def one() -> None:
            own = WriteInFlight()
            await backlog.wait(own, "t")
            begin(own)
            await asyncio.sleep(0.001)
            count(-size)
            backlog.end(own)

        await asyncio.gather(*(one() for _ in range(50)))

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(blocking, n) for n in range(3)]
        jobs += [pool.submit(asyncio.run, awaiting()) for _ in range(3)]
        for job in jobs:
            job.result(PATIENCE)
    assert not backlog.crowded
    assert size <= most < limit + size


def test_a_loop_that_ended_while_it_waited_does_not_keep_the_turn() -> None:
    backlog = InFlightBytes(100, PATIENCE)
    first = begun(backlog)
    loop = asyncio.new_event_loop()
    task = loop.create_task(backlog.wait(WriteInFlight(), "t"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    own = WriteInFlight()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(backlog.wait_sync, own, "t")
        backlog.end(first)
        waiting.result(PATIENCE)
    backlog.end(own)
    assert not backlog.crowded
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is left on purpose
