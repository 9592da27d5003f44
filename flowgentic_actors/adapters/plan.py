"""One body for the sync and the async form of every call.

A plan is a generator that yields the questions that may be asked at the same time and receives
their replies in order. How they are asked, awaiting or blocking, is decided by who runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from flowgentic_actors.cluster.client import MemoryClient
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply

T = TypeVar("T")


class Ask(NamedTuple):
    """A command for a shard."""

    shard: int
    command: Command


Plan: TypeAlias = Generator[Sequence[Ask], Sequence[Any], T]
"""Yields questions, receives their replies (of the types that belong to them), returns T."""


async def run(client: MemoryClient, plan: Plan[T]) -> T:
    """Carry out a plan, awaiting."""
    try:
        asks = next(plan)
        while True:
            asks = plan.send(await ask_all(client, asks))
    except StopIteration as end:
        result: T = end.value
        return result


def run_sync(client: MemoryClient, plan: Plan[T]) -> T:
    """Carry out a plan, blocking this thread."""
    try:
        asks = next(plan)
        while True:
            asks = plan.send(ask_all_sync(client, asks))
    except StopIteration as end:
        result: T = end.value
        return result


async def ask_all(client: MemoryClient, asks: Sequence[Ask]) -> list[Reply]:
    """Ask everything at once and await all replies; the first error is raised after the last."""
    if len(asks) == 1:
        return [await client.ask(*asks[0])]
    # Not a task group: it would cancel what has nothing to do with the error, and wrap the error.
    answers = await asyncio.gather(*(client.ask(*ask) for ask in asks), return_exceptions=True)
    replies: list[Reply] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        replies.append(answer)
    return replies


def ask_all_sync(client: MemoryClient, asks: Sequence[Ask]) -> list[Reply]:
    """Ask everything, one after the other, until one is refused."""
    return [client.ask_sync(*ask) for ask in asks]


def together(plans: Sequence[Plan[T]]) -> Plan[list[T]]:
    """Run plans side by side: what they ask in one round is asked at once."""
    results: dict[int, T] = {}
    asks: dict[int, Sequence[Ask]] = {}

    def advance(index: int, replies: Sequence[Any] | None) -> None:
        asks.pop(index, None)
        try:
            plan = plans[index]
            asks[index] = next(plan) if replies is None else plan.send(replies)
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(plans)):
        advance(index, None)
    while asks:
        waiting = dict(asks)
        replies = yield [ask for group in waiting.values() for ask in group]
        start = 0
        for index, group in waiting.items():
            advance(index, replies[start : start + len(group)])
            start += len(group)
    return [results[index] for index in range(len(plans))]
