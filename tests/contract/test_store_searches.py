"""What LangGraph asks of a store's searches and namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
)

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.client import inline as inline_client
from flowgentic_actors.engine import item_queries, pace
from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import StoreFace

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- searches


async def test_a_search_is_ordered_by_namespace_and_key(store: StoreFace, root: str) -> None:
    for label, key in (("b", "1"), ("a", "2"), ("a", "1"), ("a", "10")):
        await store.put((root, label), key, {})
    await store.put((root,), "9", {})

    found = await store.search((root,))

    assert all(isinstance(item, SearchItem) and item.score is None for item in found)
    places = [(item.namespace[1:], item.key) for item in found]
    assert places == [((), "9"), (("a",), "1"), (("a",), "10"), (("a",), "2"), (("b",), "1")]


async def test_pages_of_limit_and_offset_make_up_the_whole(store: StoreFace, root: str) -> None:
    keys = [f"{n:02}" for n in range(23)]
    for key in keys:
        await store.put((root, "deep", "deeper"), key, {})
        await store.put((root, "wide", key), key, {})

    for labels in ((root, "deep"), (root, "deep", "deeper"), (root, "wide")):
        assert len(await store.search(labels)) == 10  # LangGraph's default
        pages = [await store.keys(labels, limit=5, offset=start) for start in range(0, 30, 5)]
        assert [key for page in pages for key in page] == keys
        assert [len(page) for page in pages] == [5, 5, 5, 5, 3, 0]
        assert await store.keys(labels, limit=2**63 - 1) == keys
        assert await store.keys(labels, limit=0) == []
    whole = await store.search((root,), limit=100)
    assert [item.namespace for item in whole] == sorted(item.namespace for item in whole)
    assert await store.search((root,), limit=7, offset=20) == whole[20:27]


async def test_a_search_of_large_items_is_whole(store: StoreFace, root: str) -> None:
    for number in range(6):
        value = {"bytes": bytes([number]) * 400_000}  # three fill a page
        await store.put((root, str(number % 2)), str(number), value)

    found = await store.search((root,), limit=100)

    assert [item.key for item in found] == ["0", "2", "4", "1", "3", "5"]
    assert all(item.value["bytes"] == bytes([int(item.key)]) * 400_000 for item in found)
    assert await store.keys((root, "0"), limit=2, offset=1) == ["2", "4"]


async def test_a_search_of_many_items_is_whole(memory: MemoryCluster, root: str) -> None:
    keys = [f"{n:05}" for n in range(item_queries.MAX_PAGE + 50)]
    await memory.store.abatch([PutOp((root, "a"), key, {"n": 1}) for key in keys])

    for blocking in (False, True):
        face = StoreFace(memory.store, blocking=blocking)
        assert await face.keys((root,), limit=10_000) == keys
        assert await face.keys((root, "a"), filter={"n": 1}, limit=10_000) == keys
        assert await face.keys((root,), limit=3, offset=item_queries.MAX_PAGE) == keys[-50:-47]


@pytest.mark.parametrize("mode", ["inline"])
async def test_a_rare_match_is_found_behind_many_that_are_none(
    store: StoreFace, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages are closed after so many, even empty ones.
    monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pace, "LOOKS", 3)
    for number in range(10):
        await store.put((root,), str(number), {"rare": number == 9})

    assert await store.keys((root,), filter={"rare": True}) == ["9"]


@pytest.mark.parametrize("mode", ["inline", "inline-journal"])
async def test_a_long_search_holds_the_event_loop_for_no_longer_than_a_page(
    memory: MemoryCluster, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = [PutOp((root, str(n)), "k", {"n": n}) for n in range(60)]
    await memory.store.abatch(ops)
    monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pace, "LOOKS", 2)
    monkeypatch.setattr(inline_client, "_LONG", 0.0)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: memory.store.asearch((root,), filter={"n": -1}),
        lambda: memory.store.alist_namespaces(suffix=("nowhere",)),
        lambda: memory.store.abatch([SearchOp((root,), filter={"n": -1})] * 2),
    ]
    for call in calls:
        searching = asyncio.ensure_future(call())
        turns = 0
        while not searching.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 20
        assert not any(await searching)


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "b"),
    ({"n": 2.0}, "b"),
    ({"n": "2"}, "e"),
    ({"n": True}, ""),
    ({"n": {"$eq": 2}}, "b"),
    ({"n": {"$ne": 2}}, "acdef"),  # a missing field is not equal
    ({"n": {"$gt": 2}}, "c"),  # 10 > 2: numbers compare as numbers
    ({"n": {"$gte": 2}}, "bc"),
    ({"n": {"$lt": 10}}, "ab"),
    ({"n": {"$lte": 10}}, "abc"),
    ({"n": {"$gt": 1, "$lt": 10}}, "b"),
    ({"n": {"$gt": "1"}}, "e"),
    ({"n": 2, "kind": "x"}, "b"),
    ({"kind": "x"}, "ab"),
    ({"deep": {"a": 1}}, "cd"),  # a part
    ({"deep": {"a": 1, "b": 2}}, "d"),
    ({"deep": {"b": {"$gte": 2}}}, "d"),
    ({"list": [1, 2]}, "f"),
    ({"list": [2, 1]}, ""),
    ({"nowhere": {"$gt": 1}}, ""),
    ({}, "abcdef"),
    ({"n": {"$in": [1, "2", 5]}}, "ae"),
    ({"n": {"$nin": [1, 2]}}, "cdef"),
    ({"list": {"$in": [2, 9]}}, "f"),
    ({"n": {"$exists": False}}, "d"),
    ({"n": {"$exists": True}, "kind": {"$exists": False}}, "cef"),
    ({"$or": [{"kind": "x", "n": 1}, {"deep": {"b": 2}}]}, "ad"),
    ({"$and": [{"kind": "x"}, {"$not": {"n": 1}}]}, "b"),
    ({"n": {"$not": {"$gt": 1}}}, "adef"),
    ({"deep": {"$or": [{"b": 2}, {"c": 3}]}}, "d"),
]
"""Filters, and the keys of the items that they match."""


async def test_filters(store: StoreFace, root: str) -> None:
    values: dict[str, dict[str, Any]] = {
        "a": {"n": 1, "kind": "x"},
        "b": {"n": 2, "kind": "x"},
        "c": {"n": 10, "deep": {"a": 1}},
        "d": {"deep": {"a": 1, "b": 2}},
        "e": {"n": "2"},
        "f": {"n": None, "list": [1, 2]},
    }
    await store.batch([PutOp((root, key), key, value) for key, value in values.items()])

    for wanted, keys in FILTERS:
        assert "".join(await store.keys((root,), filter=wanted)) == keys, wanted


async def test_limit_and_offset_count_what_matches(store: StoreFace, root: str) -> None:
    for number in range(12):
        await store.put((root, str(number % 3)), f"{number:02}", {"even": number % 2 == 0})

    matching = await store.keys((root,), filter={"even": True})

    assert sorted(matching) == ["00", "02", "04", "06", "08", "10"]
    for offset in range(7):
        page = await store.keys((root,), filter={"even": True}, limit=2, offset=offset)
        assert page == matching[offset : offset + 2]


async def test_a_filter_that_cannot_be_decided_is_refused(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"a": 1})

    wrong: tuple[dict[str, Any], ...] = (
        {"a": {"$regex": "x"}},
        {"$where": "x"},
        {"$or": [{"a": {"$not": {"$regex": "x"}}}]},
        {"a": {"$in": 5}},
        {"a": {"b": {"$gt ": 1}}},
        {"a": object()},
        {"a": 2**70},
        {"a": {"$ne": datetime.now(UTC)}},  # not stored as plain data: it would never match
        {"a": [{1, 2}]},
    )
    for wanted in wrong:
        with pytest.raises(InvalidRequestError, match="filter"):
            await store.search((root,), filter=wanted)


async def test_without_an_index_a_query_is_ignored(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"a": 1})

    assert await store.keys((root,), query="anything") == ["key"]


# ---------------------------------------------------------------------- namespaces


async def test_impossible_namespaces_are_refused(store: StoreFace) -> None:
    impossible: tuple[tuple[Any, ...], ...] = ((), ("",), ("a", ""), ("a.b",), ("a", 1), ("a\0b",))
    for namespace in impossible:
        with pytest.raises(InvalidNamespaceError):
            await store.put(namespace, "key", {})
        with pytest.raises(InvalidNamespaceError):
            await store.batch([PutOp(namespace, "key", {})])
    with pytest.raises(InvalidNamespaceError):
        await store.put(("langgraph", "x"), "key", {})


async def test_the_namespaces_of_a_batch_are_checked_too(store: StoreFace) -> None:
    wrong: tuple[Op, ...] = (
        GetOp(("a.b",), "key"),
        SearchOp(("a.b",)),
        ListNamespacesOp((MatchCondition("prefix", ("a.b",)),)),
    )
    for op in wrong:
        with pytest.raises(InvalidNamespaceError):
            await store.batch([op])


LISTINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["a b c", "a b d", "a e c", "f", "f b c g"]),
    ({"prefix": ("a",)}, ["a b c", "a b d", "a e c"]),
    ({"prefix": ("a", "*", "c")}, ["a b c", "a e c"]),
    ({"suffix": ("c",)}, ["a b c", "a e c"]),
    ({"suffix": ("b", "*")}, ["a b c", "a b d"]),
    ({"suffix": ("*", "g")}, ["f b c g"]),
    ({"prefix": ("a",), "suffix": ("b", "c")}, ["a b c"]),
    ({"prefix": ("*", "b")}, ["a b c", "a b d", "f b c g"]),
    ({"max_depth": 1}, ["a", "f"]),
    ({"max_depth": 2}, ["a b", "a e", "f", "f b"]),
    ({"prefix": ("a",), "max_depth": 2}, ["a b", "a e"]),
    ({"max_depth": 2, "limit": 2}, ["a b", "a e"]),
    ({"max_depth": 2, "limit": 2, "offset": 1}, ["a e", "f"]),
    ({"limit": 2, "offset": 3}, ["f", "f b c g"]),
    ({"offset": 9}, []),
    ({"limit": 0}, []),
]
"""Conditions below a root, and the namespaces that they list."""


async def test_list_namespaces(store: StoreFace, root: str) -> None:
    for path in ("a b c", "a b d", "a e c", "f", "f b c g"):
        await store.put((root, *path.split()), "1", {})
        await store.put((root, *path.split()), "2", {})

    for conditions, expected in LISTINGS:
        below_root = {**conditions, "prefix": (root, *conditions.get("prefix", ()))}
        if "max_depth" in conditions:
            below_root["max_depth"] += 1
        found = await store.list_namespaces(**below_root)
        assert [" ".join(namespace[1:]) for namespace in found] == expected, conditions


async def test_impossible_windows_are_refused(store: StoreFace, root: str) -> None:
    for window in ({"limit": -1}, {"offset": -1}):
        with pytest.raises(InvalidRequestError, match=next(iter(window))):
            await store.search((root,), **window)
        with pytest.raises(InvalidRequestError, match=next(iter(window))):
            await store.list_namespaces(**window)
    with pytest.raises(InvalidRequestError, match="max_depth"):
        await store.list_namespaces(max_depth=0)
