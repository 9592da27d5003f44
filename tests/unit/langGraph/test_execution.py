"""Tools and nodes on every backend: here, on threads, in processes, with AsyncFlow."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import multiprocessing
import operator
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from blockbuster import BlockBuster
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, StreamWriter, interrupt
from pydantic import ValidationError
from typing_extensions import TypedDict

from flowgentic_actors.langGraph import backends
from flowgentic_actors.langGraph.execution import AsyncFlowType, Execution
from flowgentic_actors.langGraph.retries import RetryConfig, retry

pytestmark = pytest.mark.anyio

ONCE = RetryConfig(max_attempts=1)
QUICK = RetryConfig(base_backoff_sec=0.001, timeout_sec=20)

NO_ASYNCFLOW = importlib.util.find_spec("radical") is None
NEEDS_ASYNCFLOW = pytest.mark.skipif(NO_ASYNCFLOW, reason="radical.asyncflow is not installed")


@pytest.fixture(autouse=True)
def never_block_the_loop() -> Iterator[None]:
    """As everywhere, but AsyncFlow makes a folder when its engine is made."""
    guard = BlockBuster("flowgentic_actors")
    for function in guard.functions.values():
        function.can_block_in("flowgentic_actors/langGraph/execution.py", {"_create_engine"})
        function.can_block_in(
            "tests/unit/langGraph/test_execution.py", {"stuck"}
        )  # on a loop of its own
    guard.activate()
    yield
    guard.deactivate()


# ---------------------------------------------------------------------- backends


class FakeFuture(asyncio.Future[Any]):
    """As AsyncFlow's: a cancellation takes effect when the backend has heard of it, if at all."""

    deaf = False

    def cancel(self, msg: Any = None) -> bool:
        if not self.deaf:
            self.get_loop().call_soon(super().cancel)
        return True


class FakeEngine:
    """What is used of AsyncFlow's WorkflowEngine."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict[str, Any], bool]] = []
        self.futures: list[FakeFuture] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.deaf = False

    def function_task(
        self, function: Callable[..., Any], service: bool = False
    ) -> Callable[..., FakeFuture]:
        assert asyncio.iscoroutinefunction(function)

        def start(*args: Any, task_description: Any = None, **kwargs: Any) -> FakeFuture:
            self.started.append((function.__name__, task_description or {}, service))
            future = FakeFuture()
            future.deaf = self.deaf
            self.futures.append(future)
            task = asyncio.get_running_loop().create_task(settle(future, function, args, kwargs))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return future

        return start


async def settle(future: FakeFuture, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    work = asyncio.ensure_future(function(*args, **kwargs))
    future.add_done_callback(lambda _: work.cancel())
    try:
        result = await work
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)


@pytest.fixture(scope="module", autouse=True)  # so it is there before a test looks what is new
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(add, 1).result(60)
        yield pool


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(4, thread_name_prefix="pool") as pool:
        yield pool


@pytest.fixture(params=["here", "threads", "processes", "engine"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "here":
        return None
    if request.param == "engine":
        return FakeEngine()
    return request.getfixturevalue(request.param)


def tasks_left() -> list[asyncio.Task[Any]]:
    """All tasks but this one and that of pytest's plugin."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return [task for task in tasks if "TestRunner" not in repr(task.get_coro())]


@pytest.fixture
async def execution(backend: Any) -> AsyncIterator[Execution]:
    """Open on every backend, and after the test no task is left in the loop."""
    async with Execution(backend) as execution:
        yield execution
    for _ in range(5):  # what was cancelled a moment ago ends
        await asyncio.sleep(0)
    assert not tasks_left()


# ---------------------------------------------------------------------- functions


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def add_async(a: int, b: int = 1) -> int:
    """Add two numbers."""
    await asyncio.sleep(0)
    return a + b


def fail(a: int) -> int:
    """Fail."""
    raise ValueError(f"no {a}")


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


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    total: Annotated[int, operator.add]


def count_messages(state: State) -> dict[str, Any]:
    return {"total": len(state["messages"])}


async def count_messages_async(state: State) -> Command[Any]:
    return Command(update={"total": 10 * len(state["messages"])})


def call_of(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "call-1"}])


def graph_of(*nodes: Any, **compiled: Any) -> Any:
    builder = StateGraph(State)
    previous = START
    for number, node in enumerate(nodes):
        builder.add_node(f"n{number}", node)
        builder.add_edge(previous, f"n{number}")
        previous = f"n{number}"
    return builder.compile(**compiled)


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


# ---------------------------------------------------------------------- retries


class Flaky:
    """Fails a number of times."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_transient_errors_are_retried_and_others_are_not() -> None:
    flaky = Flaky(TimeoutError(), ConnectionResetError())
    assert await retry(flaky, QUICK, "f") == "done"
    assert flaky.calls == 3

    for errors in ([OSError()] * 3, [ValueError()]):
        flaky = Flaky(*errors)
        with pytest.raises(type(errors[0])) as caught:
            await retry(flaky, QUICK, "f")
        assert flaky.calls == len(errors)
        notes = getattr(caught.value, "__notes__", [])
        assert notes == (["f: this was attempt 3"] if len(errors) == 3 else [])


async def test_what_is_retried_can_be_said() -> None:
    config = QUICK.model_copy(update={"retryable_exceptions": (KeyError,)})
    assert await retry(Flaky(KeyError("k")), config, "f") == "done"
    with pytest.raises(OSError):
        await retry(Flaky(OSError()), config, "f")


async def test_errors_of_http_clients_are_transient_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NetworkError(Exception):
        pass

    monkeypatch.delitem(sys.modules, "aiohttp", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", SimpleNamespace(NetworkError=NetworkError))
    assert await retry(Flaky(NetworkError()), QUICK, "f") == "done"
    monkeypatch.delitem(sys.modules, "httpx")
    with pytest.raises(NetworkError):
        await retry(Flaky(NetworkError()), QUICK, "f")


async def test_pauses_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    config = RetryConfig(max_attempts=7)
    await retry(Flaky(*[OSError()] * 6), config, "f")
    for pause, middle in zip(pauses, (0.5, 1, 2, 4, 8, 8), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle

    pauses.clear()
    config = RetryConfig(max_attempts=1000, jitter=0, base_backoff_sec=1)
    await retry(Flaky(*[OSError()] * 999), config, "f")
    assert pauses == [1, 2, 4] + [8] * 996


async def test_an_attempt_that_takes_too_long_is_retried(execution: Execution) -> None:
    async def slow() -> None:
        await asyncio.sleep(20)

    config = RetryConfig(max_attempts=2, timeout_sec=0.1, base_backoff_sec=0)
    began = time.monotonic()
    place = execution._place
    if isinstance(place, backends._Processes):
        return  # it would keep the only process
    with pytest.raises(TimeoutError, match=r"slow took longer than timeout_sec=0\.1 s") as caught:
        await execution.task(slow, retry=config)()
    assert time.monotonic() - began < 5
    assert caught.value.__notes__ == ["slow: this was attempt 2"]


async def test_the_error_of_a_tool_can_be_read_by_the_model(execution: Execution) -> None:
    config = RetryConfig(raise_on_failure=False, base_backoff_sec=0)
    tool = execution.tool(fail, retry=config)
    error = {
        "tool": "fail",
        "status": "error",
        "attempts": 1,
        "retryable": False,
        "error_type": "ValueError",
        "error": "no 1",
    }
    assert await tool.ainvoke({"a": 1}) == error
    result = await graph_of(ToolNode([tool])).ainvoke(
        {"messages": [call_of("fail", a=1)], "total": 0}
    )
    assert '"error": "no 1"' in result["messages"][-1].content

    flaky = Flaky(*[OSError("gone")] * 3)
    answer: Any = await retry(flaky, config, "f")
    assert (answer["attempts"], answer["retryable"], answer["error"]) == (3, True, "gone")


async def test_what_steers_a_graph_is_no_failure() -> None:
    config = RetryConfig(
        raise_on_failure=False, retryable_exceptions=(Exception,), base_backoff_sec=0
    )
    flaky = Flaky(GraphInterrupt())
    with pytest.raises(GraphInterrupt):
        await retry(flaky, config, "f")
    assert flaky.calls == 1


def test_impossible_settings_are_refused() -> None:
    settings: list[tuple[str, Any]] = [
        ("max_attempts", 0),
        ("jitter", 1.5),
        ("timeout_sec", 0),
        ("base_backoff_sec", -1),
        ("retryable_exceptions", (asyncio.CancelledError,)),
        ("attempts", 3),
    ]
    for name, value in settings:
        with pytest.raises(ValidationError, match=name):
            RetryConfig(**{name: value})


# ---------------------------------------------------------------------- cancellation


async def cancelled_soon(call: Any) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.1)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 5


async def test_a_cancelled_run_leaves_nothing_behind(execution: Execution) -> None:
    ended: list[str] = []

    async def slow(state: State) -> dict[str, Any]:
        """Take long."""
        try:
            await asyncio.sleep(20)
        finally:
            ended.append("node")
        return {}

    if isinstance(execution._place, backends._Processes):
        return  # it would keep the only process
    graph = graph_of(execution.node(slow))
    await cancelled_soon(graph.ainvoke({"messages": [], "total": 0}))
    for _ in range(100):
        if ended:
            break
        await asyncio.sleep(0.01)  # the pool's thread ends on its own
    assert ended == ["node"]


async def test_a_cancellation_is_not_retried_and_ends_a_pause() -> None:
    config = RetryConfig(base_backoff_sec=20, raise_on_failure=False, timeout_sec=None)
    flaky = Flaky(OSError())
    await cancelled_soon(retry(flaky, config, "f"))
    assert flaky.calls == 1

    calls = 0

    async def hang() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(20)

    await cancelled_soon(retry(hang, config, "f"))
    assert calls == 1


async def test_what_waits_for_a_thread_is_not_begun_once_it_is_cancelled() -> None:
    begun: list[int] = []

    async def note(a: int) -> None:
        begun.append(a)

    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(release.wait, 10)
        async with Execution(pool) as execution:
            await cancelled_soon(execution.task(note)(1))
        release.set()
    assert begun == []


# ---------------------------------------------------------------------- AsyncFlow, faked


async def test_tasks_reach_the_engine_with_their_resources() -> None:
    def simulate(a: int, task_description: dict[str, Any] = {"gpus": 1}) -> int:  # noqa: B006
        return a

    engine = FakeEngine()
    async with Execution(engine) as execution:
        task = execution.task(simulate)
        assert await task(1) == 1
        assert await task(2, task_description={"ranks": 2}) == 2
    assert engine.started == [
        ("simulate", {"gpus": 1}, False),
        ("simulate", {"gpus": 1, "ranks": 2}, False),
    ]


async def test_arguments_that_asyncflow_would_take_are_refused() -> None:
    def hand_over(task_description: str) -> str:
        """Hand over."""
        return task_description

    def tagged(workflow_id: str) -> str:
        """Tag."""
        return workflow_id

    for function in (hand_over, tagged):
        with pytest.raises(TypeError, match="rename that argument"):
            Execution(FakeEngine()).tool(function)
        Execution().tool(function)


async def test_what_asyncflow_cancels_is_an_error_and_no_cancellation() -> None:
    async def slow() -> None:
        await asyncio.sleep(20)

    engine = FakeEngine()
    async with Execution(engine) as execution:
        call = asyncio.ensure_future(execution.task(slow)())
        await asyncio.sleep(0.05)
        engine.futures[0].cancel()
        with pytest.raises(RuntimeError, match="AsyncFlow cancelled slow"):
            await call


async def test_an_engine_that_does_not_cancel_does_not_keep_the_caller() -> None:
    engine = FakeEngine()
    engine.deaf = True
    async with Execution(engine) as execution:

        @execution.task(retry=RetryConfig(max_attempts=1, timeout_sec=0.1))
        async def slow() -> None:
            await asyncio.sleep(1)

        with pytest.raises(TimeoutError, match="slow took longer"):
            await slow()
        await cancelled_soon(slow())
    for task in engine.tasks:
        task.cancel()


async def test_tools_on_an_engine_can_be_called_from_other_threads() -> None:
    async with Execution(FakeEngine()) as execution:
        graph = graph_of(ToolNode([execution.tool(add)]))
        state = {"messages": [call_of("add", a=2, b=3)], "total": 0}
        result = await asyncio.to_thread(graph.invoke, state)
        assert result["messages"][-1].content == "5"


async def test_a_blocked_loop_is_told_instead_of_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_LOOP_ANSWERS", 0.2)
    async with Execution(FakeEngine()) as execution:
        tool = execution.tool(add)
        errors: list[Exception] = []

        def call() -> None:
            try:
                tool.invoke({"a": 1})
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join(10)  # the loop is blocked, as graph.invoke() in a coroutine would
    assert "graph.ainvoke()" in str(errors[0])


# ---------------------------------------------------------------------- Flowgentic's decorator


async def test_every_flow_type_works_on_every_backend(execution: Execution) -> None:
    tool = execution.asyncflow(
        add, flow_type=AsyncFlowType.AGENT_TOOL_AS_FUNCTION, tool_description="Adds."
    )
    task = execution.asyncflow(flow_type=AsyncFlowType.FUNCTION_TASK, retry=ONCE)(add_async)

    @execution.asyncflow(flow_type=AsyncFlowType.EXECUTION_BLOCK)
    async def block(state: State, *, store: BaseStore) -> dict[str, Any]:
        await store.aput(("a",), "key", {"value": await task(1, b=2)})
        return {"total": await tool.ainvoke({"a": 3})}

    store = InMemoryStore()
    result = await graph_of(block, store=store).ainvoke({"messages": [], "total": 0})

    assert tool.description == "Adds."
    assert result["total"] == 4
    assert store.get(("a",), "key").value == {"value": 3}  # type: ignore[union-attr]


async def test_a_service_gives_its_future() -> None:
    engine = FakeEngine()
    async with Execution(engine) as execution:

        @execution.asyncflow(flow_type=AsyncFlowType.SERVICE_TASK)
        async def serve(port: int) -> list[int]:
            return [port]

        future = await serve(port=8080)
        service = await future
        assert service == [8080]
        assert await future is service
        assert engine.started == [("serve", {}, True)]
        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(asyncio.run, serve(1))
    with pytest.raises(RuntimeError, match="async with Execution"):
        await serve(1)


async def test_flow_types_that_cannot_work_are_refused(threads: Executor) -> None:
    flows = AsyncFlowType
    for backend in (None, threads):
        with pytest.raises(TypeError, match="add: a service needs AsyncFlow"):
            Execution(backend).asyncflow(add, flow_type=flows.SERVICE_TASK)
    execution = Execution(FakeEngine())
    with pytest.raises(TypeError, match="retry does not apply"):
        execution.asyncflow(add, flow_type=flows.SERVICE_TASK, retry=ONCE)
    with pytest.raises(TypeError, match="tool_description"):
        execution.asyncflow(add, flow_type=flows.FUNCTION_TASK, tool_description="x")
    with pytest.raises(ValueError, match="'node'"):
        execution.asyncflow(add, flow_type="node")  # type: ignore[call-overload]


# ---------------------------------------------------------------------- AsyncFlow, real


class FakeBackend:
    """As much of a backend as makes it one."""

    def get_task_states_map(self) -> None: ...
    def register_callback(self, function: Any) -> None: ...
    async def submit_tasks(self, tasks: Any) -> None: ...
    async def shutdown(self) -> None: ...


async def test_a_missing_asyncflow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radical.asyncflow", None)
    execution = Execution(FakeBackend())
    with pytest.raises(ImportError, match=r"pip install \"flowgentic-actors\[asyncflow\]\""):
        await execution.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        await execution.task(add)(1)


async def test_a_backend_that_does_not_come_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeBackend):
        def __await__(self) -> Any:
            return asyncio.sleep(20).__await__()

    monkeypatch.setitem(sys.modules, "radical.asyncflow", SimpleNamespace())
    with pytest.raises(TimeoutError, match=r"Stuck did not come up within open_timeout=0\.1 s"):
        await Execution(Stuck(), open_timeout=0.1).__aenter__()


def asyncflow_backend(executor: Executor) -> Any:
    asyncflow = importlib.import_module("radical.asyncflow")
    return asyncflow.LocalExecutionBackend(executor)


@NEEDS_ASYNCFLOW
@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_tools_and_nodes_with_asyncflow(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool: Executor
    if kind == "threads":
        pool = ThreadPoolExecutor(2)
    else:
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    backend = asyncflow_backend(pool)
    async with Execution(backend) as execution:
        graph = graph_of(
            ToolNode([execution.tool(add)]),
            execution.node(count_messages),
            execution.node(count_messages_async),
        )
        result = await graph.ainvoke({"messages": [call_of("add", a=2, b=3)], "total": 0})
        with pytest.raises(ValueError, match="no 1"):
            await execution.task(fail)(1)
        now = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert result["messages"][-1].content == "5"
    assert result["total"] == 22
    assert now == handlers
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(add, 1)


@NEEDS_ASYNCFLOW
async def test_an_engine_of_asyncflow_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncflow = importlib.import_module("radical.asyncflow")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    engine = await asyncflow.WorkflowEngine.create(asyncflow_backend(ThreadPoolExecutor(2)))
    for number, handler in handlers.items():
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, handler)
    async with Execution(engine) as execution:
        assert await execution.task(add)(1) == 2
    async with Execution(engine) as execution:
        start = execution.asyncflow(add_async, flow_type=AsyncFlowType.SERVICE_TASK)
        assert await (await start(2)) == 3
        await engine.shutdown()
        with pytest.raises(RuntimeError, match="engine was shut down"):
            await execution.task(add)(1)


@NEEDS_ASYNCFLOW
async def test_asyncflow_is_left_in_time_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    release = threading.Event()

    async def stuck() -> None:
        release.wait(10)

    async def slow() -> None:
        await asyncio.sleep(1)

    execution = Execution(asyncflow_backend(ThreadPoolExecutor(2)), close_timeout=0.5)
    async with execution:
        await cancelled_soon(execution.task(slow)())
        config = RetryConfig(max_attempts=1, timeout_sec=0.2)
        with pytest.raises(TimeoutError, match="stuck took longer"):
            await execution.task(stuck, retry=config)()
        began = time.monotonic()
        longest = asyncio.ensure_future(longest_pause(1))
    assert time.monotonic() - began < 2
    release.set()
    assert await longest < 0.3
    assert "functions on LocalExecutionBackend still run" in caplog.text
    assert not tasks_left()


async def longest_pause(seconds: float) -> float:
    """How long the loop got to nothing."""
    longest, end = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - now)
    return longest
