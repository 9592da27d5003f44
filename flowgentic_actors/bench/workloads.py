"""Workloads: operations on a checkpointer, a store and a graph.

A workload's turn is a context that yields awaitables. Drawing one prepares it and is not timed,
awaiting it is. At its end a turn looks whether what it stored is there, and deletes it again, so
that memory does not grow with the rounds. To add a workload, write such a context and name it in
the `WORKLOADS` of its group's module.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver

from flowgentic_actors.bench.subjects import Subject

AT_ONCE = 64
"""Tasks that work side by side in the concurrent workloads, unless their name tells."""

RUN: Final = f"bench{uuid.uuid4().hex[:12]}"
"""What the names of this process' threads begin with."""

Operations: TypeAlias = Iterator[Awaitable[object]]
Turn: TypeAlias = Callable[[Subject], AbstractAsyncContextManager[Operations]]


class WrongAnswerError(Exception):
    """A memory did not give back what was stored: its times are worth nothing."""


class RawOperation(NamedTuple):
    """The operation of a memory of bytes only, in place of a workload.

    Attributes:
        kind: `put` or `get`.
        size: Bytes of the value.
    """

    kind: Literal["put", "get"]
    size: int


class Workload(NamedTuple):
    """One workload to measure.

    Attributes:
        name: What is done.
        group: The part of the table that it is in.
        turn: Yields the operations, as many as are drawn.
        samples: Operations timed in one turn, chosen to take milliseconds.
        per_sample: What one operation counts for in a rate; 1 when its time is the figure.
        raw: What is comparable to it for a memory of bytes; None when nothing is.
        heavy: Whether a quick run leaves it out.
    """

    name: str
    group: str
    turn: Turn
    samples: int
    per_sample: int = 1
    raw: RawOperation | None = None
    heavy: bool = False

    @property
    def unit(self) -> Literal["s", "1/s"]:
        """The unit of its figures: `s`, where less is better, or `1/s`, where more is better."""
        return "s" if self.per_sample == 1 else "1/s"


def names() -> Iterator[str]:
    """New names, for keys, threads and tasks."""
    while True:
        yield uuid.uuid4().hex


def new_thread() -> RunnableConfig:
    """The config of a new thread."""
    return {"configurable": {"thread_id": f"{RUN}{uuid.uuid4().hex}", "checkpoint_ns": ""}}


async def forget(saver: BaseCheckpointSaver[Any], threads: Sequence[RunnableConfig]) -> None:
    """Delete threads."""
    await all_of([saver.adelete_thread(t["configurable"]["thread_id"]) for t in threads])


async def all_of(awaitables: Sequence[Awaitable[Any]]) -> None:
    """Await coroutines side by side."""
    await asyncio.gather(*awaitables)


def expect(found: object, wanted: object, what: str) -> None:
    """Raise when a memory returned something else than was stored.

    Raises:
        WrongAnswerError: If it did.
    """
    if found != wanted:
        raise WrongAnswerError(f"{what} is {_short(found)} and should be {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
