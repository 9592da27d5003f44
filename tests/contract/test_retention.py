"""What is beyond LangGraph's contract: threads listed, retained and guarded."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from flowgentic_actors import MemoryCluster, ThreadInfo
from flowgentic_actors.engine import thread_queries
from flowgentic_actors.errors import InvalidRequestError, ThreadConflictError
from tests.conftest import settings_of
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique
from tests.support.graphs import State, chain
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio

FEW = pytest.mark.parametrize("mode", ["inline", "inline-journal", "several-actors"])


async def threads_of(saver: SaverFace, **options: Any) -> list[ThreadInfo]:
    if saver.blocking:
        return list(saver.saver.threads(**options))
    return [thread async for thread in saver.saver.athreads(**options)]


# ---------------------------------------------------------------------- listing threads


async def test_threads_are_listed_by_their_last_write(saver: SaverFace) -> None:
    mark = unique()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    for name in ("a", "b", "c"):
        await saver.put(config_of(f"{mark}-{name}"), checkpoint_of({"x": "y" * 1000}))
    first = await saver.found(config_of(f"{mark}-a"))
    await saver.put_writes(first.config, [("x", "z" * 500)])
    await saver.put(config_of(f"{mark}-b", "child"), checkpoint_of())
    await saver.get(config_of(f"{mark}-c"))  # who reads does not write

    found = await threads_of(saver, prefix=mark)

    assert [t.thread_id[-1] for t in found] == ["b", "a", "c"]
    assert [t.checkpoints for t in found] == [2, 1, 1]
    assert before < found[2].updated_at < found[1].updated_at < found[0].updated_at
    assert found[0].updated_at < datetime.now(UTC) + timedelta(milliseconds=1)
    assert 2400 > found[1].bytes > 1500 > found[2].bytes > 1000


async def test_a_listing_of_threads_goes_on_where_it_stopped(
    saver: SaverFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 3)  # in this process
    mark = unique()
    for number in range(10):
        await saver.put(config_of(f"{mark}-{number}"), checkpoint_of())
    await saver.put(config_of(unique()), checkpoint_of())
    whole = await threads_of(saver, prefix=mark)
    assert [t.thread_id[-1] for t in whole] == list("9876543210")

    assert await threads_of(saver, prefix=mark, limit=4) == whole[:4]
    assert await threads_of(saver, prefix=mark, before=whole[3], limit=4) == whole[4:8]
    assert await threads_of(saver, prefix=mark, before=whole[3].updated_at) == whole[4:]
    assert await threads_of(saver, prefix=mark, limit=0) == []
    assert (await threads_of(saver))[1:4] == whole[:3]
    with pytest.raises(InvalidRequestError, match="limit"):
        await threads_of(saver, limit=-1)


# ---------------------------------------------------------------------- how long, how many


@FEW
async def test_a_thread_that_nobody_writes_to_is_forgotten(mode: str) -> None:
    sweeping = {"sweep_interval_minutes": 0.1 / 60}
    async with MemoryCluster(**settings_of(mode), checkpoint_ttl=0.6, ttl=sweeping) as memory:
        saver = SaverFace(memory.checkpointer, blocking=False)
        await saver.put(config_of("idle"), checkpoint_of({"a": 1}))
        config = await saver.put(config_of("busy"), checkpoint_of({"a": 1}))
        for number in range(6):
            await asyncio.sleep(0.2)
            await saver.put_writes(config, [("a", number)], f"task-{number}")

        async def forgotten() -> bool:
            return [t.thread_id for t in await threads_of(saver)] == ["busy"]

        await eventually(forgotten, 5)
        assert await saver.get(config_of("idle")) is None
        assert len((await saver.found(config_of("busy"))).pending_writes or ()) == 6


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_an_idle_threads_time_goes_on_while_its_actor_is_dead(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode), checkpoint_ttl=1.5) as memory:
        saver = SaverFace(memory.checkpointer, blocking=False)
        await saver.put(config_of("idle"), checkpoint_of())
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await saver.get(config_of("idle")) is not None

        async def forgotten() -> bool:
            return await saver.get(config_of("idle")) is None

        await eventually(forgotten, 8)


@pytest.fixture
async def trimmed(mode: str) -> AsyncIterator[MemoryCluster]:
    async with MemoryCluster(**settings_of(mode), keep_last=3) as memory:
        yield memory


@FEW
async def test_the_last_checkpoints_of_each_namespace_are_kept(
    trimmed: MemoryCluster, face: str
) -> None:
    saver = SaverFace(trimmed.checkpointer, blocking=face == "sync")
    thread = unique()
    shared = checkpoint_of({"shared": "s" * 1000})
    config = await saver.put(config_of(thread), shared)
    ids = []
    for number in range(10):
        checkpoint = checkpoint_of({"a": str(number) * 1000, "shared": "s" * 1000})
        checkpoint["channel_versions"]["shared"] = shared["channel_versions"]["shared"]
        config = await saver.put(
            config, checkpoint, new_versions={"a": checkpoint["channel_versions"]["a"]}
        )
        await saver.put_writes(config, [("a", "w" * 1000)])
        await saver.put(config_of(thread, "child"), checkpoint_of({"n": number}))
        ids.append(id_of(config))

    assert await saver.ids(config_of(thread, "")) == ids[:-4:-1]
    assert len(await saver.ids(config_of(thread, "child"))) == 3
    async for found in saver.each(config_of(thread, "")):
        assert found.checkpoint["channel_values"]["shared"] == "s" * 1000
    (told,) = await threads_of(saver, prefix=thread)
    assert told.checkpoints == 6
    assert told.bytes < 10_000  # three values, three writes, one that all share
    late = config_of(thread, checkpoint_id=ids[0])
    await saver.put_writes(late, [("a", "w" * 5000)])  # its checkpoint is gone
    assert (await threads_of(saver, prefix=thread))[0].bytes == told.bytes


@FEW
async def test_a_graph_runs_on_with_its_last_checkpoints(trimmed: MemoryCluster) -> None:
    graph = chain(trimmed)
    config: Any = {"configurable": {"thread_id": unique()}}
    for number in range(4):
        result = await graph.ainvoke({"ran": [str(number)]}, config, durability="async")
    assert result["ran"] == [x for n in range(4) for x in (str(n), "a", "b", "c")]
    history = [snapshot async for snapshot in graph.aget_state_history(config)]
    assert len(history) == 3
    again = await graph.ainvoke(None, history[2].config)  # time travel within what is kept
    assert again["ran"] == result["ran"]


# ---------------------------------------------------------------------- two writers


@pytest.fixture
async def guarded(mode: str) -> AsyncIterator[MemoryCluster]:
    async with MemoryCluster(**settings_of(mode), detect_conflicts=True) as memory:
        yield memory


@FEW
async def test_a_second_writer_is_told(guarded: MemoryCluster, face: str) -> None:
    saver = SaverFace(guarded.checkpointer, blocking=face == "sync")
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of({"a": 0}))
    mine = (await saver.found(config_of(thread))).config
    yours = (await saver.found(config_of(thread))).config

    await saver.put(mine, checkpoint_of({"a": 1}))
    with pytest.raises(ThreadConflictError, match="detect_conflicts") as refused:
        await saver.put(yours, checkpoint_of({"a": 2}))
    assert id_of(first) in str(refused.value)
    with pytest.raises(ThreadConflictError):
        await saver.put(config_of(thread), checkpoint_of({"a": 2}))  # took it for a new thread
    await saver.put(config_of(thread, "child"), checkpoint_of())

    assert (await saver.found(config_of(thread))).checkpoint["channel_values"] == {"a": 1}
    assert len(await saver.ids(config_of(thread))) == 2


@FEW
async def test_a_checkpoint_may_be_put_again(guarded: MemoryCluster) -> None:
    saver = SaverFace(guarded.checkpointer, blocking=False)
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of())
    checkpoint = checkpoint_of({"a": 1})
    for _ in range(2):
        await saver.put(first, checkpoint)
    assert len(await saver.ids(config_of(thread))) == 2


@FEW
async def test_graphs_run_resume_and_travel_under_guard(guarded: MemoryCluster) -> None:
    graph = chain(guarded)
    config: Any = {"configurable": {"thread_id": unique()}}
    await graph.ainvoke({"ran": ["in"]}, config)
    await graph.ainvoke({"ran": ["again"]}, config)
    await graph.aupdate_state(config, {"ran": ["edited"]}, as_node="a")
    await graph.ainvoke(None, config)
    history = [snapshot async for snapshot in graph.aget_state_history(config)]
    after_a = next(s for s in history if s.next == ("b",) and s.values["ran"][-1] == "a")
    metadata = [snapshot.metadata or {} for snapshot in history]
    assert not any("flowgentic" in key for described in metadata for key in described)

    travelled = await graph.ainvoke(None, after_a.config)  # replays from there
    assert travelled["ran"][-2:] == ["b", "c"]
    other = await graph.aupdate_state(after_a.config, {"ran": ["forked"]})
    assert (await graph.ainvoke(None, other))["ran"][-3:] == ["forked", "b", "c"]
    branched = await graph.ainvoke({"ran": ["new input"]}, after_a.config)
    assert branched["ran"][-4:] == ["new input", "a", "b", "c"]


@FEW
async def test_a_state_that_is_the_latest_is_told_like_one_of_the_history(
    guarded: MemoryCluster,
) -> None:
    graph = chain(guarded)
    config: Any = {"configurable": {"thread_id": unique()}}
    await graph.ainvoke({"ran": ["in"]}, config)
    history = [snapshot async for snapshot in graph.aget_state_history(config)]
    assert (await graph.aget_state(config)).config == history[0].config
    assert history[0].parent_config == history[1].config


@FEW
async def test_a_subgraph_with_a_memory_of_its_own_is_replayed_under_guard(
    guarded: MemoryCluster,
) -> None:
    inner = chain(guarded, checkpointer=True)
    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_edge(START, "inner")
    graph = builder.compile(checkpointer=guarded.checkpointer)
    config: Any = {"configurable": {"thread_id": unique()}}
    await graph.ainvoke({"ran": ["one"]}, config)
    await graph.ainvoke({"ran": ["two"]}, config)
    history = [snapshot async for snapshot in graph.aget_state_history(config)]
    for snapshot in (s for s in history if s.next == ("inner",)):
        await graph.ainvoke(None, snapshot.config)


@FEW
async def test_of_two_runs_on_one_thread_the_slower_one_is_told(guarded: MemoryCluster) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait_once(name: str) -> None:
        if name == "a" and not begun.is_set():
            begun.set()
            await go_on.wait()

    graph = chain(guarded, wait_once)
    config: Any = {"configurable": {"thread_id": unique()}}
    slow = asyncio.ensure_future(graph.ainvoke({"ran": ["slow"]}, config, durability="sync"))
    async with asyncio.timeout(20):
        await begun.wait()
        quick = await graph.ainvoke({"ran": ["quick"]}, config, durability="sync")
        go_on.set()
        with pytest.raises(ThreadConflictError):
            await slow
    assert (await graph.aget_state(config)).values == quick


# ---------------------------------------------------------------------- old checkpoints


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_graph_goes_on_from_a_checkpoint_of_an_older_langgraph(
    memory: MemoryCluster, version: int
) -> None:
    """As it was stored by another saver, and copied into ours: it answers like LangGraph's own."""

    def legacy() -> tuple[Any, dict[str, Any]]:
        one, two, three = (f"{n:032}.0{n}" for n in (1, 2, 3))
        checkpoint = checkpoint_of({"ran": ["in", "a"], "branch:to:b": None}, v=version)
        checkpoint["channel_versions"] = {"__start__": two, "ran": three, "branch:to:b": three}
        checkpoint["versions_seen"] = {"__start__": {"__start__": one}, "a": {"branch:to:a": two}}
        return checkpoint, {"source": "loop", "step": 1, "parents": {}}

    results = []
    for saver in (InMemorySaver(), memory.checkpointer):
        checkpoint, metadata = legacy()
        config: Any = {"configurable": {"thread_id": unique(), "checkpoint_ns": ""}}
        stored = await saver.aput(config, checkpoint, metadata, checkpoint["channel_versions"])  # type: ignore[arg-type]
        found = await saver.aget_tuple(stored)
        assert found is not None
        assert found.checkpoint["v"] == version
        graph = chain(memory, checkpointer=saver)
        state = await graph.aget_state(config)
        results.append((state.values, state.next, await graph.ainvoke(None, config)))
    assert results[0] == results[1]
