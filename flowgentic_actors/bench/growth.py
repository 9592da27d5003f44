"""The cost of operations as the stored amount grows.

A contender is opened once for every size, all are filled, and then the sizes take turns: so the
ratio of a large memory to a small one is that of one moment.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from operator import attrgetter
from typing import Any, Final, NamedTuple

from langgraph.store.base import PutOp

from flowgentic_actors.bench.contenders import Contender
from flowgentic_actors.bench.measuring import Show, set_heap_aside
from flowgentic_actors.bench.results import Figure, Report, percentile, summary
from flowgentic_actors.bench.saver_work import puts
from flowgentic_actors.bench.store_work import FOUND, NOTE, namespace_of
from flowgentic_actors.bench.subjects import Subject, messages
from flowgentic_actors.bench.workloads import expect

GROUP: Final = "growth"

_BATCH = 500
_PER_NAMESPACE = 100
_AT_ONCE = 64
_STATE = messages(1, 100)


class Sizes(NamedTuple):
    """The sizes to fill to.

    Attributes:
        items: Numbers of items in the store, growing.
        threads: Numbers of threads with a checkpoint, growing.
        rounds: Rounds of ten operations of each kind.
        seconds: Time that filling one contender may take; larger sizes are left out then.
    """

    items: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int
    seconds: float


FULL: Final = Sizes((1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000), 30, 120.0)
QUICK: Final = Sizes((1_000, 10_000), (1_000, 4_000), 5, 10.0)

Operation = Callable[[Subject, int], Awaitable[object]]
Fill = Callable[[Subject, int, float], Awaitable[None]]


class _Kind(NamedTuple):
    """Items or threads: how to fill a memory with them, and what to measure."""

    name: str
    counts: Callable[[Sizes], tuple[int, ...]]
    fill: Fill
    operations: Mapping[str, Operation]


class _TooSlow(Exception):  # noqa: N818 - not an error: a limit
    """Filling took too long."""


async def grow(
    report: Report, contenders: Mapping[str, Contender], sizes: Sizes, show: Show
) -> None:
    """Fill every contender to every size and measure."""
    for number, (who, contender) in enumerate(contenders.items()):
        for part, kind in enumerate((_ITEMS, _THREADS)):
            show((number + part / 2) / len(contenders), f"growth: {who}")
            try:
                report.figures += await _grow(report, who, contender, kind, sizes)
            except Exception as error:  # noqa: BLE001 - peers' errors have no common root
                report.fail("growth", who, error)
            finally:
                gc.unfreeze()


async def _grow(
    report: Report, who: str, contender: Contender, kind: _Kind, sizes: Sizes
) -> list[Figure]:
    left = sizes.seconds
    filled: dict[int, Subject] = {}
    async with AsyncExitStack() as stack:
        for count in kind.counts(sizes):
            memory = await stack.enter_async_context(contender.open())
            if not isinstance(memory, Subject):
                return []
            began = time.monotonic()
            try:
                await kind.fill(memory, count, began + left)
            except _TooSlow:
                report.notes.append(
                    f"growth of {who}: {count:,} {kind.name} and more were left out, as storing "
                    f"them took longer than {sizes.seconds:g} s"
                )
                break
            left -= time.monotonic() - began
            filled[count] = memory
        set_heap_aside()
        samples = await _measure(filled, kind, sizes.rounds)
    return _figures(who, samples)


async def _measure(
    filled: Mapping[int, Subject], kind: _Kind, rounds: int
) -> dict[tuple[str, int], list[float]]:
    chance = random.Random(0)  # noqa: S311 - the same keys for all contenders
    samples: dict[tuple[str, int], list[float]] = {
        (name, count): [] for name in kind.operations for count in filled
    }
    for number in range(rounds + 1):
        for name, operation in kind.operations.items():
            for count, memory in filled.items():
                for _ in range(10):
                    at = chance.randrange(count)
                    start = time.perf_counter()
                    found = await operation(memory, at)
                    took = time.perf_counter() - start
                    if found is None:
                        expect(found, f"number {at}", f"{name} with {count} stored")
                    if number:  # the first round warms up
                        samples[name, count].append(took)
    return samples


def _figures(who: str, samples: Mapping[tuple[str, int], list[float]]) -> list[Figure]:
    found = []
    first: dict[str, tuple[int, float]] = {}
    for (name, count), times in samples.items():
        smallest, usual = first.setdefault(name, (count, percentile(times, 0.5)))
        median, p99 = summary(times)
        found.append(
            Figure(
                group=GROUP,
                workload=name,
                contender=who,
                unit="s",
                median=median,
                p99=p99,
                ratio=median / usual,
                against=f"{smallest:,}",
                samples=len(times),
                size=count,
            )
        )
    return found


# ---------------------------------------------------------------------- items


def _item(memory: Subject, number: int) -> tuple[tuple[str, ...], str]:
    namespace, _ = namespace_of(memory, f"user{number // _PER_NAMESPACE}")
    return namespace, f"key{number}"


async def _fill_items(memory: Subject, count: int, deadline: float) -> None:
    for start in range(0, count, _BATCH):
        numbers = range(start, min(count, start + _BATCH))
        await memory.store.abatch([PutOp(*_item(memory, number), NOTE) for number in numbers])
        if time.monotonic() > deadline:
            raise _TooSlow


async def _get(memory: Subject, number: int) -> object:
    return await memory.store.aget(*_item(memory, number))


async def _put(memory: Subject, number: int) -> object:
    await memory.store.aput(*_item(memory, number), NOTE)
    return True


async def _search(memory: Subject, number: int) -> object:
    _, prefix = namespace_of(memory, f"user{number // _PER_NAMESPACE}")
    return await memory.store.asearch(prefix, limit=FOUND) or None


_ITEMS = _Kind(
    "items",
    attrgetter("items"),
    _fill_items,
    {"store get": _get, "store put": _put, f"store search {FOUND} of {_PER_NAMESPACE}": _search},
)


# ---------------------------------------------------------------------- threads


def _thread(number: int) -> Any:
    return {"configurable": {"thread_id": f"thread-{number}", "checkpoint_ns": ""}}


async def _fill_threads(memory: Subject, count: int, deadline: float) -> None:
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(count, start + _AT_ONCE))
        await asyncio.gather(*(_aput(memory, number) for number in numbers))
        if time.monotonic() > deadline:
            raise _TooSlow


async def _aget_tuple(memory: Subject, number: int) -> object:
    return await memory.saver.aget_tuple(_thread(number))


async def _aput(memory: Subject, number: int) -> object:
    return await next(puts(memory.saver, _thread(number), _STATE))


_THREADS = _Kind(
    "threads", attrgetter("threads"), _fill_threads, {"aget_tuple": _aget_tuple, "aput": _aput}
)
