"""What tests of executions share."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from blockbuster import BlockBuster

from flowgentic_actors.langGraph.execution import Execution
from tests.support.execution import FakeEngine, add, tasks_left


@pytest.fixture(autouse=True)
def never_block_the_loop() -> Iterator[None]:
    """As everywhere, but AsyncFlow makes a folder when its engine is made."""
    guard = BlockBuster("flowgentic_actors")
    for function in guard.functions.values():
        function.can_block_in("flowgentic_actors/langGraph/execution.py", {"_create_engine"})
        # On a loop of its own.
        function.can_block_in("tests/unit/langGraph/execution/test_asyncflow.py", {"stuck"})
    guard.activate()
    yield
    guard.deactivate()


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


@pytest.fixture
async def execution(backend: Any) -> AsyncIterator[Execution]:
    """Open on every backend, and after the test no task is left in the loop."""
    async with Execution(backend) as execution:
        yield execution
    for _ in range(5):  # what was cancelled a moment ago ends
        await asyncio.sleep(0)
    assert not tasks_left()
