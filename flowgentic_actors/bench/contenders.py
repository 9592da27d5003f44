"""Contenders: LangGraph's own memory, every mode of ours, and peers."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from flowgentic_actors import MemoryCluster
from flowgentic_actors.bench import peers, raw_ddict
from flowgentic_actors.bench.floor import SerializingSaver
from flowgentic_actors.bench.subjects import Raw, Subject, Written, subject
from flowgentic_actors.environment import inside_dragon, why_no_dragon

REFERENCE: Final = "in-memory"
"""The contender that ratios are relative to: LangGraph's InMemorySaver and InMemoryStore."""

FLOOR: Final = "floor"
"""The contender that keeps nothing: it takes part when it is named, and in no study."""

POSTGRES_VARIABLE: Final = "FLOWGENTIC_BENCH_POSTGRES"
REDIS_VARIABLE: Final = "FLOWGENTIC_BENCH_REDIS"

Opened: TypeAlias = AbstractAsyncContextManager[Subject | Raw]

_HEARTBEAT = 0.5  # seconds; what a status tells is as fresh as the last one
_NODE = "journal in the page cache: survives the death of any process on the node"
_DISK = "journal, synced before it answers: survives the loss of power"


class Contender(NamedTuple):
    """A kind of memory.

    Attributes:
        open: Opens it.
        why_not: Says why it cannot run here and what to do about it, None when it can.
    """

    open: Callable[[], Opened]
    why_not: Callable[[], str | None] = lambda: None


class Places(NamedTuple):
    """The places that contenders need: folders and servers.

    Attributes:
        scratch: Folder for journals and database files.
        postgres: DSN of a Postgres server, or None.
        redis: URL of a Redis server, or None.
    """

    scratch: Path
    postgres: str | None = None
    redis: str | None = None

    @classmethod
    def found(cls, scratch: Path | None, postgres: str | None, redis: str | None) -> Places:
        """Find the places in the options, else in the environment, else use defaults."""
        return cls(
            Path(tempfile.gettempdir()) if scratch is None else scratch,
            postgres or os.environ.get(POSTGRES_VARIABLE) or None,
            redis or os.environ.get(REDIS_VARIABLE) or None,
        )


@asynccontextmanager
async def folder_in(scratch: Path) -> AsyncIterator[Path]:
    """A folder for the length of a context."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="bench-", dir=scratch))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _in_memory() -> AsyncIterator[Subject]:
    yield subject(InMemorySaver(), InMemoryStore(), "none, in this process")


@asynccontextmanager
async def _floor() -> AsyncIterator[Subject]:
    yield subject(SerializingSaver(), InMemoryStore(), "none: it keeps no bytes")


@asynccontextmanager
async def _cluster(durability: str, **settings: Any) -> AsyncIterator[Subject]:
    async with MemoryCluster(**settings) as memory:
        written = None if durability.startswith("none") else _journal_of(memory)
        yield subject(memory.checkpointer, memory.store, durability, written=written)


@asynccontextmanager
async def _local_journal(scratch: Path) -> AsyncIterator[Subject]:
    async with (
        folder_in(scratch) as folder,
        _cluster(_NODE, mode="local", persist_path=folder / "memory") as memory,
    ):
        yield memory


def _journal_of(memory: MemoryCluster) -> Written:
    async def count() -> int:
        return sum(actor.journal_bytes for actor in (await memory.status()).actors)

    return Written(count, 2 * _HEARTBEAT if memory.is_distributed else 0.0, "in its journal")


def contenders(places: Places) -> dict[str, Contender]:
    """All contenders by name, the reference first."""
    distributed = partial(
        _cluster, mode="distributed", fallback_to_local=False, scratch=places.scratch
    )
    no_postgres = partial(peers.why_no_postgres, places.postgres)
    no_redis = partial(peers.why_no_redis, places.redis)
    dsn, url = places.postgres or "", places.redis or ""
    return {
        REFERENCE: Contender(_in_memory),
        FLOOR: Contender(_floor),
        "local": Contender(partial(_cluster, "none, in this process", mode="local")),
        "local-journal": Contender(partial(_local_journal, places.scratch)),
        "subprocess": Contender(partial(distributed, _NODE, spawner="subprocess")),
        "subprocess-disk": Contender(partial(distributed, _DISK, spawner="subprocess", ack="disk")),
        "dragon": Contender(partial(distributed, _NODE, spawner="dragon"), why_no_dragon),
        "sqlite": Contender(partial(_sqlite, places.scratch), peers.why_no_sqlite),
        "postgres": Contender(partial(peers.postgres, dsn), no_postgres),
        "postgres-async": Contender(partial(peers.postgres, dsn, commit_later=True), no_postgres),
        "redis": Contender(partial(peers.redis, url), no_redis),
        "redis-plain": Contender(partial(peers.redis_plain, url), no_redis),
        "ddict": Contender(partial(_ddict, places.scratch), _why_no_ddict),
    }


@asynccontextmanager
async def _sqlite(scratch: Path) -> AsyncIterator[Subject]:
    async with folder_in(scratch) as folder, peers.sqlite(folder) as memory:
        yield memory


@asynccontextmanager
async def _ddict(scratch: Path) -> AsyncIterator[Raw]:
    async with folder_in(scratch) as folder, raw_ddict.opened(folder) as memory:
        yield memory


def _why_no_ddict() -> str | None:
    if inside_dragon():
        return "this program runs inside a Dragon runtime already: start it with plain python"
    return why_no_dragon()


NAMES: Final = tuple(contenders(Places(Path())))
"""Names of all contenders."""

OURS: Final = ("local", "local-journal", "subprocess", "subprocess-disk", "dragon")
"""Those that are a `MemoryCluster`."""
