"""What LangGraph asks of a store, and the sane thing where its own stores disagree."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
)

from flowgentic_actors import MemoryCluster
from flowgentic_actors.adapters.items import VersionedItem
from flowgentic_actors.cluster.client import inline as inline_client
from flowgentic_actors.engine import item_queries, pace
from flowgentic_actors.errors import InvalidRequestError, MemoryFullError, VersionConflictError
from tests.conftest import SETTINGS, settings_of
from tests.support.faces import StoreFace, unique
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def root() -> str:
    """First label of a namespace that no other test uses."""
    return unique()


# ---------------------------------------------------------------------- the four operations


async def test_an_item_comes_back_as_it_was_put(store: StoreFace, root: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    value = {"text": "x", "list": [1, 2.5, None, {"deep": True}], "bytes": b"\0\xff"}
    await store.put((root, "a"), "key", value)

    item = await store.get((root, "a"), "key")

    assert isinstance(item, Item)
    assert (item.namespace, item.key, item.value) == ((root, "a"), "key", value)
    assert before < item.created_at == item.updated_at <= datetime.now(UTC)


async def test_what_is_not_there_is_none_and_asking_creates_nothing(
    store: StoreFace, root: str
) -> None:
    assert await store.get((root, "a"), "key") is None
    assert await store.search((root, "a")) == []
    assert await store.list_namespaces(prefix=(root,)) == []


async def test_an_update_keeps_the_time_of_creation(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": 1})
    first = await store.get((root,), "key")
    await asyncio.sleep(0.002)
    await store.put((root,), "key", {"v": 2})
    second = await store.get((root,), "key")

    assert second.value == {"v": 2}
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at


async def test_a_deleted_item_is_gone_with_its_namespace(store: StoreFace, root: str) -> None:
    await store.put((root, "a"), "key", {"v": 1})
    await store.delete((root, "a"), "key")
    await store.delete((root, "a"), "key")

    assert await store.get((root, "a"), "key") is None
    assert await store.search((root,)) == []
    assert await store.list_namespaces(prefix=(root,)) == []
    first = datetime.now(UTC)
    await store.put((root, "a"), "key", {"v": 2})
    assert (await store.get((root, "a"), "key")).created_at >= first - timedelta(milliseconds=1)


async def test_values_are_copies(store: StoreFace, root: str) -> None:
    mine = {"list": [1]}
    await store.put((root,), "key", mine)
    mine["list"].append(2)
    (await store.get((root,), "key")).value["list"].append(3)
    (await store.search((root,)))[0].value["list"].append(4)

    assert await store.value((root,), "key") == {"list": [1]}


async def test_a_value_is_serialized_before_the_first_await(
    memory: MemoryCluster, root: str
) -> None:
    mine = {"list": [1]}
    putting = asyncio.ensure_future(memory.store.aput((root,), "key", mine))
    await asyncio.sleep(0)
    mine["list"].append(2)
    await putting

    item = await memory.store.aget((root,), "key")
    assert item is not None
    assert item.value == {"list": [1]}


async def test_empty_values_are_values(store: StoreFace, root: str) -> None:
    values: list[dict[str, Any]] = [{}, {"": ""}, {"a": None}, {"a": []}, {"a": {}}]
    for number, value in enumerate(values):
        await store.put((root,), str(number), value)
        assert await store.value((root,), str(number)) == value

    assert [item.value for item in await store.search((root,))] == values


async def test_keys_and_labels_may_hold_any_character(store: StoreFace, root: str) -> None:
    for label in ("a:b", "a/b", "a b", " ", "*", "\N{SNOWMAN}", "\N{OHM SIGN}", "a\nb", "x" * 5000):
        await store.put((root, label), label, {"v": label})
        await store.put((root, label, label), label + "2", {"v": 2})

        assert await store.value((root, label), label) == {"v": label}
        assert await store.keys((root, label)) == [label, label + "2"]
        assert await store.list_namespaces(prefix=(root,)) == [(root, label), (root, label, label)]
        for item in await store.search((root,)):
            await store.delete(item.namespace, item.key)
        assert await store.list_namespaces(prefix=(root,)) == []


async def test_labels_are_compared_whole(store: StoreFace, root: str) -> None:
    for namespace in ((root, "a"), (root, "ab"), (root, "a", "b"), (root + "x",)):
        await store.put(namespace, "/".join(namespace), {})

    assert await store.keys((root, "a")) == [f"{root}/a", f"{root}/a/b"]
    assert len(await store.keys((root,))) == 3


async def test_a_key_may_be_a_number_and_is_text(store: StoreFace, root: str) -> None:
    await store.put((root,), 7, {"v": 1})

    assert await store.value((root,), "7") == {"v": 1}
    assert await store.value((root,), 7) == {"v": 1}  # type: ignore[arg-type]


async def test_a_large_value_comes_back(store: StoreFace, root: str) -> None:
    value = {"bytes": bytes(range(256)) * (20 * 4096)}  # 20 MB
    await store.put((root,), "key", value)

    assert await store.value((root,), "key") == value
    assert [item.value for item in await store.search((root,))] == [value]


# ---------------------------------------------------------------------- batches


async def test_reads_of_a_batch_see_the_state_before_its_puts(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": "old"})

    results = await store.batch(
        [
            PutOp((root,), "key", {"v": "new"}),
            PutOp((root, "other"), "key", {"v": "new"}),
            GetOp((root,), "key"),
            SearchOp((root,)),
            ListNamespacesOp((MatchCondition("prefix", (root,)),)),
            GetOp((root, "other"), "key"),
        ]
    )

    assert results[:2] == [None, None]
    assert isinstance(results[2], Item)
    assert results[2].value == {"v": "old"}
    assert isinstance(results[3], list)
    assert [item.value for item in results[3] if isinstance(item, SearchItem)] == [{"v": "old"}]
    assert results[4:] == [[(root,)], None]
    assert await store.value((root,), "key") == {"v": "new"}


async def test_the_last_put_of_a_key_in_a_batch_wins(store: StoreFace, root: str) -> None:
    await store.put((root,), "deleted", {"v": 0})
    await store.batch(
        [
            PutOp((root,), "key", {"v": 1}),
            PutOp((root,), "back", None),
            PutOp((root,), "deleted", {"v": 1}),
            PutOp((root,), "key", {"v": 2}),
            PutOp((root,), "back", {"v": 2}),
            PutOp((root,), "deleted", None),
        ]
    )

    found = {item.key: item.value for item in await store.search((root,))}
    assert found == {"key": {"v": 2}, "back": {"v": 2}}


async def test_an_empty_batch_is_fine(store: StoreFace) -> None:
    assert await store.batch([]) == []


async def test_results_are_in_the_order_of_their_operations(store: StoreFace, root: str) -> None:
    puts: list[Op] = [PutOp((root, str(n)), "key", {"n": n}) for n in range(50)]
    gets: list[Op] = [GetOp((root, str(n)), "key") for n in reversed(range(50))]
    await store.batch(puts)

    found = await store.batch(gets)

    assert [item.value["n"] for item in found if isinstance(item, Item)] == [*range(49, -1, -1)]


async def test_an_operation_that_is_wrong_stops_its_batch_before_anything_is_sent(
    store: StoreFace, root: str
) -> None:
    for wrong in (SearchOp((root,), limit=-1), PutOp(("a.b",), "k", {}), PutOp((), "k", {})):
        with pytest.raises((InvalidRequestError, InvalidNamespaceError)):
            await store.batch([PutOp((root,), "key", {"v": 1}), wrong])

    assert await store.get((root,), "key") is None


async def test_many_operations_at_once_do_not_mix(memory: MemoryCluster, root: str) -> None:
    async def live(number: int) -> dict[str, Any]:
        namespace = (root, str(number % 7))
        await memory.store.aput(namespace, str(number), {"n": number})
        item = await memory.store.aget(namespace, str(number))
        assert item is not None
        return item.value

    assert await asyncio.gather(*map(live, range(300))) == [{"n": n} for n in range(300)]
    assert len(await memory.store.asearch((root,), limit=1000)) == 300


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


# ---------------------------------------------------------------------- limits


async def test_a_message_that_is_too_large_is_refused_alone(root: str) -> None:
    small = {**SETTINGS["subprocess"], "max_message_bytes": 2**22, "request_timeout": 5.0}
    async with MemoryCluster(**small) as memory:
        for face in (StoreFace(memory.store, blocking=b) for b in (False, True)):
            await face.put((root,), "key", {"v": 1})
            others = [
                asyncio.ensure_future(memory.store.aput((root,), f"k{n}", {"v": n}))
                for n in range(20)
            ]
            with pytest.raises(InvalidRequestError, match="max_message_bytes"):
                await face.put((root,), "large", {"v": b"x" * 2**23})
            with pytest.raises(InvalidRequestError, match="max_message_bytes"):
                await face.batch(
                    [PutOp((root,), "beside", {}), PutOp((root,), "large", {"v": b"x" * 2**23})]
                )
            await asyncio.gather(*others)
            assert await face.value((root,), "beside") == {}  # a batch is no transaction
            assert await face.value((root,), "key") == {"v": 1}
            assert await face.value((root,), "large") is None
            # what fits alone is also found together
            for number in range(3):
                await face.put((root, "list"), f"k{number}", {"v": b"x" * (2**22 - 2**16)})
            assert len(await face.search((root, "list"), limit=10)) == 3
        (actor,) = (await memory.status()).actors
        assert actor.epoch == 1


# ---------------------------------------------------------------------- versions


async def test_a_put_may_expect_a_version(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": 1}, expected_version=0)
    first = (await store.get((root,), "key")).version
    with pytest.raises(VersionConflictError, match="'key'") as refused:
        await store.put((root,), "key", {"v": 2}, expected_version=0)
    assert refused.value.found == first

    await store.put((root,), "key", {"v": 2}, expected_version=first)
    (found,) = await store.search((root,))
    assert found.value == {"v": 2}
    assert found.version > first
    with pytest.raises(VersionConflictError):
        await store.put((root,), "key", {"v": 3}, expected_version=first)
    with pytest.raises(VersionConflictError):
        await store.delete((root,), "key", expected_version=first)
    await store.delete((root,), "key", expected_version=found.version)
    await store.put((root,), "key", {"v": 4})
    assert (await store.get((root,), "key")).version > found.version  # a new life, another version


async def test_of_many_who_expect_the_same_version_one_wins(
    memory: MemoryCluster, root: str
) -> None:
    async def add(times: int) -> int:
        lost = 0
        for _ in range(times):
            while True:
                item = await memory.store.aget((root,), "sum")
                version = item.version if isinstance(item, VersionedItem) else 0
                value = {"n": item.value["n"] + 1 if item else 1}
                try:
                    await memory.store.aput((root,), "sum", value, expected_version=version)
                    break
                except VersionConflictError:
                    lost += 1
        return lost

    lost = await asyncio.gather(*(add(10) for _ in range(5)))
    total = await memory.store.aget((root,), "sum")
    assert total is not None
    assert total.value == {"n": 50}
    assert sum(lost) > 0 or not memory.is_distributed


# ---------------------------------------------------------------------- errors


async def test_an_operation_that_fails_keeps_no_other_from_being_done(root: str) -> None:
    async with MemoryCluster(**SETTINGS["subprocess"], store_total_mem=2**20) as memory:
        for face in (StoreFace(memory.store, blocking=b) for b in (False, True)):
            ops: list[Op] = [
                PutOp((root,), "a", {"v": 1}),
                GetOp((root,), "a"),
                PutOp((root,), "large", {"v": "x" * 2**21}),
                PutOp((root, "b"), "b", {"v": 2}),
            ]
            with pytest.raises(MemoryFullError) as failed:
                await face.batch(ops)
            assert failed.value.__notes__ == ["operation 2 of the batch failed"]
            assert await face.value((root,), "a") == {"v": 1}
            assert await face.value((root, "b"), "b") == {"v": 2}
            assert await face.get((root,), "large") is None


# ---------------------------------------------------------------------- time to live

BLINK = 0.3 / 60  # minutes


@pytest.fixture
async def forgetful(mode: str) -> AsyncIterator[MemoryCluster]:
    """A cluster whose items live for a blink."""
    ttl = {"default_ttl": BLINK, "sweep_interval_minutes": 0.1 / 60}
    async with MemoryCluster(**settings_of(mode), ttl=ttl) as memory:
        yield memory


CHEAP = pytest.mark.parametrize("mode", ["inline", "inline-journal", "several-actors"])


async def items_in(memory: MemoryCluster) -> int:
    return sum(actor.items for actor in (await memory.status()).actors)


async def test_an_item_lives_as_long_as_it_was_given(store: StoreFace, root: str) -> None:
    began = time.monotonic()
    await store.put((root,), "short", {}, ttl=BLINK)
    await store.put((root,), "long", {}, ttl=60)
    await store.put((root, "a"), "short", {}, ttl=BLINK)
    await store.put((root,), "for ever", {}, ttl=None)
    keys = await store.keys((root,))
    if time.monotonic() < began + 60 * BLINK:  # on a machine that is not too busy for this
        assert keys == ["for ever", "long", "short", "short"]

    await asyncio.sleep(120 * BLINK + 0.01)  # the search has refreshed them
    assert await store.keys((root,)) == ["for ever", "long"]
    assert await store.get((root,), "short") is None
    assert await store.list_namespaces(prefix=(root,)) == [(root,)]
    with pytest.raises(InvalidRequestError, match="ttl"):
        await store.put((root,), "key", {}, ttl=-1)


async def test_a_read_lets_a_life_begin_anew_unless_it_says_not_to(
    store: StoreFace, root: str
) -> None:
    longest, last = 0.0, time.monotonic()
    for key in ("got", "found", "left", "looked at"):
        await store.put((root, key), key, {}, ttl=2 * BLINK)
    for _ in range(4):
        await asyncio.sleep(60 * BLINK)
        begun = time.monotonic()
        await store.get((root, "got"), "got")
        await store.search((root, "found"))
        await store.get((root, "looked at"), "looked at", refresh_ttl=False)
        longest, last = max(longest, time.monotonic() - last), begun
    left = [key for key in ("got", "found", "left", "looked at") if await store.keys((root, key))]
    longest = max(longest, time.monotonic() - last)
    assert not {"left", "looked at"} & set(left)
    if longest < 120 * BLINK:  # on a machine that is not too busy for this
        assert left == ["got", "found"]


async def test_a_new_put_decides_anew_how_long(store: StoreFace, root: str) -> None:
    await store.put((root,), "a", {}, ttl=BLINK)
    await store.put((root,), "a", {})
    await store.put((root,), "b", {})
    await store.put((root,), "b", {}, ttl=BLINK)
    await asyncio.sleep(60 * BLINK + 0.01)
    assert await store.keys((root,)) == ["a"]


@CHEAP
async def test_what_is_over_is_forgotten_by_itself(forgetful: MemoryCluster, root: str) -> None:
    for number in range(2500):
        await forgetful.store.aput((root, str(number % 7)), str(number), {"v": number})
    await forgetful.store.aput((root,), "stays", {}, ttl=None)

    async def swept() -> bool:
        return await items_in(forgetful) == 1

    await eventually(swept)
    assert [item.key for item in await forgetful.store.asearch(())] == ["stays"]


@CHEAP
async def test_expired_items_may_be_seen_until_they_are_swept(mode: str, root: str) -> None:
    ttl = {"omit_expired": False, "refresh_on_read": False, "sweep_interval_minutes": 5}
    async with MemoryCluster(**settings_of(mode), ttl=ttl) as memory:
        await memory.store.aput((root,), "key", {}, ttl=0.01 / 60)
        await asyncio.sleep(0.05)
        assert await memory.store.aget((root,), "key") is not None
        assert len(await memory.store.asearch((root,))) == 1
        assert await memory.store.alist_namespaces() == [(root,)]


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_lives_outlast_their_actor(memory: MemoryCluster, root: str) -> None:
    store = memory.store
    await store.aput((root,), "short", {}, ttl=BLINK)
    await store.aput((root,), "refreshed", {}, ttl=3 / 60)
    await store.aput((root,), "long", {}, ttl=5)
    began = time.monotonic()
    await asyncio.sleep(2)
    await store.aget((root,), "refreshed")
    refreshed = time.monotonic()
    pid = (await memory.status()).actors[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(began + 3.1 - time.monotonic())
    found = await store.asearch((root,), refresh_ttl=False)
    if time.monotonic() < refreshed + 3:  # on a machine that is not too busy for this
        assert [item.key for item in found] == ["long", "refreshed"]
    await asyncio.sleep(max(0.0, refreshed + 3.5 - time.monotonic()))
    assert [item.key for item in await store.asearch((root,))] == ["long"]


async def test_any_kind_of_text_is_a_label_and_a_key(store: StoreFace, root: str) -> None:
    class Name(StrEnum):
        LABEL = "label"

    await store.put((root, Name.LABEL), Name.LABEL, {"v": 1})
    assert await store.value((root, "label"), "label") == {"v": 1}
    assert await store.keys((root, Name.LABEL)) == ["label"]
