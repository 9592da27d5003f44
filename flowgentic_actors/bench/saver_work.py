"""Single operations of the checkpointer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, empty_checkpoint

from flowgentic_actors.bench.subjects import Message, Subject, messages
from flowgentic_actors.bench.workloads import (
    Operations,
    RawOperation,
    Workload,
    expect,
    forget,
    names,
    new_thread,
)

_SMALL: Final = messages(4, 100)  # 1 KB
_LARGE: Final = messages(48, 2000)  # 100 KB: a long conversation with tool results
_HUGE: Final = messages(48, 20_700)  # 1 MB


def puts(
    saver: BaseCheckpointSaver[Any], thread: RunnableConfig, state: list[Message]
) -> Iterator[Awaitable[RunnableConfig]]:
    """Checkpoints of one thread, each the child of the last and with a new value."""
    version: Any = None
    config = thread
    for step in range(1_000_000):
        version = saver.get_next_version(version, None)
        checkpoint: Checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"messages": state}
        checkpoint["channel_versions"] = {"messages": version}
        checkpoint["versions_seen"] = {"plan": {"messages": version}}
        metadata = {"source": "loop", "step": step, "parents": {}}
        yield saver.aput(config, checkpoint, metadata, {"messages": version})  # type: ignore[arg-type]
        parent = {**thread["configurable"], "checkpoint_id": checkpoint["id"]}
        config = {"configurable": parent}


@asynccontextmanager
async def _put(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = new_thread()
    drawn = 0

    def counted() -> Operations:
        nonlocal drawn
        for put in puts(memory.saver, thread, state):
            drawn += 1
            yield put

    try:
        yield counted()
        await _expect_state(memory.saver, thread, state, drawn - 1)
    finally:
        await forget(memory.saver, [thread])


@asynccontextmanager
async def _put_writes(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = new_thread()
    tasks: list[str] = []
    try:
        at = await next(puts(memory.saver, thread, _SMALL))
        yield _writes(memory.saver, at, state, tasks)
        found = await memory.saver.aget_tuple(thread)
        writes = (found.pending_writes or []) if found else []
        expect(sorted(task for task, _, _ in writes), sorted(tasks), "who wrote")
        expect(writes[-1][2] if writes else None, state, "a pending write")
    finally:
        await forget(memory.saver, [thread])


def _writes(
    saver: BaseCheckpointSaver[Any], at: RunnableConfig, state: list[Message], tasks: list[str]
) -> Operations:
    for task in names():
        tasks.append(task)
        yield saver.aput_writes(at, [("messages", state)], task)


@asynccontextmanager
async def _get(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = new_thread()
    try:
        await next(puts(memory.saver, thread, state))
        yield (memory.saver.aget_tuple(thread) for _ in names())
        await _expect_state(memory.saver, thread, state, 0)
    finally:
        await forget(memory.saver, [thread])


async def _expect_state(
    saver: BaseCheckpointSaver[Any], thread: RunnableConfig, state: list[Message], step: int
) -> None:
    found = await saver.aget_tuple(thread)
    if found is None:
        expect(None, "a checkpoint", "what the thread has")
        return
    expect(found.metadata.get("step"), step, "the step of the latest checkpoint")
    expect(found.checkpoint["channel_values"].get("messages"), state, "its value")


GROUP: Final = "checkpoints"

WORKLOADS: Final = (
    Workload("aput 1 KB", GROUP, partial(_put, _SMALL), 40, raw=RawOperation("put", 1 << 10)),
    Workload("aput 100 KB", GROUP, partial(_put, _LARGE), 20, raw=RawOperation("put", 100_000)),
    Workload("aput 1 MB", GROUP, partial(_put, _HUGE), 5, 1, RawOperation("put", 10**6), True),
    Workload("aput_writes 1 KB", GROUP, partial(_put_writes, _SMALL), 40),
    Workload("aput_writes 100 KB", GROUP, partial(_put_writes, _LARGE), 20),
    Workload("aput_writes 1 MB", GROUP, partial(_put_writes, _HUGE), 5, heavy=True),
    Workload("aget_tuple 1 KB", GROUP, partial(_get, _SMALL), 40, raw=RawOperation("get", 1 << 10)),
    Workload(
        "aget_tuple 100 KB", GROUP, partial(_get, _LARGE), 40, raw=RawOperation("get", 100_000)
    ),
    Workload(
        "aget_tuple 1 MB", GROUP, partial(_get, _HUGE), 5, 1, RawOperation("get", 10**6), True
    ),
)
"""In the order of the table."""
