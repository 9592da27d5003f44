"""Deadlines that exclude time in which the loop was blocked or the process stopped."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import deadlines
from flowgentic_actors.deadlines import Patience, loop_clock, tell_when_blocked, timeout
from flowgentic_actors.errors import OutcomeUnknownError, RequestExpiredError
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.blocking_connection import BlockingConnection
from flowgentic_actors.wire.messages import Failure, Reply, Request, ToClient
from tests.support.blocking_calls import elsewhere
from tests.support.counter import PATIENCE, SECRET, number
from tests.support.wire_peer import LIMIT, body, echo, peer_at, silence

BLOCK = 1.2


def _loops() -> list[Any]:
    found: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
    try:
        import uvloop  # noqa: PLC0415 - optional

        found.append(pytest.param(uvloop.new_event_loop, id="uvloop"))
    except ImportError:
        pass
    return found


@pytest.fixture(params=_loops())
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on each kind of loop: their order of timers and sockets differs."""

    def go(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return go


Run = Callable[[Coroutine[Any, Any, None]], None]


class Told:
    """Records the reports of blocked loops."""

    def __init__(self) -> None:
        self.blocks: list[float] = []
        tell_when_blocked(self)

    def loop_blocked(self, seconds: float) -> None:
        self.blocks.append(seconds)


# ---------------------------------------------------------------------- the clocks


def test_a_deadline_passes_in_time_on_a_loop_that_turns(run: Run) -> None:
    async def main() -> None:
        begun = time.monotonic()
        deadline = timeout(0.3)
        with pytest.raises(TimeoutError):
            async with deadline:
                await asyncio.sleep(PATIENCE)
        assert deadline.expired()
        assert 0.3 <= time.monotonic() - begun < PATIENCE / 2

    run(main())


def test_what_arrived_while_the_loop_was_blocked_is_in_time(run: Run) -> None:
    async def main() -> None:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        threading.Timer(0.1, lambda: loop.call_soon_threadsafe(arrived.set)).start()
        async with timeout(0.5):
            await asyncio.sleep(0)
            time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
            await arrived.wait()

    run(main())


def test_a_loop_that_is_late_all_the_time_has_deadlines_too(run: Run) -> None:
    async def main() -> None:
        async def busy() -> None:
            while True:
                time.sleep(0.3)  # noqa: ASYNC251 - that is what is tested
                await asyncio.sleep(0)

        task = asyncio.create_task(busy())
        with pytest.raises(TimeoutError):
            async with timeout(0.4):
                await asyncio.sleep(PATIENCE)
        task.cancel()

    run(main())


def test_a_block_is_reported_with_its_length_and_not_too_often(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    async def main() -> None:
        async with timeout(PATIENCE):
            for _ in range(2):
                await asyncio.sleep(0.1)
                time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
            await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING, logger="flowgentic_actors"):
        run(main())
    (seconds,) = told.blocks
    assert BLOCK - 0.1 <= seconds < PATIENCE
    assert [record for record in caplog.records if "blocked for" in record.message]


def test_a_deadline_that_begins_right_after_a_long_block_does_not_hide_the_block(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_LOST", BLOCK / 2)
    told, looks = Told(), 0

    def look(_now: float) -> bool:
        nonlocal looks
        looks += 1
        return True

    async def main() -> None:
        nonlocal looks
        clock = loop_clock(asyncio.get_running_loop())
        clock.watch(look)
        await asyncio.sleep(0.1)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        async with timeout(PATIENCE):
            await asyncio.sleep(0.2)
        looks, began = 0, clock.time
        await asyncio.sleep(0.5)
        assert looks <= (clock.time - began) / deadlines.SLICE + 2  # not twice in each slice

    run(main())
    assert len(told.blocks) == 1


def test_deadlines_go_on_after_a_tick_that_an_exception_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_LOST", 0.2)
    tick, interruptions = deadlines.LoopClock._tick, [KeyError("a signal's handler")]

    def interrupted(clock: deadlines.LoopClock) -> None:
        if interruptions:
            raise interruptions.pop()
        tick(clock)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        clock = loop_clock(asyncio.get_running_loop())
        clock.watch(lambda _now: True)
        await asyncio.sleep(0.4)
        assert not interruptions
        with pytest.raises(TimeoutError):
            async with timeout(0.1):
                await asyncio.sleep(PATIENCE)

    monkeypatch.setattr(deadlines.LoopClock, "_tick", interrupted)
    run(main())


def test_a_passed_deadline_can_be_checked_again_without_an_error(run: Run) -> None:
    async def main() -> None:
        deadline = timeout(0.0)

        async def late() -> None:
            async with deadline:
                try:
                    await asyncio.sleep(PATIENCE)
                finally:  # as the clock does whose round another one's error has ended
                    assert not deadline._look(math.inf)

        with pytest.raises(TimeoutError):
            await late()

    run(main())


def test_the_clock_of_an_idle_loop_stands_still(run: Run) -> None:
    told = Told()

    async def main() -> None:
        async with timeout(PATIENCE):
            pass
        await asyncio.sleep(0.2)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        clock = loop_clock(asyncio.get_running_loop())
        await asyncio.sleep(0.1)
        before = clock.time
        await asyncio.sleep(0.3)
        assert clock.time == before

    run(main())
    assert not told.blocks


def test_a_thread_that_was_stopped_has_waited_for_one_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(deadlines, "monotonic", lambda: now)

    def passing(seconds: float) -> Callable[[float], None]:
        def work(limit: float) -> None:
            nonlocal now
            assert limit == 5
            now += seconds
            raise TimeoutError

        return work

    patience = Patience(30)
    for seconds, left in ((1000.0, 29.75), (4.0, 25.75), (5.1, 20.65)):
        with pytest.raises(TimeoutError):
            patience.attempt(5, passing(seconds))
        assert patience.left == pytest.approx(left)
    waited = 0.0
    while patience.left > 0:
        waited += patience.slice()
        patience.lapse(patience.slice())
    assert waited == pytest.approx(20.65)
    with pytest.raises(TimeoutError):
        patience.slice()


def test_work_in_small_parts_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(deadlines, "monotonic", lambda: now)
    patience, begun = Patience(10), now
    patience.look()
    now += 1000.0  # stopped
    patience.look()
    begun += 1000.0
    while patience.left > 0:
        now += 0.1
        patience.look()
    assert 9 < now - begun <= 10.1


def test_a_thread_waits_for_a_future_until_its_deadline() -> None:
    future: Future[int] = Future()
    threading.Timer(0.4, future.set_result, [7]).start()
    assert Patience(PATIENCE).result(future) == 7
    with pytest.raises(TimeoutError):
        Patience(0.1).result(Future[int]())


# ---------------------------------------------------------------------- requests


def test_a_request_that_was_made_before_a_block_is_sent_with_all_its_time(
    run: Run,
    path: Path,
) -> None:
    async def main() -> None:
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT)
        await connection.request(body(0), 30)
        several = [asyncio.ensure_future(connection.request(body(n), 1)) for n in range(1, 4)]
        await asyncio.sleep(0)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        assert [number(reply) for reply in await asyncio.gather(*several)] == [1, 2, 3]
        await connection.close()

    with elsewhere(peer_at(path)) as (_, peer):
        run(main())
        assert all(request.timeout_ms >= 800 for request in peer.requests)


def test_connecting_on_a_blocked_loop_is_not_given_up(
    run: Run,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flowgentic_actors.wire.async_connection.CONNECT_TIMEOUT", 0.5)

    async def main() -> None:
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT)
        asking = asyncio.ensure_future(connection.request(body(1), 1))
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        assert number(await asking) == 1
        await connection.close()

    with elsewhere(peer_at(path)) as (_, peer):
        run(main())
        assert len(peer.hellos) == 1


def test_a_missing_answer_after_a_block_is_a_timeout(
    run: Run,
    path: Path,
) -> None:
    async def main() -> None:
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT)
        asking = asyncio.ensure_future(connection.request(body(1), 0.5))
        await asyncio.sleep(0.1)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(OutcomeUnknownError):
                await asking
        await connection.close()

    with elsewhere(peer_at(path)) as (_, peer):
        peer.answer = silence
        run(main())


def expiring(times: int) -> Callable[[list[Request]], list[ToClient]]:
    """An actor whose clock finds some requests expired."""
    left = times

    def answer(requests: list[Request]) -> list[ToClient]:
        nonlocal left
        answers: list[ToClient] = []
        for request in requests:
            if left:
                left -= 1
                answers.append(Failure(request.seq, "expired", "its deadline passed"))
            else:
                answers += echo([request])
        return answers

    return answer


@pytest.mark.parametrize("blocking", [False, True])
def test_a_request_that_expired_by_the_actors_clock_is_asked_again(
    path: Path,
    blocking: bool,
) -> None:
    async def ask(timeout: float) -> int:
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT)
        try:
            return number(await connection.request(body(1), timeout))
        finally:
            await connection.close()

    def ask_blocking(timeout: float) -> int:
        connection = BlockingConnection(str(path), SECRET, "peer", LIMIT)
        try:
            return number(connection.request(body(1), timeout))
        finally:
            connection.close()

    def asked(timeout: float) -> int:
        return ask_blocking(timeout) if blocking else asyncio.run(ask(timeout))

    with elsewhere(peer_at(path)) as (_, peer):
        peer.answer = expiring(3)
        assert asked(PATIENCE) == 1
        assert len({request.seq for request in peer.requests}) == 1
        assert [isinstance(answer, Reply) for answer in peer.answer(peer.requests[:1])] == [True]
        peer.answer = expiring(10**9)
        with pytest.raises((RequestExpiredError, OutcomeUnknownError)):  # the last one may be out
            asked(0.3)
