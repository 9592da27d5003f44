"""Values beyond an actor's own memory: in its DDict, and in its journal when that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.protocol.status import ActorStatus
from flowgentic_actors.dragon import ddict_sizing
from flowgentic_actors.dragon.ddict_sizing import ddict_settings
from flowgentic_actors.errors import MemoryFullError, SharedMemoryError
from tests.conftest import NEEDS_DRAGON, SETTINGS, mode_params
from tests.support.processes import run_in_runtime

pytestmark = pytest.mark.anyio

MiB = 1 << 20
NAMESPACE = ("tier", "items")
COUNT = 3000


def value(number: int) -> dict[str, Any]:
    return {"number": number, "pad": f"{number:04d}" * 1000}


async def fill(memory: MemoryCluster) -> None:
    for start in range(0, COUNT, 100):
        numbers = range(start, start + 100)
        await asyncio.gather(*(memory.store.aput(NAMESPACE, f"key-{n}", value(n)) for n in numbers))


async def check_all(memory: MemoryCluster) -> None:
    for start in range(0, COUNT, 50):
        numbers = range(start, start + 50)
        items = await asyncio.gather(*(memory.store.aget(NAMESPACE, f"key-{n}") for n in numbers))
        assert [item and item.value for item in items] == [value(n) for n in numbers]


async def until(memory: MemoryCluster, reached: Callable[[ActorStatus], bool]) -> ActorStatus:
    async with asyncio.timeout(60):
        while True:
            (actor,) = (await memory.status()).actors
            if reached(actor):
                return actor
            await asyncio.sleep(0.1)


async def until_event(memory: MemoryCluster, kind: str, count: int) -> None:
    async with asyncio.timeout(60):
        async for event in memory.events():
            count -= event.kind == kind
            if not count:
                return


def ddict_processes(memory: MemoryCluster) -> list[int]:
    """The processes of the actor's DDict: they work in a folder of its own."""
    folder = str(Path(memory.handle.descriptor).parent / "shard-0.ddict")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str((entry / "cwd").readlink()).startswith(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("spawner", ["subprocess"])
async def test_a_shard_holds_many_times_its_hot_memory(spawner: str) -> None:
    async with MemoryCluster(**SETTINGS[spawner], hot_memory=MiB) as memory:
        await fill(memory)
        await check_all(memory)
        actor = await until(memory, lambda actor: actor.cold_reads > COUNT // 2)
        assert actor.blob_bytes > 10 * MiB
        assert actor.hot_bytes < 2 * MiB  # a batch of them may just be on its way
        assert actor.pid is not None
        os.kill(actor.pid, signal.SIGKILL)
        await check_all(memory)
        actor = await until(memory, lambda again: again.cold_reads > 0)
        assert actor.hot_bytes < 2 * MiB  # a batch of them may just be on its way


async def test_a_ceiling_is_an_error_of_its_own_and_deletes_make_room() -> None:
    settings = {"store_total_mem": MiB, "checkpoint_total_mem": MiB}
    async with MemoryCluster(**SETTINGS["subprocess"], **settings) as memory:
        with pytest.raises(MemoryFullError, match="store_total_mem"):
            await fill(memory)
        found = await memory.store.asearch(NAMESPACE, limit=COUNT)
        assert 200 < len(found) < 300
        await memory.store.adelete(NAMESPACE, found[0].key)
        await memory.store.aput(NAMESPACE, "in its place", value(0))


def test_too_little_shared_memory_names_need_have_and_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Small:
        f_bavail, f_frsize = 100, MiB

    monkeypatch.setattr(os, "statvfs", lambda _: Small)
    with pytest.raises(SharedMemoryError, match=r"100 MiB free.*store_total_mem"):
        ddict_settings(200 * MiB, 1, 1)
    settings = ddict_settings(0, 1, 1)
    assert settings is not None
    assert settings.total_bytes == 100 * MiB // ddict_sizing._SHARE
    assert ddict_settings(0, 200, 1) is None


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("mode", [pytest.param("dragon", marks=NEEDS_DRAGON)])
async def test_a_ddict_is_filled_and_survived(mode: str, *, hangs: bool) -> None:
    settings = {"hot_memory": MiB, "store_total_mem": 32 * MiB}
    async with MemoryCluster(**SETTINGS[mode], **settings) as memory:
        await fill(memory)
        await until(memory, lambda actor: actor.ddict_bytes > 10 * MiB)
        await check_all(memory)
        actor = await until(memory, lambda actor: actor.ddict_reads > COUNT // 2)
        await until_event(memory, "ddict_ready", 1)
        if hangs:  # reads and writes go on with the journal, and another one is filled
            for pid in ddict_processes(memory):
                os.kill(pid, signal.SIGKILL)
            await check_all(memory)
            await fill(memory)
            await check_all(memory)
            await until_event(memory, "ddict_ready", 2)
            await until(memory, lambda actor: actor.ddict_bytes > 10 * MiB)
            await check_all(memory)
        # The actor dies: so does its DDict, and the next one has its own.
        old = set(ddict_processes(memory))
        (actor,) = (await memory.status()).actors
        assert actor.pid is not None
        os.kill(actor.pid, signal.SIGKILL)
        await check_all(memory)
        await until_event(memory, "ddict_ready", 3 if hangs else 2)
        await until(memory, lambda actor: actor.ddict_bytes > 10 * MiB)
        assert not old & set(ddict_processes(memory))
        # What is deleted gives its room back.
        for start in range(0, COUNT, 100):
            await asyncio.gather(
                *(memory.store.adelete(NAMESPACE, f"key-{n}") for n in range(start, start + 100))
            )
        await until(memory, lambda actor: actor.ddict_bytes < MiB)


@pytest.mark.parametrize("mode", mode_params("dragon", slow=("dragon",)))
async def test_a_runtime_that_breaks_with_a_ddict_loses_nothing_and_goes_on_without(
    mode: str,
) -> None:
    settings = {"hot_memory": MiB, "store_total_mem": 32 * MiB}
    async with MemoryCluster(**SETTINGS[mode], **settings) as memory:
        await fill(memory)
        for restarts in range(1, 4):
            await until_event(memory, "ddict_ready", restarts)
            # With its group manager killed, the end of its manager is the end of Dragon.
            _, group_manager, _ = sorted(
                ddict_processes(memory), key=lambda pid: psutil.Process(pid).create_time()
            )
            os.kill(group_manager, signal.SIGKILL)
            await until_event(memory, "host_restarted", restarts)
            await check_all(memory)
        await until(memory, lambda actor: actor.cold_reads > COUNT // 2)
        await fill(memory)
        kinds = [event.kind for event in await memory.recent_events()]
        assert kinds.count("ddict_given_up") == 1
        assert kinds.count("ddict_ready") == 3
        assert not ddict_processes(memory)


IN_RUNTIME = """
    import asyncio
    from dragon.data.ddict import DDict
    from flowgentic_actors import MemoryCluster

    async def use_it():
        settings = {"hot_memory": 1 << 20, "store_total_mem": 32 << 20}
        async with MemoryCluster(fallback_to_local=False, **settings) as memory:
            for start in range(0, 1000, 100):
                await asyncio.gather(*(
                    memory.store.aput(("a",), f"key-{n}", {"pad": "x" * 4000})
                    for n in range(start, start + 100)
                ))
            while (await memory.status()).actors[0].ddict_bytes < 2 << 20:
                await asyncio.sleep(0.1)

    asyncio.run(use_it())
    own = DDict(1, 1, 16 << 20, timeout=20)
    own["key"] = 1
    print("answer", own["key"], flush=True)
    own.destroy()
"""


@pytest.mark.parametrize("mode", mode_params("dragon"))
def test_a_closed_cluster_leaves_the_programs_runtime_as_it_was(mode: str, tmp_path: Path) -> None:
    run = run_in_runtime(IN_RUNTIME, tmp_path)
    assert "answer 1" in run.stdout, run.stdout + run.stderr
