"""A hot thread is named in the cluster's status."""

from __future__ import annotations

import asyncio

import pytest

from flowgentic_actors import MemoryCluster
from tests.conftest import SETTINGS
from tests.support.faces import checkpoint_of, config_of
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio


async def write(memory: MemoryCluster, threads: list[str]) -> None:
    """One checkpoint of every thread, all at once."""
    checkpoint = checkpoint_of({"a": 1})
    versions = checkpoint["channel_versions"]
    puts = [memory.checkpointer.aput(config_of(t), checkpoint, {}, versions) for t in threads]
    await asyncio.gather(*puts)


async def hot(memory: MemoryCluster) -> tuple[str, ...]:
    (actor,) = (await memory.status()).actors
    return actor.hot


async def test_a_hot_thread_is_named_and_balanced_traffic_names_nobody() -> None:
    name = "it's\n\u202e\0 hot"
    async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
        balanced = [f"thread-{n}" for n in range(50)]
        loop = asyncio.get_running_loop()
        end = loop.time() + 2
        while loop.time() < end:
            await write(memory, balanced)
            assert await hot(memory) == ()

        async def named() -> bool:
            await write(memory, balanced[:10] + [name] * 40)
            return bool(await hot(memory))

        await eventually(named, 30)
        (told,) = await hot(memory)
        assert told.startswith(f"thread {name!r} ")
        assert 25 < int(told.split()[-2]) <= 80
