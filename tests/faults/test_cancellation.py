"""Work that is cancelled at each of its awaits harms nobody and leaves nothing."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import GetOp, PutOp

from flowgentic_actors import MemoryCluster
from flowgentic_actors.testing.cancellation import (
    Footprint,
    SwallowedCancellationError,
    When,
    cancel_at_every_await,
)
from flowgentic_actors.testing.workload import Bench, ItemWriter, ThreadWriter
from tests.conftest import SETTINGS
from tests.support.faces import config_of, unique

pytestmark = pytest.mark.anyio

modes = pytest.mark.parametrize("mode", ["inline", "subprocess"])
moments = pytest.mark.parametrize("when", ["waiting", "done"])


class State(TypedDict):
    steps: Annotated[list[str], operator.add]


def graph_over(memory: MemoryCluster) -> Any:
    async def remember(state: State) -> State:
        await memory.store.aput(("graph", "notes"), str(len(state["steps"])), {"v": 1})
        return {"steps": ["remember"]}

    async def conclude(state: State) -> State:
        return {"steps": ["conclude"]}

    builder = StateGraph(State)
    builder.add_node("remember", remember)
    builder.add_node("conclude", conclude)
    builder.add_edge(START, "remember")
    builder.add_edge("remember", "conclude")
    builder.add_edge("conclude", END)
    return builder.compile(checkpointer=memory.checkpointer, store=memory.store)


@modes
@moments
async def test_cancelled_calls_lose_nothing(memory: MemoryCluster, when: When) -> None:
    bench = Bench(memory.store, memory.checkpointer, seed=1, bound=30.0, name=unique())
    items, thread = ItemWriter(bench, 0), ThreadWriter(bench, 0)

    async def work(run: int) -> None:
        await items.put("key-1")
        await thread.put()
        await thread.put_writes()
        await thread.read()
        await thread.read(latest=True)
        await items.read("key-1")
        await items.search()
        await items.put("key-2")
        await items.delete("key-1")
        if run % 3 == 0:
            await thread.delete()

    async def check(run: int) -> None:
        await asyncio.wait_for(items.check_all(), 20)
        await asyncio.wait_for(thread.read(), 20)
        await footprint.settled()

    await work(0)
    footprint = await Footprint.take()
    awaits = await cancel_at_every_await(work, check, when)
    assert bench.findings.list == []
    assert awaits >= (9 if memory.is_distributed else 0)


@modes
@moments
async def test_a_cancelled_batch_loses_nothing(memory: MemoryCluster, when: When) -> None:
    label, done = unique(), 0

    async def batch(run: int) -> None:
        nonlocal done
        puts = [PutOp((label, str(n)), "key", {"run": run}) for n in range(20)]
        await memory.store.abatch([*puts, GetOp((label, "0"), "key")])
        done = run

    async def check(run: int) -> None:
        for n in range(20):
            item = await asyncio.wait_for(memory.store.aget((label, str(n)), "key"), 20)
            assert item is not None
            assert done <= item.value["run"] <= run
        await footprint.settled()

    await batch(0)
    footprint = await Footprint.take()
    await cancel_at_every_await(batch, check, when)


@modes
@moments
async def test_a_cancelled_graph_can_be_resumed(memory: MemoryCluster, when: When) -> None:
    graph, label = graph_over(memory), unique()

    async def invoke(run: int) -> None:
        await graph.ainvoke({"steps": ["begin"]}, config_of(f"{label}-{run}"))

    async def check(run: int) -> None:
        config = config_of(f"{label}-{run}")
        begun = (await graph.aget_state(config)).values
        state = await graph.ainvoke(None if begun else {"steps": ["begin"]}, config)
        assert state == {"steps": ["begin", "remember", "conclude"]}
        await footprint.settled()

    await invoke(-1)
    footprint = await Footprint.take()
    assert await cancel_at_every_await(invoke, check, when) >= 3


@modes
@moments
async def test_opening_and_closing_can_be_cancelled(mode: str, when: When) -> None:
    async def live(run: int) -> None:
        async with MemoryCluster(**SETTINGS[mode]) as memory:
            await memory.store.aput(("a",), "key", {"v": 1})

    async def check(run: int) -> None:
        await footprint.settled(20)

    footprint = await Footprint.take()
    awaits = await cancel_at_every_await(live, check, when)
    assert awaits >= (3 if mode == "subprocess" else 0)  # to open, to put, to close
    # folders and processes elsewhere are looked for after every test


async def test_a_swallowed_cancellation_is_found() -> None:
    async def swallow(run: int) -> None:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            return

    async def check(run: int) -> None:
        raise AssertionError("not reached")

    with pytest.raises(SwallowedCancellationError, match="at await 0"):
        await cancel_at_every_await(swallow, check)


async def test_a_lost_result_and_leftovers_are_found() -> None:
    held: list[int] = []

    async def careless(run: int) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        asyncio.get_running_loop().call_soon(queue.put_nowait, run)
        held.append(await queue.get())

    async def check(run: int) -> None:
        assert len(held) == run + 1, "lost"

    with pytest.raises(AssertionError, match="lost"):
        await cancel_at_every_await(careless, check, "done")

    footprint = await Footprint.take()
    left = asyncio.create_task(asyncio.sleep(30))
    with pytest.raises(AssertionError, match="left behind"):
        await footprint.settled(0.05)
    left.cancel()
    await footprint.settled()
