"""The store: single operations, a search below a prefix, and many at once."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from langgraph.store.base import PutOp

from flowgentic_actors.bench.subjects import Subject, text
from flowgentic_actors.bench.workloads import (
    AT_ONCE,
    Operations,
    RawOperation,
    Workload,
    all_of,
    expect,
    names,
)

NOTE: Final = {"kind": "note", "text": text(200), "score": 0.75, "tags": ["a", "b"]}
"""What is stored."""

FOUND: Final = 10
"""Items that a search asks for."""

_PAIRS: Final = 8  # puts, each with its get, that one task does in one sample
_NOTE_BYTES: Final = 256
_SEARCHED: Final = 100  # items below the prefix


class Place(NamedTuple):
    """The place where a turn stores items.

    Attributes:
        namespace: A new one.
        prefix: What a search for it asks for.
        keys: New keys; those that were drawn are deleted at the end.
        drawn: Those that were drawn.
    """

    namespace: tuple[str, ...]
    prefix: tuple[str, ...]
    keys: Iterator[str]
    drawn: list[str]


def namespace_of(memory: Subject, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A namespace as an application has it, and the prefix that searches below it ask for."""
    return ((name,), (name,)) if memory.flat else (("users", name, "notes"), ("users", name))


@asynccontextmanager
async def _place(memory: Subject) -> AsyncIterator[Place]:
    namespace, prefix = namespace_of(memory, f"user{uuid.uuid4().hex}")
    drawn: list[str] = []

    def keys() -> Iterator[str]:
        for key in names():
            drawn.append(key)
            yield key

    try:
        yield Place(namespace, prefix, keys(), drawn)
    finally:
        await memory.store.abatch([PutOp(namespace, key, None) for key in drawn])


async def _expect_last(memory: Subject, place: Place) -> None:
    for key in place.drawn[-1:]:
        item = await memory.store.aget(place.namespace, key)
        expect(item and item.value, NOTE, f"the item {key}")


@asynccontextmanager
async def _put(memory: Subject) -> AsyncIterator[Operations]:
    async with _place(memory) as place:
        yield (memory.store.aput(place.namespace, key, NOTE) for key in place.keys)
        await _expect_last(memory, place)


@asynccontextmanager
async def _get(memory: Subject) -> AsyncIterator[Operations]:
    async with _place(memory) as place:
        await memory.store.aput(place.namespace, key := next(place.keys), NOTE)
        yield (memory.store.aget(place.namespace, key) for _ in names())
        await _expect_last(memory, place)


@asynccontextmanager
async def _search(memory: Subject) -> AsyncIterator[Operations]:
    async with _place(memory) as place:
        keys = [next(place.keys) for _ in range(_SEARCHED)]
        await memory.store.abatch([PutOp(place.namespace, key, NOTE) for key in keys])
        yield (memory.store.asearch(place.prefix, limit=FOUND) for _ in names())
        found = await memory.store.asearch(place.prefix, limit=_SEARCHED + 1)
        expect(sorted(item.key for item in found), sorted(keys), "what is below the prefix")


@asynccontextmanager
async def _at_once(memory: Subject) -> AsyncIterator[Operations]:
    async with _place(memory) as place:

        async def put_and_get(own: list[str]) -> None:
            for key in own:
                await memory.store.aput(place.namespace, key, NOTE)
                await memory.store.aget(place.namespace, key)

        yield (
            all_of([put_and_get([next(place.keys) for _ in range(_PAIRS)]) for _ in range(AT_ONCE)])
            for _ in names()
        )
        await _expect_last(memory, place)


GROUP: Final = "store"

WORKLOADS: Final = (
    Workload("store put", GROUP, _put, 40, raw=RawOperation("put", _NOTE_BYTES)),
    Workload("store get", GROUP, _get, 40, raw=RawOperation("get", _NOTE_BYTES)),
    Workload(f"store search {FOUND} of {_SEARCHED}", GROUP, _search, 20),
    Workload(f"store put + get {AT_ONCE} at once", GROUP, _at_once, 3, AT_ONCE * _PAIRS * 2),
)
"""In the order of the table."""
