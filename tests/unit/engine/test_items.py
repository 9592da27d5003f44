"""Items, searches and namespaces: rules of LangGraph's stores, one test each."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from flowgentic_actors.engine import Shard, item_queries
from flowgentic_actors.engine.commands import (
    DeleteItem,
    GetItem,
    ListNamespaces,
    Match,
    PutItem,
    SearchItems,
)
from flowgentic_actors.engine.replies import ItemPage, ItemReply, ItemRow, NamespacePage
from tests.support.engine_commands import (
    EMPTY,
    MANY,
    blob,
    item_pages,
    keys,
    pack,
    pages_end_after,
    prefix,
    put_item,
    search,
)


def get_item(shard: Shard, namespace: tuple[str, ...], key: str) -> ItemRow | None:
    reply = shard.execute(GetItem(namespace, key), 0).reply
    assert isinstance(reply, ItemReply)
    return reply.row


def namespaces(
    shard: Shard,
    *conditions: Match,
    max_depth: int | None = None,
    limit: int = MANY,
    offset: int = 0,
) -> list[str]:
    found: list[str] = []
    query = ListNamespaces(conditions, max_depth, limit, offset)
    while True:
        reply = shard.execute(query, 0).reply
        assert isinstance(reply, NamespacePage)
        found += [".".join(namespace) for namespace in reply.namespaces]
        if reply.after is None or len(found) >= limit:
            return found
        query = replace(
            query,
            limit=limit - len(found),
            offset=query.offset - reply.skipped,
            after=reply.after,
        )


# --------------------------------------------------------------------------------------- items


def test_the_creation_time_is_kept_on_update(shard: Shard) -> None:
    put_item(shard, ("a",), "k", {"v": 1}, now_us=10)
    put_item(shard, ("a",), "k", {"v": 2}, now_us=20)
    assert get_item(shard, ("a",), "k") == ItemRow(("a",), "k", blob(pack({"v": 2})), 10, 20)


def test_the_creation_time_survives_a_replay(shard: Shard) -> None:
    _, record = shard.execute(PutItem(("a",), "k", blob(b"1")), 10)
    assert record is not None
    replayed = Shard()
    replayed.apply(record)
    replayed.execute(PutItem(("a",), "k", blob(b"2")), 20)
    assert get_item(replayed, ("a",), "k") == ItemRow(("a",), "k", blob(b"2"), 10, 20)


def test_a_deleted_item_is_gone_and_begins_anew(shard: Shard) -> None:
    put_item(shard, ("a",), "k", now_us=10)
    shard.execute(DeleteItem(("a",), "k"), 15)
    assert get_item(shard, ("a",), "k") is None
    assert shard.size() == EMPTY
    put_item(shard, ("a",), "k", now_us=20)
    row = get_item(shard, ("a",), "k")
    assert row is not None
    assert row.created_us == 20


def test_getting_an_unknown_item_creates_nothing(shard: Shard) -> None:
    assert get_item(shard, ("a",), "k") is None
    assert namespaces(shard) == []


def test_a_key_belongs_to_its_namespace(shard: Shard) -> None:
    put_item(shard, ("a",), "k", {"v": 1})
    put_item(shard, ("a", "b"), "k", {"v": 2})
    shard.execute(DeleteItem(("a",), "k"), 0)
    assert get_item(shard, ("a",), "k") is None
    assert get_item(shard, ("a", "b"), "k") is not None


# -------------------------------------------------------------------------------------- search


def test_a_search_is_ordered_by_namespace_then_key(store: Shard) -> None:
    put_item(store, ("docs",), "B")
    assert keys(search(store)) == "B a b c d e f g"


def test_a_prefix_is_compared_label_by_label(store: Shard) -> None:
    assert keys(search(store, ("users",))) == "b c d e"
    assert keys(search(store, ("users", "10"))) == "c d"
    assert keys(search(store, ("users", "1"))) == ""
    assert keys(search(store, ("user",))) == ""


def test_the_first_key_of_the_prefix_itself_is_found(shard: Shard) -> None:
    put_item(shard, ("a",), "")
    assert [row.key for row in search(shard, ("a",)).rows] == [""]


def test_offset_and_limit_cut_the_matching_items(store: Shard) -> None:
    assert keys(search(store, ("users",), limit=2, offset=1)) == "c d"
    assert keys(search(store, ("users",), {"key": {"$ne": "c"}}, limit=2, offset=1)) == "d e"
    assert keys(search(store, ("users",), limit=0)) == ""
    assert keys(search(store, ("users",), offset=4)) == ""


def test_pages_follow_each_other_and_skip_the_offset_once(store: Shard) -> None:
    query = SearchItems((), b"", limit=2, offset=1)
    assert item_pages(store, query) == ["b c", "d e", "f g", ""]


def test_a_search_page_holds_at_most_max_page_items(
    store: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_queries, "MAX_PAGE", 3)
    assert item_pages(store, SearchItems((), b"", MANY, 0)) == ["a b c", "d e f", "g"]


def test_a_search_page_ends_after_page_bytes_of_values(
    store: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_queries, "PAGE_BYTES", 50)
    put_item(store, ("users",), "b", {"text": "x" * 50})
    assert item_pages(store, SearchItems((), b"", MANY, 0)) == ["a", "b", "c d e f g"]


def test_a_page_of_a_search_ends_when_its_time_is_over(
    store: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_end_after(monkeypatch, 3)
    nothing = SearchItems((), pack({"key": "none"}), MANY, 0)
    assert item_pages(store, nothing) == ["", "", ""]
    some = SearchItems((), pack({"key": {"$gte": "c"}}), MANY, 0)
    assert item_pages(store, some) == ["c", "d e f", "g"]


def test_a_page_of_a_search_ends_by_the_bytes_that_a_filter_looked_into(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        put_item(shard, ("n",), f"{number}", {"text": "x" * 5000})
    pages_end_after(monkeypatch, 256)
    assert item_pages(shard, SearchItems((), pack({"a": 1}), MANY, 0))[1:] != []


def test_pages_that_end_by_time_are_whole_where_items_expire(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_end_after(monkeypatch, 3)
    for number in range(12):
        ttl = 5 if number < 9 else 0
        command = PutItem(("n", str(number // 5)), f"{number:02}", blob(pack({})), ttl)
        shard.execute(command, 0)
    query = SearchItems((), b"", MANY, 0)
    pages: list[str] = []
    while True:
        page = shard.query(query, 10)
        assert isinstance(page, ItemPage)
        pages.append(keys(page))
        if page.after is None:
            break
        query = replace(query, after=page.after)
    assert pages == ["", "", "", "09 10 11", ""]
    listed = ListNamespaces((), None, MANY, 0)
    found: list[tuple[str, ...]] = []
    for _ in range(2):
        answer = shard.query(listed, 10)
        assert isinstance(answer, NamespacePage)
        found += answer.namespaces
        listed = replace(listed, after=answer.after)
    assert found == [("n", "1"), ("n", "2")]


def test_an_offset_goes_on_over_the_pages(store: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    pages_end_after(monkeypatch, 2)
    query = SearchItems((), pack({"key": {"$gte": "b"}}), MANY, 3)
    assert item_pages(store, query) == ["", "", "e f", "g"]


def test_a_search_goes_on_where_it_was_while_others_write_and_delete(
    store: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_queries, "MAX_PAGE", 3)
    first = search(store)
    store.execute(DeleteItem(("users", "10"), "c"), 0)
    store.execute(DeleteItem(("users", "10", "deep"), "d"), 0)
    put_item(store, ("docs",), "aa")
    rest = SearchItems((), b"", MANY, 0, after=first.after)
    assert [keys(first), *item_pages(store, rest)] == ["a b c", "e f g", ""]


# ---------------------------------------------------------------------------------- namespaces


def test_a_listing_of_namespaces_ends_when_its_time_is_over(
    tree: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = namespaces(tree), namespaces(tree, max_depth=2)
    some = namespaces(tree, Match("suffix", ("c",)), max_depth=1)
    for looks in 1, 2, 3:
        pages_end_after(monkeypatch, looks)
        first = tree.query(ListNamespaces((), None, MANY, 0), 0)
        assert isinstance(first, NamespacePage)
        assert len(first.namespaces) == looks
        assert namespaces(tree) == whole
        assert namespaces(tree, max_depth=2) == cut == ["a", "a.b", "a.e", "f.b"]
        assert namespaces(tree, max_depth=2, offset=1, limit=2) == ["a.b", "a.e"]
        assert namespaces(tree, Match("suffix", ("c",)), max_depth=1) == some == ["a", "f"]


@pytest.fixture
def tree(shard: Shard) -> Shard:
    for path in "a.b.c", "a.b.d", "a.e.c", "f.b.c", "a":
        put_item(shard, tuple(path.split(".")), "k")
        put_item(shard, tuple(path.split(".")), "l")
    return shard


def suffix(*path: str) -> Match:
    return Match("suffix", path)


def test_namespaces_are_listed_once_and_sorted(tree: Shard) -> None:
    assert namespaces(tree) == ["a", "a.b.c", "a.b.d", "a.e.c", "f.b.c"]


def test_a_namespace_goes_with_its_last_item(tree: Shard) -> None:
    tree.execute(DeleteItem(("a",), "k"), 0)
    assert "a" in namespaces(tree)
    tree.execute(DeleteItem(("a",), "l"), 0)
    assert "a" not in namespaces(tree)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([prefix("a")], ["a", "a.b.c", "a.b.d", "a.e.c"]),
        ([prefix("a", "b")], ["a.b.c", "a.b.d"]),
        ([suffix("c")], ["a.b.c", "a.e.c", "f.b.c"]),
        ([suffix("b", "c")], ["a.b.c", "f.b.c"]),
        ([prefix("*", "b")], ["a.b.c", "a.b.d", "f.b.c"]),
        ([prefix("a", "*", "c")], ["a.b.c", "a.e.c"]),
        ([suffix("*")], ["a", "a.b.c", "a.b.d", "a.e.c", "f.b.c"]),
        ([suffix("b", "*")], ["a.b.c", "a.b.d", "f.b.c"]),
        ([prefix("a"), suffix("c")], ["a.b.c", "a.e.c"]),
        ([prefix("a"), prefix("a", "e")], ["a.e.c"]),
        ([prefix("a", "b"), prefix("f")], []),
        ([prefix("a", "b", "c", "d")], []),
        ([suffix("x", "a", "b", "c")], []),
    ],
)
def test_a_namespace_has_to_match_every_condition(
    tree: Shard, conditions: list[Match], expected: list[str]
) -> None:
    assert namespaces(tree, *conditions) == expected


def test_max_depth_cuts_what_matched_and_lists_it_once(tree: Shard) -> None:
    assert namespaces(tree, max_depth=1) == ["a", "f"]
    assert namespaces(tree, max_depth=2) == ["a", "a.b", "a.e", "f.b"]
    assert namespaces(tree, suffix("c"), max_depth=2) == ["a.b", "a.e", "f.b"]


def test_limit_and_offset_count_what_is_listed(tree: Shard) -> None:
    assert namespaces(tree, limit=2, offset=1) == ["a.b.c", "a.b.d"]
    assert namespaces(tree, max_depth=2, limit=2, offset=1) == ["a.b", "a.e"]
    assert namespaces(tree, limit=0) == []
    assert namespaces(tree, offset=5) == []
