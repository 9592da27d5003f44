"""The loss of a node with `ack="replica"`: calls wait for the next second copy, and do not fail."""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from itertools import pairwise
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import OutcomeUnknownError, ReplicaUnavailableError
from tests.support.nodes import everywhere, kinds, node_of, settings, until_node

pytestmark = pytest.mark.anyio

GRAPHS = 16
STEPS = 4


class State(TypedDict):
    said: Annotated[list[str], operator.add]


async def say(state: State) -> dict[str, list[str]]:
    await asyncio.sleep(0.01)
    return {"said": ["step"]}


def graph_of(memory: MemoryCluster) -> Any:
    builder = StateGraph(State)
    nodes = [START, *(f"step-{number}" for number in range(STEPS))]
    for before, name in pairwise(nodes):
        builder.add_node(name, say)
        builder.add_edge(before, name)
    return builder.compile(checkpointer=memory.checkpointer)


async def test_no_graph_fails_and_no_call_hangs_when_a_node_is_lost() -> None:
    async with MemoryCluster(**settings()) as memory:
        graph, places = graph_of(memory), everywhere(memory, await memory.status())
        over = threading.Event()
        slowest: list[float] = []

        async def run_graphs(number: int) -> int:
            runs = 0
            while not over.is_set():
                begun = time.monotonic()
                config = {"configurable": {"thread_id": f"thread-{number}-{runs}"}}
                state = await graph.ainvoke({"said": ["in"]}, config)
                assert len(state["said"]) == STEPS + 1
                slowest.append(time.monotonic() - begun)
                runs += 1
            return runs

        def write_and_read() -> int:
            count = 0
            while not over.is_set():
                place = places[count % len(places)]
                memory.store.put(place, "key", {"v": count})
                item = memory.store.get(place, "key")
                assert item is not None
                assert item.value == {"v": count}
                count += 1
            return count

        async def lose_a_node() -> float:
            """Returns the seconds until every shard had two copies again."""
            await asyncio.sleep(0.5)
            leader = next(a for a in (await memory.status()).actors if a.node != "node-0").node
            begun = time.monotonic()
            await asyncio.to_thread(node_of(memory, leader).lose)
            await until_node(memory, leader, "lost")
            took = time.monotonic() - begun
            await asyncio.sleep(0.5)
            over.set()
            return took

        async with asyncio.TaskGroup() as tasks:
            losing = tasks.create_task(lose_a_node())
            blocking = tasks.create_task(asyncio.to_thread(write_and_read))
            graphs = [tasks.create_task(run_graphs(number)) for number in range(GRAPHS)]
        assert blocking.result() > len(places)
        assert max(slowest) < losing.result() + 3  # as soon as there is a copy, it goes on
        assert {"node_lost", "replica_begun", "replica_ready"} <= set(await kinds(memory))
        for number, runs in enumerate(graphs):
            for run in range(runs.result()):
                config = {"configurable": {"thread_id": f"thread-{number}-{run}"}}
                state = (await graph.aget_state(config)).values
                assert len(state["said"]) == STEPS + 1


async def test_the_lack_of_another_node_is_an_error_at_once() -> None:
    async with MemoryCluster(**settings(n_nodes=2)) as memory:
        (first, *_) = everywhere(memory, await memory.status())
        await memory.store.aput(first, "key", {"v": 1})
        await asyncio.to_thread(node_of(memory, "node-1").lose)
        writing = asyncio.create_task(memory.store.aput(first, "key", {"v": 1}))
        reading = asyncio.create_task(memory.store.aget(first, "key"))  # in the same batch
        await until_node(memory, "node-1", "lost")
        item = await reading
        assert item is not None
        assert item.value == {"v": 1}
        with pytest.raises((OutcomeUnknownError, ReplicaUnavailableError)):
            await writing
        begun = time.monotonic()
        for write in (memory.store.aput, lambda *a: asyncio.to_thread(memory.store.put, *a)):
            with pytest.raises(ReplicaUnavailableError, match="no other node"):
                await write(first, "key", {"v": 2})
        assert time.monotonic() - begun < 2
