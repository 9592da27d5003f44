"""LangGraph's cache of nodes over the memory."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import time
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.cache.base import BaseCache
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy

from flowgentic_actors import AsyncCache, MemoryCluster
from tests.conftest import settings_of
from tests.support.faces import unique

pytestmark = pytest.mark.anyio


class CacheFace:
    """A cache whose methods are all awaited and, if `blocking`, carried out by the sync ones."""

    def __init__(self, cache: AsyncCache[Any], *, blocking: bool) -> None:
        self.cache = cache
        self._blocking = blocking

    async def get(self, keys: Any) -> dict[Any, Any]:
        return self.cache.get(keys) if self._blocking else await self.cache.aget(keys)

    async def set(self, pairs: Any) -> None:
        if self._blocking:
            self.cache.set(pairs)
        else:
            await self.cache.aset(pairs)

    async def clear(self, namespaces: Any = None) -> None:
        if self._blocking:
            self.cache.clear(namespaces)
        else:
            await self.cache.aclear(namespaces)


@pytest.fixture
def cache(memory: MemoryCluster, face: str) -> CacheFace:
    return CacheFace(memory.cache, blocking=face == "sync")


async def test_what_was_cached_is_found_and_the_rest_is_left_out(cache: CacheFace) -> None:
    ns = (unique(), "node")
    value = {"a": [1, [2, 3.5]], "b": b"\0", "c": {1, 2}}
    await cache.set({(ns, "a"): (value, None), (ns, "b"): ("text", 60)})

    found = await cache.get([(ns, "a"), (ns, "b"), (ns, "c"), (("other",), "a")])

    assert found == {(ns, "a"): value, (ns, "b"): "text"}
    assert await cache.get([]) == {}
    await cache.set({})


async def test_a_value_may_be_replaced(cache: CacheFace) -> None:
    ns = (unique(),)
    await cache.set({(ns, "a"): (1, 0)})
    assert await cache.get([(ns, "a")]) == {}
    await cache.set({(ns, "a"): (2, None)})
    assert await cache.get([(ns, "a")]) == {(ns, "a"): 2}


async def test_a_value_is_valid_for_its_seconds(cache: CacheFace) -> None:
    ns = (unique(),)
    await cache.set({(ns, "short"): (1, 1), (ns, "long"): (2, 100)})
    assert len(await cache.get([(ns, "short"), (ns, "long")])) == 2
    await asyncio.sleep(1.05)
    assert await cache.get([(ns, "short"), (ns, "long")]) == {(ns, "long"): 2}


async def test_namespaces_are_cleared_alone_and_exactly(cache: CacheFace) -> None:
    one, two = (unique(),), (unique(),)
    below = (*one, "below")
    await cache.set({(ns, str(n)): (n, None) for ns in (one, two, below) for n in range(20)})
    await cache.clear([one, ("nobody",)])
    found = await cache.get([(ns, "3") for ns in (one, two, below)])
    assert found == {(two, "3"): 3, (below, "3"): 3}
    await cache.clear()
    assert await cache.get([(two, "3"), (below, "3")]) == {}


def test_values_are_never_pickled(memory: MemoryCluster) -> None:
    class Secret:
        pass

    with pytest.raises(TypeError):
        memory.cache.set({(("a",), "k"): (Secret(), None)})
    assert isinstance(memory.cache, BaseCache)


async def test_the_least_recently_used_go_first() -> None:
    async with MemoryCluster(mode="local", cache_total_mem=2**20) as memory:
        cache, ns = memory.cache, ("node",)
        for number in range(40):
            await cache.aset({(ns, str(number)): ("x" * 50_000, None)})
            assert len(await cache.aget([(ns, "0")])) == 1  # in use all the time
        found = await cache.aget([(ns, str(n)) for n in range(40)])
        (actor,) = (await memory.status()).actors
        assert actor.cached == len(found) >= 15
        assert 0 < actor.cache_bytes <= 2**20
        kept = [int(key) for _, key in found]
        assert kept == [0, *range(40 - len(found) + 1, 40)]
        await cache.aset({(ns, "too large"): ("x" * 2**21, None)})
        assert len(await cache.aget([(ns, "too large"), (ns, "0")])) == 1


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_an_actor_that_is_restarted_begins_with_an_empty_cache(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode)) as memory:
        place = (("a",), "key")
        await memory.cache.aset({place: (1, None)})
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        found = await memory.cache.aget([place])
        assert found in ({}, {place: 1})  # as long as it took the signal to arrive
        await memory.cache.aset({place: (2, None)})
        assert await memory.cache.aget([place]) == {place: 2}


class State(TypedDict):
    x: int
    seen: Annotated[list[int], operator.add]


async def test_a_graph_finds_what_a_node_returned(memory: MemoryCluster) -> None:
    runs: list[int] = []

    async def slow(state: State) -> dict[str, Any]:
        runs.append(state["x"])
        await asyncio.sleep(0.2)
        return {"seen": [state["x"]]}

    builder = StateGraph(State)
    builder.add_node("slow", slow, cache_policy=CachePolicy(ttl=60))
    builder.add_edge(START, "slow")
    graph = builder.compile(cache=memory.cache, checkpointer=memory.checkpointer)
    await memory.cache.aclear()

    async def run(x: int) -> dict[str, Any]:
        config: Any = {"configurable": {"thread_id": unique()}}
        return dict(await graph.ainvoke({"x": x, "seen": []}, config))

    assert await run(1) == {"x": 1, "seen": [1]}
    started = time.monotonic()
    assert await run(1) == {"x": 1, "seen": [1]}
    assert time.monotonic() - started < 0.2
    assert await run(2) == {"x": 2, "seen": [2]}
    assert runs == [1, 2]
    await graph.aclear_cache(["slow"])
    await run(1)
    assert runs == [1, 2, 1]
