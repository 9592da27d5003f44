"""Operations on several shards: one body for the sync and the async form of a call.

An operation is a generator that yields requests, which may be made at the same time, and receives
the replies in order. How they are made, awaiting or blocking, is decided by what runs it. What asks
one shard, once, needs none: it builds a command, asks the client, and finishes with the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

from flowgentic_actors.cluster.client.memory_client import MemoryClient, ShardRequest
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import (
    FlowgenticError,
    PartialFailureError,
    RequestError,
    SlotsMovedError,
)

T = TypeVar("T")

MOVING: Final = 30.0
"""Seconds for which what several shards are asked is begun anew, because slots move."""

_ROUND: Final = 1.0  # seconds of one such attempt that count


class Independent(list[ShardRequest]):
    """Independent requests: errors are given in place of replies.

    Only errors of ours are given. Any other exception, such as one that a signal's handler raises,
    ends all that is under way.

    For any other sequence of questions the first error is raised in the plan, after the last
    answer; a `PartialFailureError` when they went to several shards and some of those answered.
    """


ShardRequests: TypeAlias = ShardRequest | list[ShardRequest]

Operation: TypeAlias = Generator[ShardRequests, Any, T]
"""Yields requests, receives their replies (of the types that belong to them), returns T."""


async def run(client: MemoryClient, plan: Operation[T]) -> T:
    """Carry out an operation, awaiting."""
    try:
        asks = next(plan)
        while True:
            asks = _go_on(plan, asks, await client.ask_each(_several(asks)))
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        plan.close()  # at once: a stored traceback would keep it alive
        raise


def run_sync(client: MemoryClient, plan: Operation[T]) -> T:
    """Carry out an operation, blocking this thread."""
    try:
        asks = next(plan)
        while True:
            asks = _go_on(plan, asks, client.ask_each_sync(_several(asks)))
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        plan.close()
        raise


def routed(client: MemoryClient, commands: Sequence[Command]) -> list[ShardRequest]:
    """Requests that are each about one key, with the keys' shards."""
    return [(client.shard_of(command), command) for command in commands]


def _several(asks: ShardRequests) -> list[ShardRequest]:
    return [asks] if isinstance(asks, tuple) else asks


def _go_on(
    plan: Operation[T], asks: ShardRequests, answers: Sequence[Reply | Exception]
) -> ShardRequests:
    if not isinstance(asks, Independent):
        error = _error_of(_several(asks), answers)
        if error is not None:
            return plan.throw(error)
    return plan.send(answers[0] if isinstance(asks, tuple) else answers)


def _error_of(
    asks: Sequence[ShardRequest], answers: Sequence[Reply | Exception]
) -> Exception | None:
    """The error of requests that belong together, None when all were answered."""
    first: Exception | None = None
    failed: dict[int, Exception] = {}
    for (shard, _), answer in zip(asks, answers, strict=True):
        if isinstance(answer, Exception):
            first = first or answer
            failed[shard] = answer
    if first is None or not isinstance(first, RequestError):
        return first
    shards = len({shard for shard, _ in asks})
    return PartialFailureError(failed, shards) if len(failed) < shards else first


def each(plans: Sequence[Operation[T]]) -> Operation[list[T | Exception]]:
    """Run operations side by side: their requests of one round are sent at once.

    One that fails has its error in the place of its result; the others go on.
    """
    results: dict[int, T | Exception] = {}
    asks: dict[int, ShardRequests] = {}

    def advance(index: int, answers: Sequence[Reply | Exception] | None) -> None:
        plan, asked = plans[index], asks.pop(index, [])
        try:
            asks[index] = next(plan) if answers is None else _go_on(plan, asked, answers)
        except StopIteration as end:
            results[index] = end.value
        except FlowgenticError as error:
            results[index] = error

    for index in range(len(plans)):
        advance(index, None)
    while asks:
        waiting = {index: _several(group) for index, group in asks.items()}
        answers = yield Independent(ask for group in waiting.values() for ask in group)
        start = 0
        for index, group in waiting.items():
            advance(index, answers[start : start + len(group)])
            start += len(group)
    return [results[index] for index in range(len(plans))]


def over_shards(plans: Mapping[int, Operation[T]]) -> Operation[list[T]]:
    """Run one operation for each of several shards, side by side.

    Raises:
        PartialFailureError: If it failed on some of them, with the others' results lost.
        Exception: What it failed with, if it failed on all.
    """
    results = yield from each(list(plans.values()))
    failed = {
        shard: result
        for shard, result in zip(plans, results, strict=True)
        if isinstance(result, Exception)
    }
    if failed:
        first = next(iter(failed.values()))
        if len(failed) < len(plans) and isinstance(first, RequestError):
            raise PartialFailureError(failed, len(plans)) from first
        raise first
    return [result for result in results if not isinstance(result, Exception)]


def retry_on_new_table(
    client: MemoryClient, plan_of: Callable[[SlotTable], Operation[T]]
) -> Operation[T]:
    """Carry out an operation on several shards, and repeat it when slots have moved.

    Args:
        client: Knows the table, and waits for a newer one before it says that slots have moved.
        plan_of: The plan by a table. Its commands carry that one's version.
    """
    left = MOVING
    while True:
        begun = monotonic()
        try:
            return (yield from plan_of(client.table))
        except RequestError as error:
            # A longer attempt did not wait for a table; its caller was blocked, for example.
            left -= min(monotonic() - begun, _ROUND)
            if not _slots_moved(error) or left <= 0:
                raise


def _slots_moved(error: RequestError) -> bool:
    failed = error.failed.values() if isinstance(error, PartialFailureError) else (error,)
    return any(isinstance(each, SlotsMovedError) for each in failed)
