"""An actor stays awake between requests that follow one another, and only then."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from flowgentic_actors.actors import runtime
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.wire import awake
from flowgentic_actors.wire.awake import Moment
from flowgentic_actors.wire.server import Server
from tests.conftest import LOOPS
from tests.support.counter import PATIENCE, SECRET, Counter, clear, command, office
from tests.support.wire_peer import LIMIT, connection_to

pytestmark = pytest.mark.anyio

on_each_loop = pytest.mark.parametrize("anyio_backend", LOOPS)

STAYS = 0.01


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The times of the yields of this process, whose actor alone stays awake."""
    times: list[float] = []
    monkeypatch.setattr(os, "sched_yield", lambda: times.append(time.monotonic()))
    monkeypatch.setattr(awake, "_TAKEN", PATIENCE)  # whatever else the machine does
    yield times
    Moment.rests_until = 0.0


@asynccontextmanager
async def serving_awake(path: Path) -> AsyncIterator[None]:
    mailbox = Mailbox(1000, LIMIT)
    served = ActorRuntime(Counter(), mailbox, pytest.fail, LIMIT, stay_awake=STAYS)
    server = Server(served, SECRET, "counter", 1, LIMIT)
    clear(path)
    await server.listen(str(path))
    try:
        yield
    finally:
        await served.drain(server)


@on_each_loop
async def test_it_looks_again_after_requests_that_follow_one_another(
    path: Path, yields: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "FOLLOWS", PATIENCE)
    async with serving_awake(path), connection_to(path) as connection:
        await connection.request(command("add", 1), PATIENCE)
        assert not yields  # there is none before it
        for _ in range(3):
            await connection.request(command("add", 1), PATIENCE)
            answered = time.monotonic()
            await asyncio.sleep(10 * STAYS)
            assert yields
            assert yields[-1] - answered < 2 * STAYS  # the first yield after its time is the last
            yields.clear()
        await asyncio.sleep(10 * STAYS)
        assert not yields


@on_each_loop
async def test_it_sleeps_between_requests_now_and_then(
    path: Path, yields: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "FOLLOWS", STAYS)
    async with serving_awake(path), connection_to(path) as connection:
        for _ in range(5):
            await connection.request(command("add", 1), PATIENCE)
            await asyncio.sleep(2 * STAYS)
    assert not yields


async def test_an_idle_actor_takes_no_processor_time(tmp_path: Path) -> None:
    async with office(tmp_path, stay_awake=STAYS, heartbeat_interval=1.0) as supervised:
        (ref,) = await supervised.start("a")
        spec = await asyncio.to_thread((tmp_path / "a.spec").read_bytes)
        assert msgspec.json.decode(spec)["settings"]["stay_awake"] == STAYS
        for _ in range(100):
            await ref.ask(command("add", 1), PATIENCE)
        await asyncio.sleep(5 * STAYS)
        used = processor_time(supervised.child().pid)
        await asyncio.sleep(2)
        assert used() <= 0.05  # for its heartbeats, in ticks of 0.01 s; awake it would be 2 s
        for _ in range(20):
            await ref.ask(command("add", 1), PATIENCE)
            await asyncio.sleep(0.05)
        assert used() < 20 * STAYS  # it slept
        await ref.close()


def processor_time(pid: int) -> Callable[[], float]:
    process = psutil.Process(pid)

    def total() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before = total()
    return lambda: total() - before
