"""Calls on every backend that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowgentic_actors.langGraph import backends
from flowgentic_actors.langGraph.execution import Execution
from flowgentic_actors.langGraph.retries import RetryConfig, retry
from tests.support.execution import Flaky, State, cancelled_soon, graph_of

pytestmark = pytest.mark.anyio


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
