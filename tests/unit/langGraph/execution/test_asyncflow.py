"""Executions with AsyncFlow, faked and real, and with Flowgentic's decorator."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.prebuilt import ToolNode
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from flowgentic_actors.langGraph import backends
from flowgentic_actors.langGraph.execution import AsyncFlowType, Execution
from flowgentic_actors.langGraph.retries import RetryConfig
from tests.support.execution import (
    ONCE,
    FakeEngine,
    State,
    add,
    add_async,
    call_of,
    cancelled_soon,
    count_messages,
    count_messages_async,
    fail,
    graph_of,
    tasks_left,
)

pytestmark = pytest.mark.anyio

NO_ASYNCFLOW = importlib.util.find_spec("radical") is None
NEEDS_ASYNCFLOW = pytest.mark.skipif(NO_ASYNCFLOW, reason="radical.asyncflow is not installed")


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
