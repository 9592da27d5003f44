"""Peers of the benchmark, those that are installed and those whose server is named.

FLOWGENTIC_BENCH_POSTGRES=postgresql://... FLOWGENTIC_BENCH_REDIS=redis://... pytest ...
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors.bench import peers
from flowgentic_actors.bench.contenders import (
    FLOOR,
    POSTGRES_VARIABLE,
    REDIS_VARIABLE,
    REFERENCE,
    Contender,
    Places,
    contenders,
)
from flowgentic_actors.bench.conversation import Length, converse
from flowgentic_actors.bench.results import Report
from flowgentic_actors.bench.selection import WORKLOADS
from flowgentic_actors.bench.subjects import Subject, messages
from flowgentic_actors.bench.workloads import new_thread

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("default"),  # the peers' own
]

SERVERS = {
    "postgres": POSTGRES_VARIABLE,
    "postgres-async": POSTGRES_VARIABLE,
    "redis": REDIS_VARIABLE,
    "redis-plain": REDIS_VARIABLE,
}


@pytest.fixture(autouse=True)
def never_block_the_loop() -> None:
    """The peers' packages may block the loop: that is theirs."""
    return


@pytest.fixture(params=["sqlite", *SERVERS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def contender(name: str, tmp_path: Path) -> Contender:
    variable = SERVERS.get(name)
    if variable is not None and not os.environ.get(variable):
        pytest.skip(f"NOT TRIED: {name}: ${variable} names no server")
    found = contenders(Places.found(tmp_path, None, None))[name]
    if reason := found.why_not():
        pytest.skip(f"NOT TRIED: {name}: {reason}")
    return found


@asynccontextmanager
async def _open(contender: Contender) -> AsyncIterator[Subject]:
    async with contender.open() as memory:
        assert isinstance(memory, Subject)
        yield memory


async def test_a_peer_does_every_workload_and_tells_its_durability(
    name: str, contender: Contender
) -> None:
    told = {
        "sqlite": "synchronous=",
        "postgres": "synchronous_commit=on",
        "postgres-async": "synchronous_commit=off",
        "redis": "appendonly=",
        "redis-plain": "appendonly=",
    }
    async with _open(contender) as memory:
        assert told[name] in memory.durability
        await _do_every_workload(memory)


async def _do_every_workload(memory: Subject) -> None:
    for workload in WORKLOADS:
        if not workload.heavy and "graphs at once" not in workload.name:
            async with workload.turn(memory) as operations:  # it checks what it stored
                for operation in islice(operations, 2):
                    await operation


async def test_the_floor_gives_right_answers_though_it_keeps_no_bytes(tmp_path: Path) -> None:
    async with _open(contenders(Places(tmp_path))[FLOOR]) as memory:
        await _do_every_workload(memory)


async def test_a_peer_holds_conversations(name: str, contender: Contender) -> None:
    report = Report(quick=True, environment={})
    async with _open(contender) as memory:
        await converse(report, {REFERENCE: memory}, Length(3, 1, 1, 60.0), lambda *_: None)
    assert report.failed == {}
    written = [f.median for f in report.figures if f.workload.startswith("written")]
    assert len(written) == 4
    assert all(count > 0 for count in written)


async def test_a_peer_leaves_nothing_behind(
    name: str, contender: Contender, tmp_path: Path
) -> None:
    before = await _left(name)
    async with _open(contender) as memory:
        await memory.graph.ainvoke({"messages": messages(1, 10)}, new_thread())
        await memory.fan.ainvoke({"jobs": 3, "results": []}, new_thread())
        await memory.store.aput(("kept",), "key", {"value": 1})
    assert await _left(name) == before
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def _left(name: str) -> set[Any]:
    """What there is on the server."""
    if name.startswith("postgres"):
        import psycopg  # noqa: PLC0415 - optional

        async with await psycopg.AsyncConnection.connect(os.environ[POSTGRES_VARIABLE]) as link:
            rows = await link.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")
            return set(await rows.fetchall())
    if name.startswith("redis"):
        import redis.asyncio  # noqa: PLC0415 - optional

        async with redis.asyncio.Redis.from_url(os.environ[REDIS_VARIABLE]) as client:
            return {key async for key in client.scan_iter()}
    return set()


async def test_a_server_without_modules_is_told_from_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = os.environ.get(REDIS_VARIABLE)
    if not url or peers.why_no_redis(url):
        pytest.skip(f"NOT TRIED: redis: ${REDIS_VARIABLE} names no server, or no package")

    async def none(_client: Any) -> list[dict[bytes, Any]]:
        return []

    monkeypatch.setattr(peers, "_modules", none)
    with pytest.raises(peers.PeerError, match="needs RedisJSON and RediSearch"):
        async with peers.redis(url):
            raise AssertionError("it cannot open")
