"""The rules of LangGraph's savers and stores that the engine answers for, one test each."""

from __future__ import annotations

import random
import struct
import sys
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from msgspec.structs import replace

from flowgentic_actors.engine import Shard, filters, item_queries, pace, thread_queries
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    Match,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.limits import MAX_LEVELS
from flowgentic_actors.engine.model import Blob, Position, Scalar, Vector, Version, Write
from flowgentic_actors.engine.replies import (
    CheckpointPage,
    CheckpointReply,
    CheckpointRow,
    Done,
    ItemPage,
    ItemReply,
    ItemRow,
    MissingBlobs,
    NamespacePage,
    RankPage,
    Reply,
    ThreadPage,
)
from flowgentic_actors.engine.shard import ShardSize
from flowgentic_actors.errors import InvalidRequestError

EMPTY = ShardSize(threads=0, checkpoints=0, items=0, blob_bytes=0)
MANY = 10**6

pack = msgspec.msgpack.encode


@pytest.fixture
def shard() -> Shard:
    return Shard()


def blob(data: bytes = b"x") -> Blob:
    return "msgpack", data


def put_checkpoint(
    shard: Shard,
    checkpoint_id: str,
    thread_id: str = "t",
    checkpoint_ns: str = "",
    *,
    parent_id: str | None = None,
    data: bytes = b"checkpoint",
    metadata: bytes = b"metadata",
    facets: dict[str, Scalar] | None = None,
    versions: dict[str, Version] | None = None,
    blobs: dict[str, Blob] | None = None,
    present: tuple[str, ...] = (),
) -> Reply:
    return shard.execute(
        PutCheckpoint(
            thread_id,
            checkpoint_ns,
            checkpoint_id,
            parent_id,
            blob(data),
            blob(metadata),
            facets or {},
            versions or {},
            blobs or {},
            present,
        ),
        0,
    ).reply


def put_writes(
    shard: Shard,
    *writes: tuple[int, str, bytes],
    checkpoint_id: str = "1",
    task: str = "task",
    path: str = "",
) -> bool:
    """Whether anything was stored."""
    reply, record = shard.execute(
        PutWrites(
            "t",
            "",
            checkpoint_id,
            task,
            path,
            tuple(Write(index, channel, blob(data)) for index, channel, data in writes),
        ),
        0,
    )
    assert reply == Done()
    return record is not None


def get(
    shard: Shard, checkpoint_id: str | None = None, thread_id: str = "t", checkpoint_ns: str = ""
) -> CheckpointRow | None:
    reply = shard.execute(GetCheckpoint(thread_id, checkpoint_ns, checkpoint_id), 0).reply
    assert isinstance(reply, CheckpointReply)
    return reply.row


def found(
    shard: Shard, checkpoint_id: str | None = None, thread_id: str = "t", checkpoint_ns: str = ""
) -> CheckpointRow:
    row = get(shard, checkpoint_id, thread_id, checkpoint_ns)
    assert row is not None
    return row


def pending(shard: Shard, checkpoint_id: str = "1") -> list[tuple[str, str, bytes]]:
    return [
        (task, channel, data) for task, channel, (_, data) in found(shard, checkpoint_id).writes
    ]


def page(shard: Shard, query: ListCheckpoints) -> CheckpointPage:
    reply = shard.execute(query, 0).reply
    assert isinstance(reply, CheckpointPage)
    return reply


def listed(shard: Shard, query: ListCheckpoints) -> list[tuple[str, str, str]]:
    return [(r.checkpoint_id, r.thread_id, r.checkpoint_ns) for r in page(shard, query).rows]


def listed_ids(shard: Shard, query: ListCheckpoints) -> str:
    return " ".join(row.checkpoint_id for row in page(shard, query).rows)


def pages(shard: Shard, query: ListCheckpoints) -> list[str]:
    """The ids on each page, to the last."""
    answer = page(shard, query)
    ids = [" ".join(row.checkpoint_id for row in answer.rows)]
    return ids if answer.after is None else ids + pages(shard, replace(query, after=answer.after))


def put_item(
    shard: Shard, namespace: tuple[str, ...], key: str, value: Any = None, now_us: int = 0
) -> None:
    shard.execute(PutItem(namespace, key, blob(pack({} if value is None else value))), now_us)


def get_item(shard: Shard, namespace: tuple[str, ...], key: str) -> ItemRow | None:
    reply = shard.execute(GetItem(namespace, key), 0).reply
    assert isinstance(reply, ItemReply)
    return reply.row


def search(
    shard: Shard,
    prefix: tuple[str, ...] = (),
    filter_: Any = None,
    *,
    limit: int = MANY,
    offset: int = 0,
) -> ItemPage:
    encoded = b"" if filter_ is None else pack(filter_)
    reply = shard.execute(SearchItems(prefix, encoded, limit, offset), 0).reply
    assert isinstance(reply, ItemPage)
    return reply


def keys(answer: ItemPage) -> str:
    return " ".join(row.key for row in answer.rows)


def item_pages(shard: Shard, query: SearchItems) -> list[str]:
    """The keys on each page, to the last."""
    answer = shard.execute(query, 0).reply
    assert isinstance(answer, ItemPage)
    if answer.after is None:
        return [keys(answer)]
    offset = query.offset - answer.skipped
    rest = item_pages(shard, replace(query, after=answer.after, offset=offset))
    return [keys(answer), *rest]


def pages_end_after(monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """Have the time of each page be over when it looks at the clock first."""
    monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pace, "LOOKS", looks)


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


# ------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_as_it_was_put(shard: Shard) -> None:
    put_checkpoint(
        shard,
        "2",
        parent_id="1",
        data=b"c",
        metadata=b"m",
        versions={"a": "1.x", "b": 7},
        blobs={"a": ("msgpack+aes", b"opaque")},
    )
    assert found(shard, "2") == CheckpointRow(
        "t",
        "",
        "2",
        "1",
        blob(b"c"),
        blob(b"m"),
        {"a": "1.x", "b": 7},
        {"a": ("msgpack+aes", b"opaque")},
        (),
    )


def test_the_latest_is_the_highest_id_as_text_whatever_came_last(shard: Shard) -> None:
    for checkpoint_id in "9", "30", "10":
        put_checkpoint(shard, checkpoint_id)
    assert found(shard).checkpoint_id == "9"


@pytest.mark.parametrize("no_id", [None, ""])
def test_no_id_and_an_empty_id_mean_the_latest(shard: Shard, no_id: str | None) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2")
    assert found(shard, no_id).checkpoint_id == "2"


def test_the_latest_is_that_of_its_own_namespace(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2", checkpoint_ns="child")
    assert found(shard).checkpoint_id == "1"
    assert found(shard, checkpoint_ns="child").checkpoint_id == "2"


def test_an_unknown_checkpoint_is_none_and_asking_creates_nothing(shard: Shard) -> None:
    assert get(shard) is None
    assert shard.size() == EMPTY
    put_checkpoint(shard, "1")
    size = shard.size()
    assert get(shard, "2") is None
    assert get(shard, "1", "other") is None
    assert get(shard, "1", "t", "other") is None
    assert shard.size() == size


def test_a_value_is_stored_once_and_shared_by_the_checkpoints_that_have_it(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob(b"large" * 1000)})
    before = shard.size().blob_bytes
    assert put_checkpoint(shard, "2", versions={"a": "1"}, present=("a",)) == Done()
    assert shard.size().blob_bytes - before == len(b"checkpoint" + b"metadata")
    assert found(shard, "2").blobs == {"a": blob(b"large" * 1000)}


def test_a_value_never_given_is_asked_for_and_nothing_is_stored(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    size = shard.size()
    command = PutCheckpoint(
        "t", "", "2", "1", blob(), blob(), {}, {"a": "2", "b": "1"}, {"b": blob()}, ("a",)
    )
    assert shard.execute(command, 0) == (MissingBlobs(("a",)), None)
    assert shard.size() == size
    assert get(shard, "2") is None

    again = replace(command, blobs={"a": blob(b"a"), "b": blob(b"b")}, present=())
    assert shard.execute(again, 0).reply == Done()
    assert found(shard, "2").blobs == {"a": blob(b"a"), "b": blob(b"b")}


@pytest.mark.parametrize(("thread_id", "checkpoint_ns"), [("t", "child"), ("other", "")])
def test_values_are_known_within_their_thread_and_namespace(
    shard: Shard, thread_id: str, checkpoint_ns: str
) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    reply = put_checkpoint(
        shard, "2", thread_id, checkpoint_ns, versions={"a": "1"}, present=("a",)
    )
    assert reply == MissingBlobs(("a",))


def test_a_channel_without_a_version_has_no_value(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": ""}, blobs={"a": blob(), "b": blob()})
    assert found(shard).blobs == {"a": blob()}
    assert put_checkpoint(shard, "2", versions={}, present=("a",)) == MissingBlobs(("a",))


def test_an_emptied_channel_stays_empty(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    put_checkpoint(shard, "2", versions={"a": "2"}, blobs={"a": ("empty", b"")})
    assert found(shard).blobs == {"a": ("empty", b"")}


def test_a_fork_keeps_its_siblings_values(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1.r"}, blobs={"a": blob(b"root")})
    for checkpoint_id, version in ("2", "2.left"), ("3", "2.right"):
        put_checkpoint(
            shard,
            checkpoint_id,
            parent_id="1",
            versions={"a": version},
            blobs={"a": blob(version.encode())},
        )
    assert [found(shard, i).blobs["a"][1] for i in "123"] == [b"root", b"2.left", b"2.right"]
    assert [found(shard, i).parent_id for i in "123"] == [None, "1", "1"]


def test_putting_a_checkpoint_again_replaces_it(shard: Shard) -> None:
    put_checkpoint(shard, "1", parent_id="0", data=b"old", facets={"step": 1})
    put_writes(shard, (0, "a", b"kept"))
    put_checkpoint(shard, "1", data=b"new", facets={"step": 2})
    assert listed_ids(shard, ListCheckpoints()) == "1"
    assert listed_ids(shard, ListCheckpoints(facets={"step": 1})) == ""
    row = found(shard, "1")
    assert (row.parent_id, row.checkpoint) == (None, blob(b"new"))
    assert pending(shard) == [("task", "a", b"kept")]


def test_changing_what_was_returned_does_not_change_history(shard: Shard) -> None:
    versions: dict[str, Version] = {"a": "1"}
    facets: dict[str, Scalar] = {"step": 1}
    put_checkpoint(shard, "1", versions=versions, facets=facets, blobs={"a": blob()})
    found(shard).versions["a"] = "3"
    assert found(shard).versions == {"a": "1"}
    assert found(shard).blobs == {"a": blob()}
    assert listed_ids(shard, ListCheckpoints(facets={"step": 1})) == "1"


# ---------------------------------------------------------------------------- pending writes


def test_at_a_regular_index_the_first_write_wins(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    assert put_writes(shard, (0, "a", b"first"), (1, "b", b"other"))
    assert not put_writes(shard, (0, "a", b"second"))
    assert pending(shard) == [("task", "a", b"first"), ("task", "b", b"other")]


def test_a_special_channel_keeps_the_last_write(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (-3, "__interrupt__", b"first"))
    assert put_writes(shard, (-3, "__interrupt__", b"second"))
    assert pending(shard) == [("task", "__interrupt__", b"second")]


def test_a_mixed_batch_is_decided_write_by_write(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (0, "a", b"first"), (-1, "__error__", b"first"))
    assert put_writes(shard, (0, "a", b"second"), (-1, "__error__", b"second"), (2, "b", b"new"))
    assert pending(shard) == [
        ("task", "__error__", b"second"),
        ("task", "a", b"first"),
        ("task", "b", b"new"),
    ]


def test_within_one_batch_the_same_rules_hold(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (0, "a", b"1"), (0, "a", b"2"), (-4, "__resume__", b"1"))
    put_writes(shard, (-4, "__resume__", b"2"), (-4, "__resume__", b"3"))
    assert pending(shard) == [("task", "__resume__", b"3"), ("task", "a", b"1")]


def test_writes_of_different_tasks_and_checkpoints_do_not_meet(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2")
    put_writes(shard, (0, "a", b"1"))
    put_writes(shard, (0, "a", b"2"), task="other")
    put_writes(shard, (0, "a", b"3"), checkpoint_id="2")
    assert pending(shard) == [("other", "a", b"2"), ("task", "a", b"1")]
    assert pending(shard, "2") == [("task", "a", b"3")]


def test_pending_writes_are_ordered_by_path_then_task_then_index(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (10, "k", b""), (2, "j", b""), (-1, "i", b""), task="z", path="~b")
    put_writes(shard, (0, "h", b""), task="y", path="~b")
    put_writes(shard, (0, "g", b""), task="zz", path="~a")
    put_writes(shard, (0, "f", b""), task="zzz")
    assert "".join(channel for _, channel, _ in pending(shard)) == "fghijk"


def test_writes_that_come_before_their_checkpoint_are_kept(shard: Shard) -> None:
    assert put_writes(shard, (0, "a", b"early"), checkpoint_id="2")
    assert get(shard) is None
    assert get(shard, "2") is None
    assert listed(shard, ListCheckpoints()) == []
    put_checkpoint(shard, "1")
    assert found(shard).checkpoint_id == "1"
    put_checkpoint(shard, "2")
    assert pending(shard, "2") == [("task", "a", b"early")]


def test_no_writes_are_no_change(shard: Shard) -> None:
    assert not put_writes(shard)
    assert shard.size() == EMPTY


# ------------------------------------------------------------------------ listing checkpoints


@pytest.fixture
def history(shard: Shard) -> Shard:
    put_checkpoint(shard, "1", "a", facets={"source": "input", "step": -1})
    put_checkpoint(shard, "4", "a", facets={"source": "loop", "step": 0})
    put_checkpoint(shard, "3", "a", "child", facets={"source": "loop", "step": 1})
    put_checkpoint(shard, "2", "b", facets={"source": "input"})
    put_checkpoint(shard, "4", "b", facets={"source": "fork", "step": None})
    return shard


def test_all_threads_are_listed_newest_first(history: Shard) -> None:
    assert listed(history, ListCheckpoints()) == [
        ("4", "b", ""),
        ("4", "a", ""),
        ("3", "a", "child"),
        ("2", "b", ""),
        ("1", "a", ""),
    ]


def test_without_a_namespace_all_of_a_thread_is_listed(history: Shard) -> None:
    assert listed_ids(history, ListCheckpoints("a")) == "4 3 1"


def test_the_empty_namespace_is_the_root_alone(history: Shard) -> None:
    assert listed_ids(history, ListCheckpoints("a", "")) == "4 1"
    assert listed_ids(history, ListCheckpoints("a", "child")) == "3"
    assert listed_ids(history, ListCheckpoints("a", "unknown")) == ""


@pytest.mark.parametrize(
    ("before", "expected"),
    [("4", "3 1"), ("35", "3 1"), ("3", "1"), ("1", ""), ("9", "4 3 1"), ("", "4 3 1")],
)
def test_before_is_strict_and_need_not_exist(history: Shard, before: str, expected: str) -> None:
    assert listed_ids(history, ListCheckpoints("a", before=before)) == expected


def test_one_checkpoint_can_be_listed(history: Shard) -> None:
    assert listed_ids(history, ListCheckpoints("a", checkpoint_id="3")) == "3"
    assert listed_ids(history, ListCheckpoints("a", checkpoint_id="3", before="3")) == ""
    assert listed_ids(history, ListCheckpoints("a", checkpoint_id="1", before="9")) == "1"
    assert listed_ids(history, ListCheckpoints("a", checkpoint_id="5")) == ""
    assert listed_ids(history, ListCheckpoints("a", checkpoint_id="")) == "4 3 1"


@pytest.mark.parametrize(
    ("facets", "expected"),
    [
        ({"source": "input"}, "2 1"),
        ({"source": "loop", "step": 0}, "4"),
        ({"source": "loop", "step": -1}, ""),
        ({"step": None}, "4"),
        ({"unknown": None}, ""),
    ],
)
def test_metadata_fields_have_to_be_there_and_equal(
    history: Shard, facets: dict[str, Scalar], expected: str
) -> None:
    assert listed_ids(history, ListCheckpoints(facets=facets)) == expected


def test_limit_counts_what_matches(history: Shard) -> None:
    assert listed_ids(history, ListCheckpoints(facets={"source": "input"}, limit=1)) == "2"
    assert listed_ids(history, ListCheckpoints(limit=0)) == ""
    assert listed_ids(history, ListCheckpoints("a", limit=9)) == "4 3 1"


def test_a_listed_checkpoint_is_whole(shard: Shard) -> None:
    put_checkpoint(shard, "1", parent_id="0", versions={"a": "1"}, blobs={"a": blob()})
    put_writes(shard, (0, "a", b"pending"))
    assert page(shard, ListCheckpoints()).rows == (found(shard),)


def test_an_unknown_thread_lists_empty_and_is_not_created(shard: Shard) -> None:
    assert page(shard, ListCheckpoints("nobody")) == CheckpointPage((), None)
    assert shard.size() == EMPTY


def test_a_page_holds_at_most_max_page_checkpoints(
    history: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 2)
    assert pages(history, ListCheckpoints()) == ["4 4", "3 2", "1"]
    assert listed_ids(history, ListCheckpoints(limit=3)) == "4 4"


def test_pages_end_between_checkpoints_of_the_same_id(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 2)
    for thread_id, checkpoint_ns in ("a", ""), ("a", "child"), ("b", "child"):
        put_checkpoint(shard, "1", thread_id, checkpoint_ns)
        put_checkpoint(shard, "2", thread_id, checkpoint_ns)
    assert pages(shard, ListCheckpoints()) == ["2 2", "2 1", "1 1", ""]


def test_a_page_ends_after_page_bytes_of_any_kind_of_value(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_queries, "PAGE_BYTES", 100)
    large = b"x" * 100
    put_checkpoint(shard, "5", data=large)
    put_checkpoint(shard, "4", metadata=large)
    put_checkpoint(shard, "3", versions={"a": 1}, blobs={"a": blob(large)})
    put_checkpoint(shard, "2")
    put_writes(shard, (0, "a", large), checkpoint_id="2")
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "0")
    assert pages(shard, ListCheckpoints()) == ["5", "4", "3", "2", "1 0"]


def test_a_page_of_checkpoints_ends_when_its_time_is_over(
    history: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(listed(history, ListCheckpoints())) == 5  # which has them brought into an order
    pages_end_after(monkeypatch, 2)
    assert pages(history, ListCheckpoints(facets={"source": "input"})) == ["", "2", "1"]
    assert pages(history, ListCheckpoints("a", facets={"source": "input"})) == ["", "1"]


def test_what_many_threads_have_is_brought_into_an_order_page_by_page(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        put_checkpoint(shard, f"{number}", f"t{number}")
    pages_end_after(monkeypatch, 2)
    query = ListCheckpoints(before="9")
    for number in range(7):  # one thread on each page, and others write meanwhile
        answer = page(shard, query)
        assert (answer.rows, answer.after is None) == ((), False)
        query = replace(query, after=answer.after)
        put_checkpoint(shard, f"{number}-more", f"t{number}")
    shard.execute(DeleteThread("t2"), 0)
    put_checkpoint(shard, "2-again", "t2")
    put_checkpoint(shard, "80", "t8")
    monkeypatch.undo()
    expected = "80 7 6-more 6 5-more 5 4-more 4 3-more 3 2-again 1-more 1 0-more 0"
    assert pages(shard, query) == [expected]


def test_a_listing_over_all_threads_costs_its_answer(shard: Shard) -> None:
    for number in range(1000):
        put_checkpoint(shard, f"{number:04}", f"t{number}")
    assert len(listed(shard, ListCheckpoints())) == 1000
    assert _work(shard, ListCheckpoints(limit=1)) < 100
    assert _work(shard, ListCheckpoints(before="0500", limit=1)) < 100
    assert _work(shard, ListCheckpoints(checkpoint_id="0500")) < 100


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_a_search_for_nothing_in_particular_costs_its_answer(shard: Shard, metric: Any) -> None:
    """Which a vector of zeros is; all items score the same."""
    one, none = (struct.pack("<2f", *vector) for vector in ((1, 0), (0, 0)))
    for number in range(1000):
        vectors = (Vector("$", one),) if number % 3 else ()
        shard.execute(PutItem((f"n{number % 7}",), f"{number}", blob(), vectors=vectors), 0)
    there = [(f"n{number % 7}", f"{number}", number % 3 > 0) for number in range(1000)]
    query = RankItems((), b"", none, 300, 0, metric=metric)
    assert _work(shard, replace(query, limit=1)) < 500
    given: list[tuple[str, str, bool]] = []
    while True:
        answer = shard.execute(query, 0).reply
        assert isinstance(answer, RankPage)
        given += [(r.row.namespace[0], r.row.key, r.score is not None) for r in answer.rows]
        assert {row.score for row in answer.rows} <= {0.0, None}
        if answer.after is None:
            break
        query = replace(query, after=answer.after)
    assert given == sorted(there, key=lambda each: (not each[2], *each[:2]))


def test_what_was_deleted_is_listed_no_more_and_once_when_it_is_back(shard: Shard) -> None:
    rng = random.Random(7)
    there: set[tuple[str, str, str]] = set()
    for _ in range(3000):
        thread, ns, checkpoint = (rng.choice(names) for names in ("abc", ["", "n"], "123456789"))
        match rng.randrange(10):
            case 0:
                shard.execute(DeleteThread(thread), 0)
                there = {place for place in there if place[1] != thread}
            case 1:
                shard.execute(PruneThread(thread, 1), 0)
                for each in "", "n":
                    there -= set(sorted(p for p in there if p[1:] == (thread, each))[:-1])
            case _:
                put_checkpoint(shard, checkpoint, thread, ns)
                there.add((checkpoint, thread, ns))
        assert listed(shard, ListCheckpoints()) == sorted(there, reverse=True)


def test_a_page_ends_by_time_where_checkpoints_have_many_channels(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in "123":
        put_checkpoint(shard, number, "t", versions={f"c{n}": 1 for n in range(100)})
    pages_end_after(monkeypatch, 256)
    assert pages(shard, ListCheckpoints("t")) == ["3", "2", "1", ""]


def test_a_thread_is_read_page_by_page_at_the_cost_of_what_is_left(shard: Shard) -> None:
    for number in range(1000):
        put_checkpoint(shard, f"{number:04}", versions={"a": 1, "b": number}, blobs={"b": blob()})
    after = Position("0990", "t", "")
    assert _work(shard, ReadThread("t", after)) < 1000
    answer = shard.execute(ReadThread("t", after), 0).reply
    assert isinstance(answer, ThreadPage)
    rest = [f"{n:04}" for n in range(991, 1000)]
    assert [each.checkpoint_id for each in answer.checkpoints] == rest
    assert [sorted(each.blobs) for each in answer.checkpoints] == [["b"]] * 9


def test_a_listing_goes_on_where_it_was_while_others_write_and_delete(
    history: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 2)
    first = page(history, ListCheckpoints())
    put_checkpoint(history, "5", "a")
    history.execute(DeleteThread("b"), 0)
    assert pages(history, ListCheckpoints(after=first.after)) == ["3 1", ""]


# ---------------------------------------------------------------------------- deleting threads


def test_deleting_a_thread_forgets_checkpoints_values_and_writes(shard: Shard) -> None:
    for checkpoint_ns in "", "child":
        put_checkpoint(shard, "1", "t", checkpoint_ns, versions={"a": 1}, blobs={"a": blob()})
    put_writes(shard, (0, "a", b"pending"))
    put_writes(shard, (0, "a", b"early"), checkpoint_id="2")
    shard.execute(DeleteThread("t"), 0)
    assert shard.size() == EMPTY
    assert get(shard) is None
    assert put_checkpoint(shard, "1", versions={"a": 1}, present=("a",)) == MissingBlobs(("a",))
    put_checkpoint(shard, "1")
    assert pending(shard) == []


def test_deleting_a_thread_leaves_the_others(history: Shard) -> None:
    history.execute(DeleteThread("a"), 0)
    assert listed(history, ListCheckpoints()) == [("4", "b", ""), ("2", "b", "")]


def test_deleting_what_is_not_there_is_done_without_a_record(shard: Shard) -> None:
    assert shard.execute(DeleteThread("t"), 0) == (Done(), None)
    assert shard.execute(DeleteItem(("a",), "k"), 0) == (Done(), None)


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


@pytest.fixture
def store(shard: Shard) -> Shard:
    for namespace, key in [
        (("users", "2"), "e"),
        (("users", "10"), "c"),
        (("users",), "b"),
        (("users", "10", "deep"), "d"),
        (("users\0",), "f"),
        (("usersx", "1"), "g"),
        (("docs",), "a"),
    ]:
        put_item(shard, namespace, key, {"key": key})
    return shard


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


def prefix(*path: str) -> Match:
    return Match("prefix", path)


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


# ------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("value", "filter_", "expected"),
    [
        # equality, plain and spelt out
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": {"$eq": 1}}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 3}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {}, True),
        # $ne
        ({"a": 1}, {"a": {"$ne": 1}}, False),
        ({"a": 1}, {"a": {"$ne": 2}}, True),
        ({"a": 1}, {"a": {"$ne": "1"}}, True),
        # order, of numbers and of text
        ({"a": 10}, {"a": {"$gt": 9}}, True),
        ({"a": 9}, {"a": {"$gt": 9}}, False),
        ({"a": 9}, {"a": {"$gte": 9}}, True),
        ({"a": 8.5}, {"a": {"$gte": 9}}, False),
        ({"a": 8.5}, {"a": {"$lt": 9}}, True),
        ({"a": 9}, {"a": {"$lt": 9}}, False),
        ({"a": 9}, {"a": {"$lte": 9.0}}, True),
        ({"a": 10}, {"a": {"$lte": 9}}, False),
        ({"a": "10"}, {"a": {"$gt": "9"}}, False),
        ({"a": "2026-02-01"}, {"a": {"$gte": "2026-01-31"}}, True),
        ({"a": 5}, {"a": {"$gt": 1, "$lt": 9}}, True),
        ({"a": 9}, {"a": {"$gt": 1, "$lt": 9}}, False),
        # order between different types never matches, and never raises
        ({"a": "10"}, {"a": {"$gt": 9}}, False),
        ({"a": 10}, {"a": {"$gt": "9"}}, False),
        ({"a": None}, {"a": {"$lt": 9}}, False),
        ({"a": [1]}, {"a": {"$lt": [2]}}, False),
        ({"a": {"b": 1}}, {"a": {"$gt": 0}}, False),
        # a missing field
        ({}, {"a": 1}, False),
        ({}, {"a": {"$ne": 1}}, True),
        ({}, {"a": {"$gt": 1}}, False),
        ({}, {"a": {"$lte": 1}}, False),
        ({}, {"a": {"b": 1}}, False),
        ({}, {"a": None}, True),
        # truth values are not numbers
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": True}, {"a": {"$ne": 1}}, True),
        ({"a": True}, {"a": {"$gt": 0}}, False),
        ({"a": 1}, {"a": {"$gte": False}}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": [True]}, {"a": {"$eq": [1]}}, False),
        ({"a": {"b": True}}, {"a": {"$eq": {"b": 1}}}, False),
        # nested maps match partly, $eq wholly
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 2}}, False),
        ({"a": {"b": {"c": 5}}}, {"a": {"b": {"c": {"$gt": 4}}}}, True),
        ({"a": {"b": {"c": 5}}}, {"a": {"b": {"c": {"$gt": 5}}}}, False),
        ({"a": {"c": 2}}, {"a": {"b": {"$ne": 1}}}, True),
        ({"a": 5}, {"a": {"b": 5}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"$eq": {"b": 1}}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"$eq": {"c": 2, "b": 1}}}, True),
        ({"a": {"$ref": 1}}, {"a": {"$eq": {"$ref": 1}}}, True),
        ({"a": {1: "x"}}, {"a": {1: "x"}}, True),
        ({"a": {1: "x"}}, {"a": {1: "y"}}, False),
        # lists match element by element
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [1, 2]}, {"a": [1, {"$gt": 1}]}, True),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": "xy"}, {"a": ["x", "y"]}, False),
        ({"a": [1, 2]}, {"a": 1}, False),
        # $in and $nin, of the value or of what is in it
        ({"a": 2}, {"a": {"$in": [1, 2.0]}}, True),
        ({"a": 3}, {"a": {"$in": [1, 2]}}, False),
        ({"a": 3}, {"a": {"$in": []}}, False),
        ({"a": True}, {"a": {"$in": [1]}}, False),
        ({"a": ["x", "y"]}, {"a": {"$in": ["y", "z"]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$in": [["x", "y"]]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$nin": ["z"]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$nin": ["y"]}}, False),
        ({"a": 3}, {"a": {"$nin": [1, 2], "$gt": 2}}, True),
        ({}, {"a": {"$nin": [1]}}, True),
        ({}, {"a": {"$in": [1, None]}}, True),
        # $exists
        ({"a": None}, {"a": {"$exists": True}}, True),
        ({}, {"a": {"$exists": True}}, False),
        ({}, {"a": {"$exists": False}}, True),
        ({"a": {"b": None}}, {"a": {"b": {"$exists": True}}}, True),
        ({"a": {}}, {"a": {"b": {"$exists": False}}}, True),
        ({"a": 1}, {"a": {"b": {"$exists": False}}}, False),  # no map, as any nested condition
        # $and, $or and $not, of the whole value and of a field
        ({"a": 1, "b": 2}, {"$or": [{"a": 2}, {"b": 2}]}, True),
        ({"a": 1, "b": 2}, {"$or": [{"a": 2}, {"b": 1}]}, False),
        ({"a": 1, "b": 2}, {"$and": [{"a": 1}, {"b": {"$gt": 1}}], "b": {"$lt": 3}}, True),
        ({"a": 1, "b": 2}, {"$and": [{"a": 1}, {"b": {"$gt": 2}}]}, False),
        ({"a": 1, "b": 2}, {"$not": {"a": 1, "b": 2}}, False),
        ({"a": 1, "b": 3}, {"$not": {"a": 1, "b": 2}}, True),
        ({"a": 1}, {"$not": {"$or": [{"a": 2}, {"$and": [{"a": 3}]}]}}, True),
        ({"a": 5}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": 6}, {"a": {"$not": {"$gt": 5}}}, False),
        ({}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": "x"}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": 7}, {"a": {"$or": [{"$lt": 2}, {"$and": [{"$gt": 5}, {"$ne": 6}]}]}}, True),
        ({"a": 6}, {"a": {"$or": [{"$lt": 2}, {"$and": [{"$gt": 5}, {"$ne": 6}]}]}}, False),
        ({"a": {"b": 1}}, {"a": {"$or": [{"b": 2}, {"b": {"$in": [1]}}]}}, True),
        ({"a": [{"b": 1}, 5]}, {"a": [{"$not": {"b": 2}}, {"$in": [5]}]}, True),
    ],
)
def test_filters_match_as_documented(
    shard: Shard, value: dict[str, Any], filter_: dict[str, Any], expected: bool
) -> None:
    put_item(shard, ("n",), "k", value)
    assert (keys(search(shard, (), filter_)) == "k") is expected


@pytest.mark.parametrize(
    "filter_",
    [
        {"a": {"$regex": "x"}},
        {"a": {"b": {"$regex": "x"}}},
        {"a": [{"$regex": "x"}]},
        {"$regex": "x"},
        {"$or": [{"a": 1}, {"$regex": "x"}]},
        {"$and": [{"a": {"$not": {"$regex": "x"}}}]},
        {"a": {"$or": [{"$gt": 1}, {"b": {"$regex": "x"}}]}},
    ],
)
def test_an_unknown_operator_is_refused_and_named(shard: Shard, filter_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"'\$regex'; known: \$eq, \$gt, \$gte, \$lt"):
        search(shard, (), filter_)


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"$and": []}, r"\$and takes a list of conditions, at least one"),
        ({"$or": {"a": 1}}, r"\$or takes a list of conditions"),
        ({"$or": [1]}, r"\$or takes a list of conditions"),
        ({"a": {"$and": [1]}}, r"\$and takes a list of conditions"),
        ({"$not": 1}, r"\$not takes a condition"),
        ({"a": {"$not": {}}}, r"\$not takes a condition"),
        ({"a": {"$in": 1}}, r"\$in takes a list of values"),
        ({"a": {"$nin": "abc"}}, r"\$nin takes a list of values"),
        ({"a": {"$in": [{"$gt": 1}]}}, r"\$in takes a list of values, and no conditions"),
        ({"a": {"$exists": 1}}, r"\$exists takes True or False"),
        ({"$gt": 1}, r"\$gt compares one field: \{'field': \{'\$gt': \.\.\.\}\}"),
        ({"$or": [{"$eq": 1}]}, r"\$eq compares one field"),
    ],
)
def test_an_operator_with_an_operand_that_it_cannot_take_is_refused(
    shard: Shard, filter_: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"filter operator {message}"):
        search(shard, (), filter_)


@pytest.mark.parametrize("value", [{f"k{n}": n for n in range(5000)}, [[*range(5000)]]])
def test_what_many_conditions_look_into_is_gone_through_once(shard: Shard, value: Any) -> None:
    put_item(shard, ("n",), "k", {"f": value})
    one, many = (
        pack({"$and": [{"f": {"$nin": [f"no {n}"]}} for n in range(count)]}) for count in (1, 100)
    )
    least, most = (_work(shard, SearchItems((), each, MANY, 0)) for each in (one, many))
    assert most < 5 * least


@pytest.mark.parametrize("operator", ["$in", "$nin"])
@pytest.mark.parametrize("count", [0, 40], ids=["short", "long"])
def test_what_a_list_is_compared_with_is_found_as_by_equality(
    shard: Shard, operator: str, count: int
) -> None:
    plain: list[Any] = [1, True, 1.0, 0, False, None, "1", "", b"1"]
    operands = [*plain, [1], [True], {"a": 1}, {"a": True}, [[]]]
    values = [*operands, *([*[f"filler {n}" for n in range(count)], each] for each in operands)]
    for number, value in enumerate(values):
        put_item(shard, ("n",), f"{number:02}", {"x": value})
    for operand in operands:
        equal = [
            any(filters._equal(each, operand) for each in [v, *(v if type(v) is list else [])])
            for v in values
        ]
        expected = [
            f"{n:02}" for n, is_equal in enumerate(equal) if is_equal == (operator == "$in")
        ]
        found = keys(search(shard, ("n",), {"x": {operator: ["no", operand]}})).split()
        assert found == expected


@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ({f"f{n}": {"$ne": 1} for n in range(300)}, 300),
        ({"$or": [{"a": n} for n in range(257)]}, 257),
        ({"$and": [{"a": 1, "b": {"c": 1, "d": {"$gt": 1, "$lt": 2}}}] * 100}, 400),
        ({"a": {"$in": [[n] for n in range(300)]}}, 300),
        ({"a": [{} for n in range(300)]}, 300),
    ],
)
def test_a_filter_with_too_many_conditions_is_refused(
    shard: Shard, filter_: dict[str, Any], count: int
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^filter: {count} conditions, at most 256$"):
        search(shard, (), filter_)


def test_a_filter_may_name_as_many_values_as_fit(shard: Shard) -> None:
    put_item(shard, ("n",), "k", {"id": "id 5000", "ids": list(range(1000))})
    ids = [f"id {n}" for n in range(5001)]
    assert keys(search(shard, (), {"id": {"$in": ids}, "ids": list(range(1000))})) == "k"
    assert keys(search(shard, (), {"$or": [{"id": each} for each in ids[-256:]]})) == "k"


@pytest.mark.parametrize("name", ["$not", "$and", "a"])
@pytest.mark.parametrize("depth", [16, 17, 30, 31, 32, 400])
def test_deep_filters_are_decided_rightly_or_refused(shard: Shard, name: str, depth: int) -> None:
    put_item(shard, ("n",), "k", {"x": 1})
    filter_: Any = {"x": {"$eq": 1}}
    for _ in range(depth - 1):
        filter_ = {name: [filter_] if name == "$and" else filter_}
    levels = 2 * depth if name == "$and" else depth + 1  # the innermost condition is two maps
    if levels > MAX_LEVELS:
        words = f"filter: more than {MAX_LEVELS} levels of maps and lists"
        with pytest.raises(InvalidRequestError, match=words):
            search(shard, (), filter_)
        return
    expected = {"a": "", "$and": "k", "$not": "k" if depth % 2 else ""}[name]
    assert keys(search(shard, (), filter_)) == expected


@pytest.mark.parametrize(
    "encoded",
    [pack([1]), pack("a"), pack({1: 2}), b"\xc1", pack({"a": 1})[:-1]],
    ids=["list", "text", "number as field", "invalid", "cut off"],
)
def test_a_filter_that_is_no_map_of_fields_is_refused(shard: Shard, encoded: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="filter is not a map"):
        shard.execute(SearchItems((), encoded, 1, 0), 0)


def test_a_bottomless_filter_is_refused(shard: Shard) -> None:
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        shard.execute(SearchItems((), b"\x81\xa1a" * 20_000 + b"\x01", 1, 0), 0)


def test_an_encrypted_item_cannot_be_filtered_and_the_error_says_what_to_do(shard: Shard) -> None:
    shard.execute(PutItem(("n",), "k", ("msgpack+aes", b"secret")), 0)
    with pytest.raises(InvalidRequestError, match=r"'msgpack\+aes' cannot be filtered.*filter="):
        search(shard, ("n",), {"a": 1})
    assert keys(search(shard, ("n",))) == "k"
    assert keys(search(shard, ("other",), {"a": 1})) == ""


def test_an_item_that_is_no_plain_map_does_not_match_and_hides_no_other(shard: Shard) -> None:
    strange = {
        "bottomless": b"\x81\xa1a" * 20_000 + b"\x01",
        "cut off": pack({"a": 1})[:-1],
        "list": pack(["a"]),
        "number as field": pack({1: 1}),
    }
    for key, data in strange.items():
        shard.execute(PutItem(("n",), key, blob(data)), 0)
    put_item(shard, ("n",), "plain", {"a": 1})
    assert keys(search(shard, (), {"a": 1})) == "plain"


def test_values_of_langgraphs_serializer_can_be_filtered(shard: Shard) -> None:
    value = {"text": "ü", "n": 2, "tags": ("x", "y"), "ids": {1, 2}, "map": {3: None}}
    shard.execute(PutItem(("n",), "k", JsonPlusSerializer().dumps_typed(value)), 0)
    assert keys(search(shard, (), {"text": "ü", "n": {"$gt": 1}, "map": {3: None}})) == "k"
    assert keys(search(shard, (), {"ids": {"$ne": 1}, "tags": {"$ne": None}})) == "k"
    assert keys(search(shard, (), {"ids": {"$gt": 0}})) == ""


_plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b", "$eq", "$ne", "$gt", "$lte"]) | st.integers(0, 2),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, database=None)
@given(
    data=st.binary(max_size=20) | st.dictionaries(st.sampled_from("ab"), _plain).map(pack),
    filter_=st.dictionaries(st.sampled_from("ab"), _plain),
)
def test_no_value_and_no_filter_raise_anything_else(data: bytes, filter_: dict[str, Any]) -> None:
    shard = Shard()
    shard.execute(PutItem(("n",), "k", blob(data)), 0)
    with suppress(InvalidRequestError):
        search(shard, (), filter_)


@settings(max_examples=200, deadline=None, database=None)
@given(value=_plain, other=_plain)
def test_eq_matches_what_was_stored_and_ne_is_its_opposite(value: Any, other: Any) -> None:
    shard = Shard()
    put_item(shard, ("n",), "k", {"a": value})
    assert keys(search(shard, (), {"a": {"$eq": value}})) == "k"
    equal = keys(search(shard, (), {"a": {"$eq": other}})) == "k"
    unequal = keys(search(shard, (), {"a": {"$ne": other}})) == "k"
    assert equal != unequal


# ---------------------------------------------------------------------------------------- cost


def _work(shard: Shard, command: Command) -> int:
    """How many calls a command takes, of Python and of C functions alike."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        shard.execute(command, 0)
    finally:
        sys.setprofile(previous)
    return calls


@pytest.mark.parametrize(
    "command",
    [
        GetCheckpoint("t500", "", None),
        ListCheckpoints("t500"),
        PutCheckpoint("t500", "", "2", None, blob(), blob(), {}, {}, {}),
        PutWrites("t500", "", "1", "task", "", (Write(0, "a", blob()),)),
        DeleteThread("t500"),
        GetItem(("users", "500"), "k"),
        PutItem(("users", "500"), "new", blob()),
        DeleteItem(("users", "500"), "k"),
        SearchItems(("users", "500"), b"", 10, 0),
        SearchItems(("users", "500"), pack({"a": 1}), 10, 0),
        ListNamespaces((prefix("users", "500"),), None, 10, 0),
    ],
    ids=lambda command: type(command).__name__,
)
def test_the_work_does_not_grow_with_the_other_threads_and_items(command: Command) -> None:
    def filled(others: range) -> Shard:
        shard = Shard()
        for number in others:
            put_checkpoint(shard, "1", f"t{number}")
            put_item(shard, ("users", str(number)), "k", {"a": 1})
        return shard

    few, many = (_work(filled(others), command) for others in (range(500, 501), range(1000)))
    assert many <= few + 20


def test_one_checkpoint_is_listed_without_walking_its_thread(shard: Shard) -> None:
    for number in range(1000):
        put_checkpoint(shard, f"{number:04}")
    assert _work(shard, ListCheckpoints("t", checkpoint_id="0500")) < 100
    assert _work(shard, ListCheckpoints("t", before="0500", limit=1)) < 100


# ------------------------------------------------------------------------------ size and limits


def test_the_size_is_that_of_the_values_held_now(shard: Shard) -> None:
    for data, length in (b"1234567", 7), (b"12", 2):
        for _ in range(2):
            put_checkpoint(
                shard, "1", data=data, metadata=data, versions={"a": 1}, blobs={"a": blob(data)}
            )
            put_writes(shard, (-1, "__error__", data))
            shard.execute(PutItem(("n",), "k", blob(data)), 0)
            assert shard.size() == ShardSize(
                threads=1, checkpoints=1, items=1, blob_bytes=5 * length
            )


@pytest.mark.parametrize(
    "command",
    [
        ListCheckpoints(limit=-1),
        SearchItems((), b"", limit=-1, offset=0),
        SearchItems((), b"", limit=1, offset=-1),
        SearchItems((), b"x" * (64 * 1024 + 1), limit=1, offset=0),
        ListNamespaces((), max_depth=0, limit=1, offset=0),
        GetItem(("a",) * 65, "k"),
        GetItem(("a",), "k" * (64 * 1024 + 1)),
    ],
    ids=["limit", "limit", "offset", "filter", "depth", "labels", "key"],
)
def test_commands_beyond_the_limits_are_not_decoded(command: Command) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(pack(command), type=Command)


def test_a_value_that_is_not_utf8_is_passed_over_by_filters(store: Shard) -> None:
    broken = PutItem(("users",), "broken", ("msgpack", b"\x81\xa3key\xa1\xff"))
    store.execute(broken, 1)
    found = item_pages(store, SearchItems((), pack({"key": "c"}), MANY, 0))
    assert found == ["c"]


def test_a_filter_that_is_not_utf8_is_refused(store: Shard) -> None:
    with pytest.raises(InvalidRequestError, match="filter"):
        store.execute(SearchItems((), b"\x81\xa3key\xa1\xff", MANY, 0), 1)
