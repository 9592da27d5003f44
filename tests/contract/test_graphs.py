"""LangGraph's own runtime over the memory."""

from __future__ import annotations

import asyncio
import operator
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt

from flowgentic_actors import MemoryCluster
from tests.support.faces import config_of, unique
from tests.support.graphs import Graph, State, chain

pytestmark = pytest.mark.anyio

Durability: TypeAlias = Literal["sync", "async", "exit"]
DURABILITIES: tuple[Durability, ...] = ("sync", "async", "exit")


def _added(lines: list[str] | None, more: list[list[str]]) -> list[str]:
    return [*(lines or []), *(line for each in more for line in each)]


class Fan(TypedDict, total=False):
    """What many branches found, and what it adds up to."""

    squares: Annotated[list[int], operator.add]
    total: int


class Log(TypedDict, total=False):
    """A list that is kept as what was added to it."""

    lines: Annotated[list[str], DeltaChannel(_added, snapshot_frequency=3)]


@pytest.fixture
def config() -> RunnableConfig:
    found: RunnableConfig = {"configurable": {"thread_id": unique()}}
    return found


# ---------------------------------------------------------------------- runs


async def test_a_run_leaves_what_langgraphs_own_saver_would(memory: MemoryCluster) -> None:
    async def history(graph: Graph, durability: Durability) -> list[Any]:
        config = config_of(unique())
        for _ in range(2):
            await graph.ainvoke({"ran": ["in"], "fixed": "x"}, config, durability=durability)
        return [
            (
                s.values,
                s.next,
                s.metadata,
                [(task.name, task.result, task.error) for task in s.tasks],
                s.parent_config is None,
            )
            async for s in graph.aget_state_history(config)
        ]

    for durability in DURABILITIES:
        ours = await history(chain(memory), durability)
        theirs = await history(chain(memory, checkpointer=InMemorySaver()), durability)
        assert ours == theirs
        assert ours[0][0] == {"ran": ["in", "a", "b", "c"] * 2, "fixed": "x"}


async def test_a_stream_left_half_way_goes_on_where_it_was(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    ran: list[str] = []

    async def note(name: str) -> None:
        ran.append(name)

    graph = chain(memory, note)
    stream = graph.astream({"ran": []}, config, stream_mode="updates", durability="sync")
    async with aclosing(stream):  # type: ignore[type-var]  # it is an async generator
        async for update in stream:
            assert update == {"a": {"ran": ["a"]}}
            break

    assert (await graph.aget_state(config)).next in (("a",), ("b",))
    assert await graph.ainvoke(None, config) == {"ran": ["a", "b", "c"]}
    assert sorted(set(ran)) == ["a", "b", "c"]
    assert ran.count("a") == 1


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_run_cancelled_in_the_middle_goes_on_where_it_was(
    memory: MemoryCluster, config: RunnableConfig, durability: Durability
) -> None:
    ran: list[str] = []
    reached, gate = asyncio.Event(), asyncio.Event()

    async def wait_at_b(name: str) -> None:
        ran.append(name)
        if name == "b":
            reached.set()
            await gate.wait()

    graph = chain(memory, wait_at_b)
    run = asyncio.ensure_future(graph.ainvoke({"ran": ["in"]}, config, durability=durability))
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    gate.set()
    assert (await graph.aget_state(config)).next == ("b",)
    assert await graph.ainvoke(None, config) == {"ran": ["in", "a", "b", "c"]}
    assert ran == ["a", "b", "b", "c"]


async def test_a_run_goes_on_after_its_node_failed(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    failures = ["once"]

    async def fail_once(name: str) -> None:
        if name == "b" and failures:
            raise RuntimeError(failures.pop())

    graph = chain(memory, fail_once)
    with pytest.raises(RuntimeError, match="once"):
        await graph.ainvoke({"ran": []}, config)

    (task,) = (await graph.aget_state(config)).tasks
    assert "once" in str(task.error)
    assert await graph.ainvoke(None, config) == {"ran": ["a", "b", "c"]}


async def test_many_runs_at_once_do_not_mix(memory: MemoryCluster) -> None:
    graph, marker = chain(memory), unique()

    async def run(number: int) -> Any:
        return await graph.ainvoke({"ran": [str(number)]}, config_of(f"{marker}-{number}"))

    results = await asyncio.gather(*map(run, range(32)))

    assert results == [{"ran": [str(number), "a", "b", "c"]} for number in range(32)]


async def test_a_sync_run_on_the_loops_own_thread(memory: MemoryCluster) -> None:
    config = config_of(unique())

    def remember(state: State, runtime: Runtime[None]) -> State:
        assert runtime.store is not None
        runtime.store.put((unique(), "x"), "key", {"v": 1})
        return {"ran": ["a"]}

    builder = StateGraph(State)
    builder.add_node("a", remember)
    builder.add_edge(START, "a")
    graph = builder.compile(checkpointer=memory.checkpointer, store=memory.store)

    assert graph.invoke({"ran": []}, config) == {"ran": ["a"]}
    assert [*graph.stream({"ran": []}, config, stream_mode="values")][-1] == {"ran": ["a", "a"]}
    assert graph.get_state(config).values == {"ran": ["a", "a"]}
    assert len([*graph.get_state_history(config)]) == 6
    assert await graph.ainvoke({"ran": []}, config) == {"ran": ["a", "a", "a"]}


# ---------------------------------------------------------------------- people and time


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_interrupt_and_resume(
    memory: MemoryCluster, config: RunnableConfig, durability: Durability
) -> None:
    def ask(state: State) -> State:
        first, second = interrupt("first?"), interrupt("second?")
        return {"ran": [first, second]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=memory.checkpointer)

    asked = await graph.ainvoke({"ran": []}, config, durability=durability)
    assert [i.value for i in asked["__interrupt__"]] == ["first?"]
    assert [i.value for i in (await graph.aget_state(config)).interrupts] == ["first?"]
    asked = await graph.ainvoke(Command(resume="1"), config, durability=durability)
    assert [i.value for i in asked["__interrupt__"]] == ["second?"]
    answered = await graph.ainvoke(Command(resume="2"), config, durability=durability)

    assert answered == {"ran": ["1", "2"]}
    assert (await graph.aget_state(config)).next == ()


async def test_the_history_of_a_thread(memory: MemoryCluster, config: RunnableConfig) -> None:
    graph = chain(memory)
    await graph.ainvoke({"ran": []}, config)

    history = [snapshot async for snapshot in graph.aget_state_history(config)]

    assert [s.values.get("ran", []) for s in history] == [
        ["a", "b", "c"],
        ["a", "b"],
        ["a"],
        [],
        [],
    ]
    assert [s.next for s in history] == [(), ("c",), ("b",), ("a",), (START,)]
    assert [s.parent_config for s in history[:-1]] == [s.config for s in history[1:]]
    older = graph.aget_state_history(config, before=history[1].config, limit=2)
    assert [s.config async for s in older] == [s.config for s in history[2:4]]
    inputs = graph.aget_state_history(config, filter={"source": "input"})
    assert [s.config async for s in inputs] == [history[-1].config]


async def test_update_state(memory: MemoryCluster, config: RunnableConfig) -> None:
    graph = chain(memory)
    await graph.ainvoke({"ran": []}, config)

    await graph.aupdate_state(config, {"ran": ["edited"]}, as_node="a")

    assert (await graph.aget_state(config)).next == ("b",)
    assert await graph.ainvoke(None, config) == {"ran": ["a", "b", "c", "edited", "b", "c"]}


async def test_time_travel_keeps_both_branches(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    graph = chain(memory)
    await graph.ainvoke({"ran": ["in"], "fixed": "before"}, config)
    history = [snapshot async for snapshot in graph.aget_state_history(config)]
    after_a = next(snapshot for snapshot in history if snapshot.next == ("b",))

    fork = await graph.aupdate_state(after_a.config, {"ran": ["forked"], "fixed": "after"})
    forked = await graph.ainvoke(None, fork)
    again = await graph.ainvoke(None, after_a.config)  # and once more from the same point

    assert forked == {"ran": ["in", "a", "forked", "b", "c"], "fixed": "after"}
    assert again == {"ran": ["in", "a", "b", "c"], "fixed": "before"}
    for snapshot in history:  # nothing that was there has changed
        found = await graph.aget_state(snapshot.config)
        assert (found.values, found.next) == (snapshot.values, snapshot.next)
        assert found.parent_config == snapshot.parent_config
    assert (await graph.aget_state(fork)).values["fixed"] == "after"
    assert (await graph.aget_state(config)).values == again  # the latest


# ---------------------------------------------------------------------- shapes of graphs


async def test_send_fans_out_and_a_failed_branch_alone_is_repeated(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    runs: list[int] = []
    broken = {7}

    def fan(state: Fan) -> list[Send]:
        return [Send("square", {"n": n}) for n in range(20)]

    async def square(state: dict[str, int]) -> Fan:
        runs.append(state["n"])
        if state["n"] in broken:
            await asyncio.sleep(0.2)  # the others are done by then
            raise RuntimeError("broken")
        return {"squares": [state["n"] ** 2]}

    def add(state: Fan) -> Fan:
        return {"total": sum(state["squares"])}

    builder = StateGraph(Fan)
    builder.add_node("square", square)
    builder.add_node("add", add)
    builder.add_conditional_edges(START, fan, ["square"])
    builder.add_edge("square", "add")
    graph = builder.compile(checkpointer=memory.checkpointer)

    with pytest.raises(RuntimeError, match="broken"):
        await graph.ainvoke({"squares": []}, config)
    broken.clear()
    done = await graph.ainvoke(None, config)

    assert done == {"squares": [n**2 for n in range(20)], "total": sum(n**2 for n in range(20))}
    assert sorted(runs) == sorted([*range(20), 7])


async def test_branches_wait_for_each_other(memory: MemoryCluster, config: RunnableConfig) -> None:
    builder = StateGraph(State)
    for name in ("left", "middle", "right", "join"):
        builder.add_node(name, lambda state, name=name: {"ran": [name]})
    builder.add_edge(START, "left")
    builder.add_edge(START, "middle")
    builder.add_edge("middle", "right")
    builder.add_edge(["left", "right"], "join")  # a set of those who came, changed in place
    graph = builder.compile(checkpointer=memory.checkpointer, interrupt_after=["left", "right"])

    await graph.ainvoke({"ran": []}, config)
    await graph.ainvoke(None, config)
    done = await graph.ainvoke(None, config)

    assert done == {"ran": ["left", "middle", "right", "join"]}


async def test_a_subgraph_has_a_namespace_of_its_own(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    def ask(state: State) -> State:
        return {"ran": [interrupt("go on?")]}

    inner = StateGraph(State)
    inner.add_node("before", lambda state: {"ran": ["inner"]})
    inner.add_node("ask", ask)
    inner.add_edge(START, "before")
    inner.add_edge("before", "ask")
    builder = StateGraph(State)
    builder.add_node("sub", inner.compile())
    builder.add_node("after", lambda state: {"ran": ["after"]})
    builder.add_edge(START, "sub")
    builder.add_edge("sub", "after")
    graph = builder.compile(checkpointer=memory.checkpointer)

    await graph.ainvoke({"ran": []}, config)
    (task,) = (await graph.aget_state(config, subgraphs=True)).tasks
    assert task.state.values == {"ran": ["inner"]}  # type: ignore[union-attr]
    assert task.state.next == ("ask",)  # type: ignore[union-attr]
    namespaces = {
        found.config["configurable"]["checkpoint_ns"]
        async for found in memory.checkpointer.alist(config)
    }
    assert len(namespaces) == 2
    assert "" in namespaces

    assert await graph.ainvoke(Command(resume="yes"), config) == {"ran": ["inner", "yes", "after"]}


async def test_a_functional_workflow_remembers(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    @entrypoint(checkpointer=memory.checkpointer, store=memory.store)
    async def count(step: int, *, previous: int | None = None) -> int:
        return (previous or 0) + step

    assert [await count.ainvoke(n, config) for n in (1, 2, 3)] == [1, 3, 6]


@pytest.mark.filterwarnings("ignore:.*beta.*")
async def test_delta_channels_are_put_together_again(memory: MemoryCluster) -> None:
    def step(state: Log) -> Log:
        return {"lines": [f"line {len(state.get('lines', []))}"]}

    builder = StateGraph(Log)
    builder.add_node("first", step)
    builder.add_node("second", step)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")

    async def history(checkpointer: BaseCheckpointSaver[str]) -> list[Any]:
        graph, config = builder.compile(checkpointer=checkpointer), config_of(unique())
        for _ in range(4):
            await graph.ainvoke({"lines": ["in"]}, config)
        return [(s.values, s.next) async for s in graph.aget_state_history(config)]

    ours = await history(memory.checkpointer)

    assert ours == await history(InMemorySaver())
    assert len(ours[0][0]["lines"]) == 12


# ---------------------------------------------------------------------- the store inside nodes


async def test_nodes_share_the_store_over_threads(memory: MemoryCluster) -> None:
    user = unique()

    async def remember(state: State, runtime: Runtime[None]) -> State:
        assert runtime.store is not None
        known = await runtime.store.asearch((user, "facts"))
        await runtime.store.aput((user, "facts"), str(len(known)), {"fact": state["fixed"]})
        return {"ran": [item.value["fact"] for item in known]}

    builder = StateGraph(State)
    builder.add_node("remember", remember)
    builder.add_edge(START, "remember")
    builder.add_edge("remember", END)
    graph = builder.compile(checkpointer=memory.checkpointer, store=memory.store)

    for fact in ("one", "two"):
        await graph.ainvoke({"ran": [], "fixed": fact}, config_of(unique()))
    last = await graph.ainvoke({"ran": [], "fixed": "three"}, config_of(unique()))

    assert last["ran"] == ["one", "two"]
