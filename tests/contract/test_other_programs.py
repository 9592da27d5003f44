"""Programs written for LangGraph's other savers and stores run, and errors say what to do."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import Item, PutOp, SearchItem

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import FlowgenticError
from tests.support.faces import SaverFace, StoreFace, checkpoint_of, config_of, unique

pytestmark = pytest.mark.anyio


class State(TypedDict):
    what: Any


def graph_of(memory: MemoryCluster, what: Any = 1) -> Any:
    builder = StateGraph(State)
    builder.add_node("give", lambda _: {"what": what})
    builder.add_edge(START, "give")
    builder.add_edge("give", END)
    return builder.compile(checkpointer=memory.checkpointer, store=memory.store)


async def test_setup_and_sweepers_do_nothing_awaited_or_not(memory: MemoryCluster) -> None:
    saver, store = memory.checkpointer, memory.store
    for adapter in (saver, store):
        adapter.setup().result()
        await adapter.setup()
        await adapter.asetup()
    future = store.start_ttl_sweeper()
    assert future.done()
    task = await store.start_ttl_sweeper(sweep_interval_minutes=5)
    await task
    assert not task.cancel()
    assert store.stop_ttl_sweeper(timeout=1).result()
    assert await store.stop_ttl_sweeper()


async def test_a_store_without_an_index_says_so(memory: MemoryCluster) -> None:
    assert memory.store.index_config is None
    assert memory.store.embeddings is None


async def test_items_can_be_made_from_their_dict(store: StoreFace) -> None:
    root = unique()
    await store.put((root,), "key", {"a": 1})
    item = await store.get((root,), "key")
    (found,) = await store.search((root,))
    assert Item(**item.dict()) == item
    assert type(item)(**item.dict()) == item
    assert SearchItem(**found.dict()) == type(found)(**found.dict()) == found
    for each in (item, found):
        assert pickle.loads(pickle.dumps(each)).version == copy.deepcopy(each).version != 0


@pytest.mark.parametrize("bad", [threading.Lock(), 2**70], ids=["lock", "number"])
async def test_an_item_that_cannot_be_serialized_is_named(store: StoreFace, bad: Any) -> None:
    root = unique()
    for call in (
        lambda: store.put((root,), "key", {"good": 1, "bad": [bad]}),
        lambda: store.batch(
            [PutOp((root,), "ok", {}), PutOp((root,), "key", {"good": 1, "bad": [bad]})]
        ),
    ):
        with pytest.raises(FlowgenticError, match=r"item 'key' in .*value\['bad'\]") as failed:
            await call()
        assert isinstance(failed.value, TypeError)
        assert root in str(failed.value)
    assert await store.search((root,)) == []


async def test_a_channel_that_cannot_be_serialized_is_named(saver: SaverFace) -> None:
    config, lock = config_of(unique()), threading.Lock()
    bad = checkpoint_of({"good": 1, "bad": lock, "long": ["x" * 20_000, 2]})
    with pytest.raises(FlowgenticError, match="channel 'bad'") as failed:
        await saver.put(config, bad)
    assert isinstance(failed.value, TypeError)
    assert config["configurable"]["thread_id"] in str(failed.value)
    with pytest.raises(FlowgenticError, match=r"metadata\['odd'\]"):
        await saver.put(config, checkpoint_of({"good": 1}), {"odd": {"in": lock}})
    assert await saver.get(config) is None

    stored = await saver.put(config, checkpoint_of({"good": 1}))
    with pytest.raises(FlowgenticError, match="written to channel 'bad'") as failed:
        await saver.put_writes(stored, [("good", 1), ("bad", lock)])
    assert isinstance(failed.value, TypeError)
    assert not (await saver.found(stored)).pending_writes


async def test_a_graph_names_the_channel_that_cannot_be_serialized(memory: MemoryCluster) -> None:
    graph = graph_of(memory, threading.Lock())
    with pytest.raises(TypeError, match="channel 'what'"):
        await graph.ainvoke({"what": 1}, config_of(unique()))


async def test_a_cached_value_that_cannot_be_serialized_is_named(memory: MemoryCluster) -> None:
    pairs: dict[Any, Any] = {(("ns",), "key"): (threading.Lock(), None)}
    with pytest.raises(FlowgenticError, match="'key'") as failed:
        await memory.cache.aset(pairs)
    assert isinstance(failed.value, TypeError)
    with pytest.raises(FlowgenticError, match="'key'"):
        memory.cache.set(pairs)


async def test_what_cannot_leave_its_process_says_what_to_do(memory: MemoryCluster) -> None:
    expected = "attach" if memory.is_distributed else "mode='distributed'"
    adapters = (memory.checkpointer, memory.store, memory.cache)
    for held in (*adapters, memory):
        for take in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=expected):
                take(held)
    with pytest.raises(TypeError, match=expected):
        copy.deepcopy(graph_of(memory))
    for adapter in adapters:
        assert copy.copy(adapter)._client is memory.client  # as LangGraph itself does
