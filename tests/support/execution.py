"""What tools and nodes run on, and some of them."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command
from typing_extensions import TypedDict

from flowgentic_actors.langGraph.retries import RetryConfig

ONCE = RetryConfig(max_attempts=1)
QUICK = RetryConfig(base_backoff_sec=0.001, timeout_sec=20)


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


def tasks_left() -> list[asyncio.Task[Any]]:
    """All tasks but this one and that of pytest's plugin."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return [task for task in tasks if "TestRunner" not in repr(task.get_coro())]


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


# ---------------------------------------------------------------------- cancellation


async def cancelled_soon(call: Any) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.1)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 5
