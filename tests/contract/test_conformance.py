"""LangGraph's own conformance suite for checkpointers."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from tests.conftest import settings_of

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

    check(await validate(saver))


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_every_check_passes_while_its_actor_is_killed_again_and_again(mode: str) -> None:
    rng = random.Random(5)
    kills = 0
    async with MemoryCluster(**settings_of(mode), restart_intensity=10_000) as memory:

        async def kill_now_and_then() -> None:
            nonlocal kills
            pid = (await memory.status()).actors[0].pid if rng.random() < 0.02 else None
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                kills += 1

        class Interrupted(AsyncCheckpointSaver):
            async def aput(self, *args: Any, **kwargs: Any) -> Any:
                await kill_now_and_then()
                return await super().aput(*args, **kwargs)

            async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
                await kill_now_and_then()
                await super().aput_writes(*args, **kwargs)

            async def aget_tuple(self, *args: Any, **kwargs: Any) -> Any:
                await kill_now_and_then()
                return await super().aget_tuple(*args, **kwargs)

        @checkpointer_test(name="flowgentic_actors")  # type: ignore[untyped-decorator]
        async def saver() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
            await forget_all_threads(memory)
            yield Interrupted(memory.checkpointer._client)

        check(await validate(saver))
        assert kills > 2


def check(report: Any) -> None:
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
