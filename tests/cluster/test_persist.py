"""The memory beyond its cluster: `persist_path`, orphans, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.errors import (
    ClusterOpenError,
    FlowgenticError,
    PersistError,
    PersistHeldError,
)
from tests.conftest import SETTINGS, mode_params
from tests.support.persisted_memory import OWNER, check, die, fill, settings
from tests.support.processes import is_orphan, python, remove_orphan, wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("persist")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def kinds(memory: MemoryCluster) -> list[str]:
    return [event.kind for event in await memory.recent_events()]


async def test_the_memory_is_there_again_with_any_number_of_actors(folder: Path) -> None:
    path = folder / "deep" / "memory"
    labels: list[str] = []
    for actors, depth in ((1, 2), (3, 2), (2, 2), (2, 1)):
        more = {"persist_path": path, "actors_per_node": actors, "namespace_depth": depth}
        async with MemoryCluster(**settings(**more)) as memory:
            for label in labels:
                await check(memory, label)
            assert ("resharded" in await kinds(memory)) == bool(labels)
            labels.append(f"of-{actors}-{depth}")
            await fill(memory, labels[-1])
    assert not list(path.glob("holder.json"))


async def test_of_two_clusters_on_one_path_the_second_is_refused(folder: Path) -> None:
    more = settings(persist_path=folder)
    async with MemoryCluster(**more, name="first") as memory:
        started = time.monotonic()
        with pytest.raises(PersistHeldError, match=r"cluster 'first' \(host .*pid \d+, since 20"):
            await MemoryCluster(**more, name="second").__aenter__()
        assert time.monotonic() - started < 5
        await fill(memory, "still-there")
        await check(memory, "still-there")


@pytest.mark.parametrize("ack", ["node", "disk"])
async def test_everything_killed_and_opened_again(folder: Path, ack: str) -> None:
    await asyncio.to_thread(die, persist_path=str(folder), actors_per_node=2, ack=ack)
    async with MemoryCluster(**settings(persist_path=folder, actors_per_node=3)) as memory:
        assert len(await memory.store.asearch(("team",), limit=100)) == 20
        (event,) = [e for e in await memory.recent_events() if e.kind == "persist_reopened"]
        assert "not closed in order" in event.detail


async def test_a_program_that_died_can_be_started_again_at_once(folder: Path) -> None:
    more = {"persist_path": str(folder), "name": "again"}

    def lose_the_owner() -> None:
        with python(OWNER, json.dumps(settings(**more))) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()

    await asyncio.to_thread(lose_the_owner)
    async with MemoryCluster(**settings(**more)) as memory:  # its host may be draining still
        assert len(await memory.store.asearch(("team",), limit=100)) == 20


async def test_an_orphan_is_reopened_by_name_and_gone_after_a_clean_close() -> None:
    cluster = await asyncio.to_thread(die, name="lost", actors_per_node=2)
    assert await asyncio.to_thread(Path(cluster["folder"], "host.sock").exists)
    async with MemoryCluster(**settings()):  # the next opener removes all but the memory
        assert await asyncio.to_thread(is_orphan, cluster["folder"])
    async with MemoryCluster(**settings(name="lost")) as memory:
        assert len(await memory.store.asearch(("team",), limit=100)) == 20
        assert {"orphan_reopened", "resharded"} <= set(await kinds(memory))
    assert not await asyncio.to_thread(Path(cluster["folder"]).exists)


@pytest.mark.parametrize("limit", [{"orphan_ttl": 0}, {"orphan_bytes": 0}])
async def test_orphans_beyond_the_limits_are_removed(limit: dict[str, Any]) -> None:
    cluster = await asyncio.to_thread(die)
    async with MemoryCluster(**settings(**limit)):
        assert not await asyncio.to_thread(Path(cluster["folder"]).exists)


def an_old_and_a_new_orphan() -> tuple[str, str, int]:
    """Their folders, and the bytes of the new one."""
    old, new = die()["folder"], die()["folder"]
    for file in Path(old).rglob("*"):
        os.utime(file, (time.time() - 3600,) * 2)
    files = (file.stat() for file in Path(new, "memory").rglob("*"))
    return old, new, sum(512 * file.st_blocks for file in files)


async def test_of_orphans_that_are_too_much_the_oldest_goes() -> None:
    old, new, size = await asyncio.to_thread(an_old_and_a_new_orphan)
    async with MemoryCluster(**settings(orphan_bytes=size + 1)):
        assert not await asyncio.to_thread(Path(old).exists)
        assert await asyncio.to_thread(is_orphan, new)
    await asyncio.to_thread(remove_orphan, new)


async def test_a_cluster_without_data_leaves_nothing_when_it_dies() -> None:
    program = OWNER.replace("range(20)", "range(0)")

    def lose_the_owner() -> str:
        with python(program, json.dumps(settings())) as process:
            assert process.stdout is not None
            cluster = json.loads(process.stdout.readline())
            process.kill()
        return str(cluster["folder"])

    folder = await asyncio.to_thread(lose_the_owner)
    await asyncio.to_thread(wait_until, lambda: not Path(folder).exists(), 10)


async def test_a_path_that_cannot_be_used_starts_nothing(folder: Path) -> None:
    (folder / "file").touch()
    before = {child.pid for child in psutil.Process().children()}
    for path, told in ((folder / "file" / "memory", "persist_path="), (folder, "not a memory")):
        with pytest.raises(PersistError, match=told):
            await MemoryCluster(**settings(persist_path=path)).__aenter__()
    assert {child.pid for child in psutil.Process().children()} == before


async def test_a_memory_that_was_to_persist_does_not_become_a_local_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DragonPlatform, "why_not", lambda _: "there is none")
    with pytest.raises(ClusterOpenError, match="there is none"):
        await MemoryCluster(mode="distributed", persist_path=folder).__aenter__()


async def test_a_re_sharding_longer_than_the_open_timeout_says_what_is_going_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MemoryCluster(**settings(persist_path=folder)) as memory:
        await fill(memory, "kept")
    slow = folder.parent / f"{folder.name}-slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import time, os\n"
        "from flowgentic_actors.storage.read_only_disk import ReadOnlyDisk\n"
        "read = ReadOnlyDisk.read\n"
        "ReadOnlyDisk.read = lambda *a: (time.sleep(0.5), read(*a))[1]\n"
    )
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{slow}:{os.environ.get('PYTHONPATH', '')}")
        more = settings(persist_path=folder, actors_per_node=3, open_timeout=2.5)
        with pytest.raises(FlowgenticError, match=r"(?s)open_timeout.*re-sharding .* from 1 to 3"):
            await MemoryCluster(**more).__aenter__()
    shutil.rmtree(slow)
    async with MemoryCluster(**settings(persist_path=folder, actors_per_node=3)) as memory:
        await check(memory, "kept")


@pytest.mark.parametrize("mode", mode_params("dragon"))
async def test_a_dragon_cluster_finds_the_memory_again_and_leaves_it_to_the_next(
    folder: Path, mode: str
) -> None:
    async with MemoryCluster(**settings(persist_path=folder)) as memory:
        await fill(memory, "kept")
    more = {**SETTINGS[mode], "persist_path": folder, "actors_per_node": 2}
    async with MemoryCluster(**more) as memory:
        await check(memory, "kept")
        await fill(memory, "by-dragon")
    async with MemoryCluster(**settings(persist_path=folder)) as memory:
        (event,) = [e for e in await memory.recent_events() if e.kind == "persist_reopened"]
        assert "was closed in order" in event.detail
        for label in ("kept", "by-dragon"):
            await check(memory, label)
