"""Store and cache against LangGraph's own in-memory ones, under the same calls.

Where the reference is not sane, ours does something else, and these tests look away:

| LangGraph's `InMemoryStore` | ours |
|---|---|
| an update resets `created_at` | keeps it |
| what is returned is what is stored: who changes it changes the item | values are copies |
| what is found is in the order of insertion | by score, then namespace, then key |
| an ordering operator on a missing field or a word raises | does not match |
| an ordering operator compares texts as numbers: "10" is above "9" | as texts |
| `True` equals 1 | they differ, as in JSON |
| asking for an item makes its namespace, and deleting one leaves it | no items, no namespace |
| pages begin anew behind the last item that has a score | pages make up the whole |
| an item keeps old vectors when its new value has fewer texts or none | each put decides anew |
| the same text twice in a batch raises | is embedded once |
| `index=["$"]` of a put is a field of that name | the whole value, as in the configuration |
| a query whose vector is zero scores nan | scores 0 |

`InMemoryCache` is sane. What the references do not have, such as items' lives and versions, is
tested elsewhere; values are such as JSON has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.cache.memory import InMemoryCache
from langgraph.store.base import (
    GetOp,
    IndexConfig,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from flowgentic_actors import AsyncStore, MemoryCluster
from tests.support.drawn_values import NUMBERS, PROFILE, VALUES, made, values
from tests.support.faces import StoreFace, unique

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("mode", ["inline", "several-actors"]),
]

ALL = 1000  # more than any example stores


# ---------------------------------------------------------------------- the store

ROOT = unique()  # of our namespaces in a shared cluster


def batches_of(
    puts: st.SearchStrategy[Any], reads: st.SearchStrategy[Any]
) -> st.SearchStrategy[list[list[Op]]]:
    """One batch that fills the store, and some of anything."""
    mixed = st.lists(puts | reads, min_size=2, max_size=8)
    drawn = st.tuples(st.lists(puts, min_size=5, max_size=20), st.lists(mixed, max_size=8))
    return drawn.map(lambda given: [given[0], *given[1]])


namespaces = st.lists(st.sampled_from(("a", "ab", "b")), max_size=2).map(lambda path: (ROOT, *path))
keys = st.sampled_from(("", "k", "kk", "l"))
values_and_deletes = st.sampled_from([*VALUES, *[None] * 10])

ORDERED = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
CONDITIONS: dict[str, tuple[Any, ...]] = {
    "n": (
        *NUMBERS,
        *({operator: n} for operator, n in product(ORDERED, NUMBERS)),
        {"$gte": 0, "$lt": 1.5},
        {"$gt": -1, "$ne": 1},
    ),
    "text": ("a", "", None, {"$eq": "a"}, {"$ne": "a"}, {"$ne": None}),
    "flag": (True, None, {"$eq": False}, {"$ne": True}),
    "tags": (
        [],
        ["#a"],
        ["#a", {"$ne": "#abc"}],
        [{"$eq": "#"}, "#abc"],
        {"$eq": ["#a", "#bb"]},
        {"$ne": ["#a"]},
    ),
    "deep": (
        {},
        {"a": 1},
        {"a": {"$gt": 1}, "b": {"$ne": "a"}},
        {"b": None},
        {"$eq": {"a": 1}},
        {"$ne": {"a": 2, "b": "a"}},
    ),
}
one_filter = st.sampled_from([{field: c} for field, some in CONDITIONS.items() for c in some])
filters = one_filter | st.tuples(one_filter, one_filter).map(lambda two: two[0] | two[1])
windows = {"limit": st.sampled_from((0, 1, 2, 3, 8)), "offset": st.integers(0, 3)}

patterns = st.lists(st.sampled_from(("a", "ab", "b", "*")), max_size=2)
conditions = made(MatchCondition, st.just("suffix"), patterns.map(tuple)) | made(
    MatchCondition, st.just("prefix"), patterns.map(lambda path: (ROOT, *path))
)
below_root = MatchCondition("prefix", (ROOT,))

puts = made(PutOp, namespaces, keys, values_and_deletes)
reads = (
    made(GetOp, namespaces, keys)
    | made(SearchOp, namespaces, st.none() | filters, **windows)
    | made(
        ListNamespacesOp,
        st.lists(conditions, max_size=2).map(lambda drawn: (below_root, *drawn)),
        st.none() | st.integers(1, 3),
        **windows,
    )
)

QUERIES = st.text("abc", min_size=1, max_size=3)
INDEX: IndexConfig = {
    "dims": 3,
    "embed": lambda texts: [[float(text.count(letter)) for letter in "abc"] for text in texts],
    "fields": ["text", "tags[*]"],
}
PATHS: tuple[Any, ...] = (
    None,
    False,
    [],
    ["text"],
    ["tags[-1]", "deep.b", "nowhere"],
    ["{text,deep}"],
    ["*"],
)
"""What of an item is embedded: by default, nothing, some of it."""

embedded_puts = made(PutOp, namespaces, keys, values_and_deletes, st.sampled_from(PATHS))
similarity_searches = made(
    SearchOp, namespaces, st.none() | filters, query=st.none() | QUERIES, **windows
)


class ReferenceStore:
    """LangGraph's store, asked so that what is not sane in it does not show."""

    def __init__(self, index: IndexConfig | None = None) -> None:
        self._store = InMemoryStore(index=index)

    def batch(self, ops: Sequence[Op]) -> list[Result]:
        listings = {
            n: self._list(op) for n, op in enumerate(ops) if isinstance(op, ListNamespacesOp)
        }
        results = self._store.batch(
            [op._replace(index=False) if isinstance(op, PutOp) else op for op in ops]
        )
        self._embed({(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)})
        return [listings.get(n, result) for n, result in enumerate(results)]

    def _embed(self, last_puts: Mapping[Any, PutOp]) -> None:
        """Put items once more, with vectors: one by one, so that no text is twice in a batch, and
        onto nothing, so that no old vector stays.
        """
        for put in last_puts.values():
            self._store.batch([put._replace(value=None)])
            self._store.batch([put])

    def _list(self, op: ListNamespacesOp) -> Result:
        """List only namespaces that have items."""
        found: Any
        (found,) = self._store.batch([op._replace(max_depth=None, limit=ALL, offset=0)])
        inhabited = {item.namespace for item in self._store.search((), limit=ALL)}
        cut = sorted({ns[: op.max_depth] for ns in found if ns in inhabited})
        return cut[op.offset : op.offset + op.limit]


async def expect_same_results(
    store: StoreFace, reference: ReferenceStore, ops: Sequence[Op]
) -> None:
    """Carry out a batch in both.

    The orders of what a search finds differ: all of it is compared, and the page with all of ours.
    """
    wholes = [op._replace(limit=ALL, offset=0) for op in ops if isinstance(op, SearchOp)]
    ours = await store.batch([*ops, *wholes])
    theirs = reference.batch([*ops, *wholes])

    found: Any = iter(zip(ours[len(ops) :], theirs[len(ops) :], strict=True))
    for op, our, their in zip(ops, ours, theirs, strict=False):
        if isinstance(op, SearchOp):
            whole, expected = next(found)
            assert looked_at(our) == looked_at(whole)[op.offset : op.offset + op.limit]
            expect_same_whole(whole, expected)
        else:
            assert looked_at(our) == looked_at(their)


def expect_same_whole(ours: Any, theirs: Any) -> None:
    assert ours == sorted(ours, key=in_our_order)
    found, expected = ({(i.namespace, i.key): i for i in items} for items in (ours, theirs))
    assert len(found) == len(ours)
    assert {place: item.value for place, item in found.items()} == {
        place: item.value for place, item in expected.items()
    }
    for place, item in found.items():
        assert item.score == pytest.approx(expected[place].score, abs=1e-6)  # ours are 32-bit


def in_our_order(item: SearchItem) -> tuple[bool, float, tuple[str, ...], str]:
    return item.score is None, -(item.score or 0.0), item.namespace, item.key


def looked_at(result: Any) -> Any:
    """Items without their times."""
    if isinstance(result, list):
        return [looked_at(part) for part in result]
    if isinstance(result, Item):
        return result.namespace, result.key, result.value, getattr(result, "score", None)
    return result


async def delete_all(store: StoreFace) -> None:
    left = await store.search((ROOT,), limit=ALL)
    await store.batch([PutOp(item.namespace, item.key, None) for item in left])


@PROFILE
@given(batches=batches_of(puts, reads), blocking=st.booleans())
async def test_a_store_answers_like_the_reference(
    memory: MemoryCluster, batches: list[list[Op]], blocking: bool
) -> None:
    store, reference = StoreFace(memory.store, blocking=blocking), ReferenceStore()
    await delete_all(store)
    for ops in batches:
        await expect_same_results(store, reference, ops)
    await expect_same_results(
        store, reference, [SearchOp((ROOT,)), ListNamespacesOp((below_root,), None, ALL)]
    )


@PROFILE
@given(
    batches=batches_of(embedded_puts, similarity_searches),
    query=QUERIES,
    blocking=st.booleans(),
)
async def test_similarity_searches_find_what_the_reference_finds(
    memory: MemoryCluster, batches: list[list[Op]], query: str, blocking: bool
) -> None:
    store = StoreFace(AsyncStore(memory.store._client, index=INDEX), blocking=blocking)
    reference = ReferenceStore(INDEX)
    await delete_all(store)
    for ops in batches:
        await expect_same_results(store, reference, ops)
    await expect_same_results(store, reference, [SearchOp((ROOT,), query=query)])


# ---------------------------------------------------------------------- the cache

CACHE_NAMESPACES = ((ROOT,), (ROOT, "a"), (ROOT, "a", "b"))
CACHE_KEYS = tuple(product(CACHE_NAMESPACES, ("", "k", "l")))

calls = st.one_of(
    st.tuples(
        st.just("set"),
        st.dictionaries(
            st.sampled_from(CACHE_KEYS),
            st.tuples(st.none() | values, st.sampled_from((None, 0, 1000))),
        ),
    ),
    st.tuples(st.just("get"), st.lists(st.sampled_from(CACHE_KEYS))),
    st.tuples(st.just("clear"), st.none() | st.lists(st.sampled_from(CACHE_NAMESPACES))),
)


@PROFILE
@given(calls=st.lists(calls, min_size=10, max_size=30), blocking=st.booleans())
async def test_a_cache_answers_like_the_reference(
    memory: MemoryCluster, calls: list[tuple[str, Any]], blocking: bool
) -> None:
    ours, reference = memory.cache, InMemoryCache[Any]()
    for operation, given_to_it in [("clear", CACHE_NAMESPACES), *calls, ("get", CACHE_KEYS)]:
        expected = getattr(reference, operation)(given_to_it)
        if blocking:
            assert getattr(ours, operation)(given_to_it) == expected
        else:
            assert await getattr(ours, "a" + operation)(given_to_it) == expected
