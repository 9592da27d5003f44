"""LangGraph's own conformance suite for checkpointers."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate

from flowgentic_actors import MemoryCluster

pytestmark = pytest.mark.anyio

BASE = {"put": 17, "put_writes": 10, "get_tuple": 10, "list": 16, "delete_thread": 5}
"""Checks of each capability that every checkpointer must have, 58 in all."""

EXTENDED = {"delete_for_runs": 7, "copy_thread": 8, "prune": 8}
"""And of those that few have: all 81."""


async def test_every_check_of_every_capability_passes(memory: MemoryCluster) -> None:
    @checkpointer_test(name="flowgentic_actors")  # type: ignore[untyped-decorator]
    async def saver() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        await forget_all_threads(memory)
        yield memory.checkpointer

    report = await validate(saver)

    assert report.passed_all_base()
    assert {name: report.results[name].failures for name in BASE} == {name: [] for name in BASE}
    assert {name: report.results[name].tests_failed for name in BASE} == dict.fromkeys(BASE, 0)
    assert {name: report.results[name].tests_passed for name in BASE} == BASE
    assert all(result.passed for result in report.results.values())
    assert {n: r.tests_passed for n, r in report.results.items() if n not in BASE} == EXTENDED


async def forget_all_threads(memory: MemoryCluster) -> None:
    """The suite begins with an empty memory, and the shared one is not."""
    saver = memory.checkpointer
    threads = {found.config["configurable"]["thread_id"] async for found in saver.alist(None)}
    for thread_id in threads:
        await saver.adelete_thread(thread_id)
    assert [found async for found in saver.alist(None)] == []
