"""Staying awake for a message: looks without sleeping, yields, and ends."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowgentic_actors.wire import awake
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.awake import LoopAwake, Moment, read_awake, time_awake
from flowgentic_actors.wire.blocking_connection import BlockingPool
from tests.conftest import LOOPS
from tests.support.counter import PATIENCE, SECRET, number, until
from tests.support.wire_peer import LIMIT, body, peer_at

pytestmark = pytest.mark.anyio

LONG = 10 * PATIENCE
"""A moment that a test does not wait for."""

on_each_loop = pytest.mark.parametrize("anyio_backend", LOOPS)


class Yields:
    """Counts this process's yields, and does what one of them shall do."""

    def __init__(self) -> None:
        self.count = 0
        self.on_yield: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        self.count += 1
        self.on_yield()


@pytest.fixture(autouse=True)
def yields(monkeypatch: pytest.MonkeyPatch) -> Iterator[Yields]:
    counted = Yields()
    monkeypatch.setattr(os, "sched_yield", counted)
    monkeypatch.setattr(awake, "_TAKEN", PATIENCE)  # whatever else the machine does
    yield counted
    Moment.rests_until = 0.0


def test_a_process_with_one_processor_does_not_stay_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, seconds in ((4, 0.5), (2, 0.5), (1.5, 0.0), (1, 0.0)):
        monkeypatch.setattr(awake, "processors", lambda count=count: count)
        assert time_awake(0.5) == seconds


# ---------------------------------------------------------------------- event loops


@on_each_loop
async def test_a_loop_that_stays_awake_does_everything_else(yields: Yields) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        loop.add_reader(one, done.set)
        LoopAwake(LONG).stay()
        for _ in range(100):  # tasks have their turns
            before = yields.count
            await asyncio.sleep(0)
            assert yields.count - before <= 1
        await asyncio.sleep(0.01)  # and so have timers
        assert yields.count > 100
        other.send(b"x")
        async with asyncio.timeout(PATIENCE):
            await done.wait()  # and sockets
        loop.remove_reader(one)


@on_each_loop
async def test_a_loop_sleeps_when_the_moment_is_over(yields: Yields) -> None:
    stays = LoopAwake(0.01)
    for _ in range(3):
        before = yields.count
        stays.stay()
        await asyncio.sleep(0.1)
        now = yields.count
        assert now > before
        await asyncio.sleep(0.1)
        assert yields.count == now


@on_each_loop
async def test_a_loop_sleeps_when_nothing_is_expected_any_more(yields: Yields) -> None:
    expected = [1]
    stays = LoopAwake(LONG, lambda: expected)
    for _ in range(2):  # the next message is expected anew
        expected.append(1)
        stays.stay()
        await asyncio.sleep(0.01)
        expected.clear()
        await asyncio.sleep(0.01)
        now = yields.count
        await asyncio.sleep(0.05)
        assert yields.count == now > 0


@on_each_loop
async def test_no_time_to_stay_awake_is_no_turn_of_the_loop(yields: Yields) -> None:
    LoopAwake(0.0).stay()
    await asyncio.sleep(0.05)
    assert not yields.count


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@on_each_loop
async def test_a_process_rests_when_others_need_the_processor(
    yields: Yields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "_TAKEN", 0.001)
    monkeypatch.setattr(awake, "_REST", (0.2, 0.2))
    yields.on_yield = lambda: spin(0.002)
    stays, other = LoopAwake(LONG), LoopAwake(LONG)
    for _ in range(2):
        before = yields.count
        stays.stay()
        await asyncio.sleep(0.05)
        other.stay()
        await asyncio.sleep(0.05)
        assert yields.count == before + 1
        await asyncio.sleep(0.2)


def test_rests_grow_while_others_go_on_to_need_the_processor(
    yields: Yields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "_TAKEN", 0.001)
    monkeypatch.setattr(awake, "_REST", (0.05, 0.15))
    monkeypatch.setattr(awake, "_SOON", PATIENCE)
    yields.on_yield = lambda: spin(0.002)

    def rest() -> float:
        moment = Moment(LONG)
        while not moment.begin():
            time.sleep(0.001)
        moment.goes_on()
        return Moment._rest

    Moment.rests_until = -PATIENCE - time.monotonic()
    assert [rest() for _ in range(4)] == [0.05, 0.1, 0.15, 0.15]
    monkeypatch.setattr(awake, "_SOON", 0.0)
    assert rest() == 0.05


def test_a_moment_that_was_interrupted_is_not_the_last_one(yields: Yields) -> None:
    def interrupt() -> None:
        raise TimeoutError("what a handler of signals raises")

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    try:
        stays = LoopAwake(0.01)
        yields.on_yield = interrupt
        loop.call_soon(stays.stay)
        loop.run_until_complete(asyncio.sleep(0.05))
        assert yields.count == 1
        yields.on_yield = lambda: None
        loop.call_soon(stays.stay)
        loop.run_until_complete(asyncio.sleep(0.05))
        assert yields.count > 2
    finally:
        loop.close()


# ---------------------------------------------------------------------- sockets


def test_what_comes_within_the_moment_is_read_without_sleeping(yields: Yields) -> None:
    one, other = socket.socketpair()
    with one, other:
        yields.on_yield = lambda: other.send(b"word") if yields.count == 3 else None
        assert read_awake(one, Moment(LONG), 10) == b"word"
        assert yields.count == 3
        other.close()
        assert read_awake(one, Moment(LONG), 10) == b""  # the end of the stream


def test_nothing_comes_within_the_moment(yields: Yields) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert read_awake(one, Moment(0.001), 10) is None
        assert yields.count
        before = yields.count
        assert read_awake(one, Moment(0.0), 10) is None
        assert yields.count == before


def test_an_error_of_the_socket_is_raised() -> None:
    one, other = socket.socketpair()
    other.close()
    one.close()
    with pytest.raises(OSError, match="descriptor"):
        read_awake(one, Moment(LONG), 10)


# ---------------------------------------------------------------------- connections


@on_each_loop
async def test_a_caller_stays_awake_until_its_answer(path: Path, yields: Yields) -> None:
    async with peer_at(path):
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT, stay_awake=LONG)
        for count in range(3):
            assert number(await connection.request(body(count), PATIENCE)) == count
            await asyncio.sleep(0.01)
            now = yields.count
            await asyncio.sleep(0.05)
            assert yields.count == now > 0
        await connection.close()


async def test_a_caller_that_gives_up_does_not_stay_awake(path: Path, yields: Yields) -> None:
    async with peer_at(path) as peer:
        peer.answer = lambda _: []
        connection = AsyncConnection(str(path), SECRET, "peer", LIMIT, stay_awake=LONG)
        asking = asyncio.ensure_future(connection.request(body(1), PATIENCE))
        await until(lambda: bool(peer.requests))
        asking.cancel()
        await asyncio.sleep(0.01)
        now = yields.count
        await asyncio.sleep(0.05)
        assert yields.count == now > 0
        await connection.close()


async def test_a_blocking_caller_stays_awake_until_its_answer(path: Path, yields: Yields) -> None:
    async with peer_at(path):
        pool = BlockingPool(str(path), SECRET, "peer", LIMIT, 1, stay_awake=LONG)
        for count in range(3):
            assert number(await asyncio.to_thread(pool.request, body(count), PATIENCE)) == count
        assert yields.count
        pool.close()


async def test_a_blocking_caller_sleeps_after_the_moment(path: Path, yields: Yields) -> None:
    async with peer_at(path) as peer:
        pool = BlockingPool(str(path), SECRET, "peer", LIMIT, 1, stay_awake=0.001)
        await asyncio.to_thread(pool.request, body(0), PATIENCE)
        peer.reading.clear()
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(pool.request(body(1), PATIENCE)))
        thread.start()
        await asyncio.sleep(0.1)
        now = yields.count
        await asyncio.sleep(0.1)
        peer.reading.set()
        await until(lambda: bool(answers))
        thread.join()
        assert now > 0
        pool.close()
