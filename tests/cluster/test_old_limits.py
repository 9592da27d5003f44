"""What a local memory of an earlier version holds beyond the limits can be found and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint

from flowgentic_actors import MemoryCluster
from flowgentic_actors.engine.commands import Command, PutCheckpoint, PutItem, PutWrites
from flowgentic_actors.engine.model import PAGE_BYTES, Write
from flowgentic_actors.errors import InvalidRequestError

pytestmark = pytest.mark.anyio

LONG = "x" * 70_000
DEEP = tuple(f"l{number}" for number in range(100))
ITEM = ("msgpack", msgspec.msgpack.encode({"v": 1}))
LARGE = ("msgpack", msgspec.msgpack.encode({"v": "x" * PAGE_BYTES}))
"""A value that fills a page, so the next one begins behind a name beyond the limits."""
CHECKPOINT = msgspec.msgpack.encode({"v": 1, "id": "1", "ts": "", "versions_seen": {}})

THREAD: RunnableConfig = {"configurable": {"thread_id": LONG, "checkpoint_ns": ""}}

SETTINGS: dict[str, dict[str, Any]] = {
    "local": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
    "several": {"mode": "distributed", "spawner": "subprocess", "actors_per_node": 2},
}


def old_commands() -> list[Command]:
    """What local mode took, and put into its journal, when it had no limits."""
    checkpoint = ("msgpack", CHECKPOINT)
    return [
        PutItem(DEEP, "k", LARGE),
        PutItem(("a", "b"), LONG, LARGE),
        PutItem(("a", "b"), LONG + "y", ITEM),
        PutCheckpoint(LONG, "", "1", None, checkpoint, ("msgpack", b"\x80"), {}, {}, {}),
        PutWrites(LONG, "", "1", "task", "", (Write(0, "a", ITEM),)),
        PutCheckpoint(LONG + "y", "", "1", None, checkpoint, ("msgpack", b"\x80"), {}, {}, {}),
    ]


@pytest.mark.parametrize("mode", SETTINGS)
async def test_ids_beyond_the_limits_are_listed_and_deleted(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    async with MemoryCluster(mode="local", persist_path=path) as memory:
        for command in old_commands():
            await memory.client.ask(command)
    async with MemoryCluster(persist_path=path, **SETTINGS[mode]) as memory:
        store, saver = memory.store, memory.checkpointer
        found = await store.asearch((), limit=10)
        places = [(item.namespace, item.key) for item in found]
        assert places == [(("a", "b"), LONG), (("a", "b"), LONG + "y"), (DEEP, "k")]
        assert await store.alist_namespaces() == [("a", "b"), DEEP]
        threads = [thread.thread_id async for thread in saver.athreads()]
        assert sorted(threads) == [LONG, LONG + "y"]
        one = [thread.thread_id async for thread in saver.athreads(limit=1)]
        assert one == threads[:1]
        assert len([found async for found in saver.alist(None)]) == 2
        assert len([found async for found in saver.alist(THREAD)]) == 1
        read = await saver.aget_tuple(THREAD)
        assert read is not None
        assert read.pending_writes == [("task", "a", {"v": 1})]

        with pytest.raises(InvalidRequestError, match="70,000 characters"):
            await store.aput(("a", "b"), LONG, {"v": 2})
        with pytest.raises(InvalidRequestError, match="70,000 characters"):
            await saver.aput(read.config, read.checkpoint, read.metadata, {})
        if mode == "local":
            await saver.acopy_thread(LONG, "short")
            copied = await saver.aget_tuple({"configurable": {"thread_id": "short"}})
            assert copied is not None
            assert copied.pending_writes == read.pending_writes
            await saver.adelete_thread("short")
        for item in found:
            await store.adelete(item.namespace, item.key)
        await saver.adelete_thread(LONG)
        await saver.aprune([LONG + "y"], strategy="delete")
        assert await store.asearch(()) == []
        assert [thread async for thread in saver.athreads()] == []
    async with MemoryCluster(mode="local", persist_path=path) as memory:
        assert await memory.store.asearch(()) == []


class Marked(str):
    """Text of a type that no encoder knows."""

    __slots__ = ()


async def test_a_journal_replays_every_id_that_it_accepted(tmp_path: Path) -> None:
    odd: Any = {1: 2, LONG: 3, Marked("m"): Marked("m"), "half": "\ud83d", None: None, "big": 2**63}
    name, path = Marked("m"), tmp_path / "memory"
    config: RunnableConfig = {"configurable": {"thread_id": name, "checkpoint_ns": name}}
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {name: 1, Marked("unversioned"): 2}
    checkpoint["channel_versions"] = {name: Marked("1")}
    async with MemoryCluster(mode="local", persist_path=path) as memory:
        saver, store = memory.checkpointer, memory.store
        stored = await saver.aput(config, checkpoint, odd, checkpoint["channel_versions"])
        await saver.aput_writes(stored, [(name, 3)], name, name)
        await store.aput((name, name), name, {name: name})
        read, item = await saver.aget_tuple(stored), await store.aget((name, name), name)
    async with MemoryCluster(mode="local", persist_path=path) as memory:
        again = await memory.checkpointer.aget_tuple(stored)
        assert again == read
        assert again is not None
        assert again.checkpoint["channel_values"] == {"m": 1, "unversioned": 2}
        assert again.checkpoint["channel_versions"] == {"m": "1"}
        assert await memory.store.aget(("m", "m"), "m") == item
