"""Operations: one body for the sync and the async form of every call.

A plan is a generator that yields a question and receives its reply, or several that may be asked at
the same time and receives their replies in order. How they are asked, awaiting or blocking, is
decided by who runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

from msgspec import Struct

from flowgentic_actors.adapters.backlog import Turn
from flowgentic_actors.cluster.client.remote import MemoryClient
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
A = TypeVar("A")

MOVING: Final = 30.0
"""Seconds for which what several shards are asked is begun anew, because slots move."""

_ROUND: Final = 1.0  # seconds of one such attempt that count


class ShardRequest(Struct, frozen=True, gc=False):
    """A command for a shard."""

    shard: int
    command: Command


class Independent(list[ShardRequest]):
    """Independent requests: errors are given in place of replies.

    Only errors of ours are given. Any other exception, such as one that a signal's handler raises,
    ends all that is under way.

    For any other sequence of questions the first error is raised in the plan, after the last
    answer; a `PartialFailureError` when they went to several shards and some of those answered.
    """


ShardRequests: TypeAlias = ShardRequest | Sequence[ShardRequest]

Operation: TypeAlias = Generator[ShardRequests, Any, T]
"""Yields questions, receives their replies (of the types that belong to them), returns T."""

WriteOperation: TypeAlias = Generator[ShardRequests | Turn, Any, T]
"""A plan that may also wait for a turn, which it has until its next question."""


async def run(client: MemoryClient, plan: WriteOperation[T]) -> T:
    """Carry out an operation, awaiting."""
    try:
        asks = next(plan)
        while True:
            if not isinstance(asks, ShardRequest):
                if isinstance(asks, Turn):
                    with asks:
                        await asks.wait()
                        asks = plan.send(None)
                else:
                    asks = _go_on(plan, asks, await ask_each(client, asks))
                continue
            try:
                reply = await client.ask(asks.shard, asks.command)
            except Exception as error:  # noqa: BLE001 - raised in the plan
                asks = plan.throw(error)
            else:
                asks = plan.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        plan.close()  # at once: a stored traceback would keep it alive
        raise


def run_sync(client: MemoryClient, plan: WriteOperation[T]) -> T:
    """Carry out an operation, blocking this thread."""
    try:
        asks = next(plan)
        while True:
            if isinstance(asks, Turn):
                with asks:
                    asks.wait_sync()
                    asks = plan.send(None)
            else:
                asks = _go_on(plan, asks, ask_each_sync(client, _several(asks)))
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        plan.close()
        raise


def _several(asks: ShardRequests) -> Sequence[ShardRequest]:
    return (asks,) if isinstance(asks, ShardRequest) else asks


def _go_on(
    plan: Generator[A, Any, T], asks: ShardRequests, answers: Sequence[Reply | Exception]
) -> A:
    if not isinstance(asks, Independent):
        error = _error_of(_several(asks), answers)
        if error is not None:
            return plan.throw(error)
    return plan.send(answers[0] if isinstance(asks, ShardRequest) else answers)


def _error_of(
    asks: Sequence[ShardRequest], answers: Sequence[Reply | Exception]
) -> Exception | None:
    """The error of requests that belong together, None when all were answered."""
    first: Exception | None = None
    failed: dict[int, Exception] = {}
    for ask, answer in zip(asks, answers, strict=True):
        if isinstance(answer, Exception):
            first = first or answer
            failed[ask.shard] = answer
    if first is None or not isinstance(first, RequestError):
        return first
    shards = len({ask.shard for ask in asks})
    return PartialFailureError(failed, shards) if len(failed) < shards else first


async def ask_each(client: MemoryClient, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
    """Send all requests at once, and await all answers."""
    if len(asks) == 1:
        try:
            return [await client.ask(asks[0].shard, asks[0].command)]
        except FlowgenticError as error:
            return [error]
    return await client.ask_each([(ask.shard, ask.command) for ask in asks])


def ask_each_sync(client: MemoryClient, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
    """Send all requests at once, and wait for all answers."""
    if len(asks) == 1:
        try:
            return [client.ask_sync(asks[0].shard, asks[0].command)]
        except FlowgenticError as error:
            return [error]
    return client.ask_each_sync([(ask.shard, ask.command) for ask in asks])


def each(plans: Sequence[Operation[T]]) -> Operation[list[T | Exception]]:
    """Run operations side by side: their requests of one round are sent at once.

    One that fails has its error in the place of its result; the others go on.
    """
    results: dict[int, T | Exception] = {}
    asks: dict[int, ShardRequests] = {}

    def advance(index: int, answers: Sequence[Reply | Exception] | None) -> None:
        plan, asked = plans[index], asks.pop(index, ())
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
