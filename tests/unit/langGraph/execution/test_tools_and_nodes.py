"""Functions, tools and nodes on every backend: here, on threads, in processes, with AsyncFlow."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, StreamWriter, interrupt

from flowgentic_actors.langGraph.execution import Execution
from flowgentic_actors.langGraph.retries import RetryConfig
from tests.support.execution import (
    ONCE,
    QUICK,
    FakeEngine,
    State,
    add,
    add_async,
    call_of,
    count_messages,
    count_messages_async,
    fail,
    graph_of,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- functions


def stop(a: int) -> int:
    """Ask an empty iterator."""
    return next(iter([]))


decorator = Execution()
calls_here = 0


@decorator.node
def counted(state: Any) -> int:
    """Count in a global of this module."""
    global calls_here  # noqa: PLW0603 - this is what is tested
    calls_here += 1
    return calls_here


@decorator.tool
def counted_tool(a: int) -> int:
    """Count in a global of this module."""
    global calls_here  # noqa: PLW0603 - this is what is tested
    calls_here += 1
    return calls_here


# ---------------------------------------------------------------------- tools and nodes


async def test_a_tool_runs_on_every_backend(execution: Execution) -> None:
    for function in (add, add_async):
        tool = execution.tool(function, retry=ONCE)

        assert isinstance(tool, BaseTool)
        assert tool.name == function.__name__
        assert tool.description == "Add two numbers."
        assert await tool.ainvoke({"a": 1, "b": 2}) == 3
        assert await tool.ainvoke({"a": 1}) == 2


async def test_a_tools_schema_comes_from_signature_and_docstring() -> None:
    schema: Any = Execution().tool(add).args_schema

    assert schema.model_json_schema()["properties"] == {
        "a": {"description": "The first.", "title": "A", "type": "integer"},
        "b": {"default": 1, "description": "The second.", "title": "B", "type": "integer"},
    }
    assert schema.model_json_schema()["required"] == ["a"]


async def test_a_tool_is_a_decorator_with_and_without_arguments() -> None:
    async with Execution() as execution:

        @execution.tool
        async def bare(a: int) -> int:
            """Bare."""
            return a

        @execution.tool(name="other", description="Told.", retry=ONCE)
        def named(a: int) -> int:
            return a

        assert (bare.name, bare.description) == ("bare", "Bare.")
        assert (named.name, named.description) == ("other", "Told.")
        assert await bare.ainvoke({"a": 1}) == await named.ainvoke({"a": 1}) == 1


async def test_tools_in_a_tool_node_of_a_graph(execution: Execution) -> None:
    tools = ToolNode([execution.tool(add, retry=ONCE), execution.tool(add_async, retry=ONCE)])
    graph = graph_of(tools)

    for name in ("add", "add_async"):
        result = await graph.ainvoke({"messages": [call_of(name, a=2, b=3)], "total": 0})
        assert result["messages"][-1].content == "5"


@pytest.mark.parametrize("kind", ["here", "threads", "processes"])
async def test_tools_in_a_graph_that_is_not_awaited(
    request: pytest.FixtureRequest, kind: str
) -> None:
    backend = None if kind == "here" else request.getfixturevalue(kind)
    async with Execution(backend) as execution:
        graph = graph_of(ToolNode([execution.tool(add_async), execution.tool(add)]))
        for name in ("add", "add_async"):
            state = {"messages": [call_of(name, a=2, b=3)], "total": 0}
            for result in (await asyncio.to_thread(graph.invoke, state), graph.invoke(state)):
                assert result["messages"][-1].content == "5"


async def test_a_tool_that_is_not_awaited_in_a_loop_says_what_to_do() -> None:
    async with Execution() as execution:
        with pytest.raises(RuntimeError, match="await ainvoke"):
            execution.tool(add).invoke({"a": 1})


async def test_a_node_runs_on_every_backend(execution: Execution) -> None:
    functions: list[Callable[[State], Any]] = [count_messages, count_messages_async]
    for function in functions:
        node = execution.node(function, retry=ONCE)
        graph = graph_of(node, execution.node(retry=ONCE)(function))

        assert asyncio.iscoroutinefunction(node)
        assert inspect.signature(node) == inspect.signature(function)
        result = await graph.ainvoke({"messages": [("user", "hello")], "total": 0})
        assert result["total"] == (2 if function is count_messages else 20)


@pytest.mark.parametrize("kind", ["here", "threads"])
async def test_a_node_in_this_process_gets_what_langgraph_injects(
    request: pytest.FixtureRequest, kind: str
) -> None:
    seen: list[Any] = []

    def sync_node(
        state: State,
        config: RunnableConfig,
        *,
        store: BaseStore,
        runtime: Runtime[None],
        writer: StreamWriter,
    ) -> dict[str, Any]:
        thread: Any = config["configurable"]["thread_id"]
        seen.append((thread, store is runtime.store))
        writer("from the argument")
        return {"total": 1}

    async def async_node(state: State, *, store: BaseStore) -> dict[str, Any]:
        await store.aput(("a",), "key", {"value": 1})
        get_stream_writer()("from the context")
        return {"total": interrupt("how many?")}

    backend = None if kind == "here" else request.getfixturevalue(kind)
    async with Execution(backend) as execution:
        graph = graph_of(
            execution.node(sync_node),
            execution.node(async_node),
            store=InMemoryStore(),
            checkpointer=InMemorySaver(),
        )
        config = {"configurable": {"thread_id": "123"}}
        start = {"messages": [], "total": 0}
        streamed = [part async for part in graph.astream(start, config, stream_mode="custom")]
        stopped = await graph.aget_state(config)
        result = await graph.ainvoke(Command(resume=5), config)

    assert seen == [("123", True)]
    assert streamed == ["from the argument", "from the context"]
    assert stopped.interrupts[0].value == "how many?"
    assert result["total"] == 6


async def test_a_tool_in_this_process_gets_what_langgraph_injects(threads: Executor) -> None:
    def look(
        a: int,
        state: Annotated[Any, InjectedState],
        store: Annotated[BaseStore, InjectedStore()],
        runtime: ToolRuntime,
        config: RunnableConfig,
    ) -> str:
        """Look around."""
        thread: Any = config["configurable"]["thread_id"]
        return f"{a} {state['total']} {store is runtime.store} {thread}"

    async with Execution(threads) as execution:
        graph = graph_of(ToolNode([execution.tool(look)]), store=InMemoryStore())
        result = await graph.ainvoke(
            {"messages": [call_of("look", a=1)], "total": 7}, {"configurable": {"thread_id": "t"}}
        )
    assert result["messages"][-1].content == "1 7 True t"


def look_at_state(
    a: int, state: Annotated[Any, InjectedState], call: Annotated[str, InjectedToolCallId]
) -> Command[Any]:
    """Look at what can be pickled."""
    return Command(update={"messages": [ToolMessage(f"{a} {state['total']}", tool_call_id=call)]})


async def test_a_tool_elsewhere_gets_the_state(processes: Executor) -> None:
    async with Execution(processes) as execution:
        graph = graph_of(ToolNode([execution.tool(look_at_state)]))
        result = await graph.ainvoke({"messages": [call_of("look_at_state", a=1)], "total": 7})
    assert result["messages"][-1].content == "1 7"


def with_store(state: State, *, store: BaseStore) -> dict[str, Any]:
    return {}


def with_config(state: State, config: RunnableConfig) -> dict[str, Any]:
    return {}


def with_runtime(state: State, runtime: Runtime[None]) -> dict[str, Any]:
    return {}


def with_writer(state: State, writer: StreamWriter) -> dict[str, Any]:
    return {}


def tool_with_store(a: int, kept: Annotated[BaseStore | None, InjectedStore()]) -> int:
    """Injected."""
    return a


def tool_with_config(a: int, c: RunnableConfig | None = None) -> int:
    """Injected."""
    return a


def tool_with_runtime(a: int, r: ToolRuntime[None, State]) -> int:
    """Injected."""
    return a


def tool_with_a_shop(store: str, writer: str) -> str:
    """Names that a node would get something injected for."""
    return store + writer


async def test_what_cannot_leave_this_process_is_refused_when_decorated(
    processes: Executor,
) -> None:
    for backend in (processes, FakeEngine()):
        execution = Execution(backend)
        for node in (with_store, with_config, with_runtime, with_writer):
            with pytest.raises(TypeError, match=rf"{node.__name__} takes '.*use Execution\(\)"):
                execution.node(node)
        for tool in (tool_with_store, tool_with_config, tool_with_runtime):
            with pytest.raises(TypeError, match=rf"{tool.__name__} takes"):
                execution.tool(tool)
            with pytest.raises(TypeError, match=rf"{tool.__name__} takes"):
                execution.task(tool)
        async with execution:
            tool_of_strings = execution.tool(tool_with_a_shop)
            assert await tool_of_strings.ainvoke({"store": "a", "writer": "b"}) == "ab"
            task = execution.task(tool_with_a_shop)
            assert await task("a", writer="b") == "ab"


async def test_only_functions_are_decorated() -> None:
    def generator(state: State) -> Any:
        yield {}

    async def async_generator(state: State) -> Any:
        yield {}

    execution = Execution()
    things: list[Any] = [partial(add, 1), object(), generator, async_generator, len]
    for thing in things:
        for decorate in (execution.tool, execution.node, execution.task):
            with pytest.raises(TypeError):
                decorate(thing)
    with pytest.raises(ValueError, match="docstring"):
        execution.tool(lambda a: a)


async def test_types_of_tools_and_nodes_fit_langgraph() -> None:
    builder = StateGraph(State)
    execution = Execution()

    @execution.node
    async def first(state: State, *, store: BaseStore) -> dict[str, int]:
        return {"total": 1}

    @execution.node(retry=ONCE)
    def second(state: State, config: RunnableConfig) -> Command[Any]:
        return Command(update={"total": 2})

    builder.add_node(first)
    builder.add_node("second", second)
    builder.add_node("tools", ToolNode([execution.tool(add)]))
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    async with execution:
        graph = builder.compile(store=InMemoryStore())
        assert (await graph.ainvoke({"messages": [], "total": 0}))["total"] == 3


async def test_a_node_that_returns_its_error_is_refused() -> None:
    with pytest.raises(ValueError, match="raise_on_failure"):
        Execution().node(count_messages, retry=RetryConfig(raise_on_failure=False))


async def test_an_error_comes_back_as_it_is(execution: Execution) -> None:
    with pytest.raises(ValueError, match="no 1"):
        await execution.tool(fail, retry=QUICK).ainvoke({"a": 1})
    with pytest.raises(RuntimeError, match="StopIteration"):
        await execution.tool(stop, retry=QUICK).ainvoke({"a": 1})


async def test_functions_run_where_the_backend_says(threads: Executor, processes: Executor) -> None:
    async def thread_async() -> str:
        return threading.current_thread().name

    def thread() -> str:
        return threading.current_thread().name

    me = threading.current_thread().name
    async with Execution() as here, Execution(threads) as pool, Execution(processes) as elsewhere:
        assert await here.task(thread_async)() == me
        assert await here.task(thread)() != me
        assert (await pool.task(thread_async)()).startswith("pool")
        assert (await pool.task(thread)()).startswith("pool")
        assert await elsewhere.task(add)(1) == 2
        local = await elsewhere.task(lambda: os.getpid())()  # noqa: PLW0108 - has no name
        assert local != os.getpid()


async def test_a_decorated_function_keeps_its_module_in_another_process(
    processes: Executor,
) -> None:
    async with Execution(processes) as execution:
        decorated: list[Any] = [counted, counted_tool.coroutine]
        calls: list[Callable[..., Any]]
        calls = [execution.task(call.__wrapped__) for call in decorated]
        node, task = calls
        first = await node(None)
        assert [await node(None), await task(1), await node(None)] == [
            first + 1,
            first + 2,
            first + 3,
        ]
    assert calls_here == 0


# ---------------------------------------------------------------------- opening and closing


async def test_what_is_decorated_before_it_is_open_runs_when_it_is() -> None:
    execution = Execution()
    tool, node = execution.tool(add), execution.node(count_messages)
    for call in (tool.ainvoke({"a": 1}), node({"messages": [], "total": 0})):
        with pytest.raises(RuntimeError, match="async with Execution"):
            await call
    async with execution:
        assert await tool.ainvoke({"a": 1}) == 2
        with pytest.raises(RuntimeError, match="open already"):
            await execution.__aenter__()
    with pytest.raises(RuntimeError, match="async with Execution"):
        await tool.ainvoke({"a": 1})


async def test_an_executor_is_left_to_its_owner(threads: Executor) -> None:
    async with Execution(threads):
        pass
    assert threads.submit(add, 1).result(5) == 2


async def test_an_unknown_backend_is_refused() -> None:
    for backend in (object(), "threads", ThreadPoolExecutor, SimpleNamespace(shutdown=add)):
        with pytest.raises(TypeError, match=r"backend=.* cannot run functions: give None"):
            Execution(backend)
