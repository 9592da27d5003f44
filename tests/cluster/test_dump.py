"""`dump` and `snapshot`: of a live cluster, a closed one, an orphan."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cli.main import main
from tests.support.persisted_memory import check, die, fill, settings
from tests.support.processes import remove_orphan

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dump")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Cli:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        self._capsys.readouterr()
        found = await asyncio.to_thread(main, [str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert found == code, out + err
        return out or err

    async def rows(self, *arguments: object) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (await self(*arguments, "--json")).splitlines()]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    found = [file for file in path.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


async def test_a_closed_memory_is_listed_and_not_changed(folder: Path, cli: Cli) -> None:
    async with MemoryCluster(**settings(persist_path=folder, actors_per_node=2)) as memory:
        await fill(memory, "a")
        await memory.store.aput(("other", "x"), "gone", {"v": 1})
        await memory.store.adelete(("other", "x"), "gone")
        await memory.store.aput(("other", "x"), "key", {"v": [1, "two"]})
        newest = await memory.checkpointer.aget_tuple({"configurable": {"thread_id": "a-0"}})
    assert newest is not None
    before = await asyncio.to_thread(files, folder)

    rows = await cli.rows("dump", folder)
    assert [row["kind"] for row in rows] == ["memory", *["thread"] * 3, *["item"] * 11]
    assert (rows[0]["shards"], rows[0]["state"]) == (2, "closed in order")
    last = newest.checkpoint["id"]
    assert (rows[1]["thread"], rows[1]["checkpoints"], rows[1]["last"]) == ("a-0", 4, last)
    assert [row["namespace"] for row in rows[4:8]] == [["a", "0"]] * 4
    (item,) = await cli.rows("dump", folder, "--namespace", "other", "--values")
    assert "no items at or below" in await cli("dump", folder, "--namespace", "nosuch", code=1)
    assert (item["key"], item["type"], item["value"]) == ("key", "msgpack", {"v": [1, "two"]})
    listed = await cli.rows("dump", folder, "--thread", "a-0", "--values")
    assert [row["values"] for row in listed] == [{"n": n} for n in (9, 6, 3, 0)]
    text = await cli("dump", folder)
    for told in ("2 shards", "thread a-0  4 checkpoints", "item other.x / key  msgpack"):
        assert told in text
    assert await asyncio.to_thread(files, folder) == before


async def test_a_live_cluster_is_listed_and_copied_while_it_is_written_to(
    folder: Path, cli: Cli
) -> None:
    copies = [folder / "copies" / str(n) for n in range(3)]
    done = asyncio.Event()
    async with MemoryCluster(**settings(name="live", actors_per_node=2)) as memory:
        await fill(memory, "kept")

        async def write() -> None:
            n = 0
            while not done.is_set():
                n += 1
                await memory.store.aput(("busy",), f"key-{n % 50}", {"n": n, "pad": "x" * 20_000})

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            for copy in copies:
                rows = await cli.rows("dump", "live")
                assert "open in cluster 'live'" in rows[0]["state"]
                assert sum(row["kind"] == "thread" for row in rows) == 3
                assert "copied" in await cli("snapshot", "live", copy)
            done.set()
        await check(memory, "kept")
    for copy, actors in zip(copies, (1, 2, 2), strict=True):
        async with MemoryCluster(**settings(persist_path=copy, actors_per_node=actors)) as again:
            await check(again, "kept")


async def test_an_orphan_is_found_by_name(folder: Path, cli: Cli) -> None:
    cluster = await asyncio.to_thread(die, name="lost", actors_per_node=2)
    rows = await cli.rows("dump", "lost")
    assert rows[0]["state"] == "not closed in order"
    assert len(rows) == 21
    assert await cli.rows("dump", cluster["folder"]) == rows
    copied = await cli("snapshot", "lost", folder / "copy")
    assert "2 shards, 20 entries" in copied
    async with MemoryCluster(**settings(persist_path=folder / "copy")) as memory:
        assert len(await memory.store.asearch(("team",), limit=100)) == 20
        # with a persist_path the name does not touch the orphan of that name
    async with MemoryCluster(**settings(persist_path=folder / "copy", name="lost")):
        pass
    await asyncio.to_thread(remove_orphan, cluster["folder"])


async def test_a_live_cluster_with_a_persist_path_is_found_by_name(folder: Path, cli: Cli) -> None:
    async with MemoryCluster(**settings(persist_path=folder, name="there")) as memory:
        await fill(memory, "a")
        assert (await cli.rows("dump", "there"))[0]["path"] == str(folder)


async def test_what_is_no_memory_is_told(folder: Path, cli: Cli) -> None:
    assert "no cluster of that name" in await cli("dump", "nobody", code=1)
    assert "has no manifest.json" in await cli("dump", folder, code=1)
    assert "is not there" in await cli("snapshot", folder / "none", folder / "copy", code=1)
    async with MemoryCluster(**settings(persist_path=folder / "memory")) as memory:
        await fill(memory, "a")
    assert "no thread 'b'" in await cli("dump", folder / "memory", "--thread", "b", code=1)
    told = await cli("snapshot", folder / "memory", folder / "memory", code=1)
    assert "is there already" in told
    assert "/dev/shm" in await cli("snapshot", folder / "memory", "/dev/shm/copy", code=1)
