"""Whole graphs: alone, many at once, and one that fans out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from langchain_core.runnables import RunnableConfig

from flowgentic_actors.bench.subjects import FAN_OUT, Subject, messages
from flowgentic_actors.bench.workloads import (
    AT_ONCE,
    Operations,
    Workload,
    all_of,
    expect,
    forget,
    names,
    new_thread,
)

_INPUT: Final = messages(4, 100)  # 1 KB
_REPLIES: Final = 3


@asynccontextmanager
async def _invoke(memory: Subject) -> AsyncIterator[Operations]:
    threads: list[RunnableConfig] = []
    try:
        yield _invocations(memory, threads)
        await _expect_replies(memory, threads)
    finally:
        await forget(memory.saver, threads)


@asynccontextmanager
async def _invoke_at_once(count: int, memory: Subject) -> AsyncIterator[Operations]:
    threads: list[RunnableConfig] = []
    runs = _invocations(memory, threads)
    try:
        yield (all_of([next(runs) for _ in range(count)]) for _ in names())
        await _expect_replies(memory, threads)
    finally:
        await forget(memory.saver, threads)


def _invocations(memory: Subject, threads: list[RunnableConfig]) -> Operations:
    """Runs of the graph, each on a thread of its own, which is noted in `threads`."""
    while True:
        threads.append(new_thread())
        yield memory.graph.ainvoke({"messages": _INPUT}, threads[-1])


async def _expect_replies(memory: Subject, threads: list[RunnableConfig]) -> None:
    for thread in threads[-1:]:
        found = (await memory.graph.aget_state(thread)).values.get("messages", [])
        expect(len(found), len(_INPUT) + _REPLIES, "the number of a thread's messages")
        expect(found[: len(_INPUT)], _INPUT, "what a thread began with")


@asynccontextmanager
async def _fan_out(memory: Subject) -> AsyncIterator[Operations]:
    threads: list[RunnableConfig] = []

    def runs() -> Operations:
        while True:
            threads.append(new_thread())
            yield memory.fan.ainvoke({"jobs": FAN_OUT, "results": []}, threads[-1])

    try:
        yield runs()
        for thread in threads[-1:]:
            found = (await memory.fan.aget_state(thread)).values.get("results", [])
            expect(sorted(found), list(range(FAN_OUT)), "what the tasks gave back")
    finally:
        await forget(memory.saver, threads)


GROUP: Final = "graphs"

WORKLOADS: Final = (
    Workload("ainvoke 3 nodes", GROUP, _invoke, 10),
    Workload("16 graphs at once", GROUP, partial(_invoke_at_once, 16), 1, 16),
    Workload(f"{AT_ONCE} graphs at once", GROUP, partial(_invoke_at_once, AT_ONCE), 1, AT_ONCE),
    Workload("256 graphs at once", GROUP, partial(_invoke_at_once, 256), 1, 256, heavy=True),
    Workload(f"fan-out Send x {FAN_OUT}", GROUP, _fan_out, 1),
)
"""In the order of the table."""
