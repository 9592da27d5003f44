"""Listings of checkpoints: rules of LangGraph's savers, one test each."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from msgspec.structs import replace

from flowgentic_actors.engine import Shard, pace, thread_queries
from flowgentic_actors.engine.commands import (
    DeleteThread,
    ListCheckpoints,
    PruneThread,
    PutItem,
    RankItems,
    ReadThread,
)
from flowgentic_actors.engine.model import Position, Scalar, Vector
from flowgentic_actors.engine.replies import CheckpointPage, RankPage, ThreadPage
from tests.support.engine_commands import (
    EMPTY,
    blob,
    found,
    listed,
    listed_ids,
    page,
    pages,
    pages_end_after,
    put_checkpoint,
    put_writes,
    work,
)


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


def test_a_listing_over_all_threads_costs_its_answer(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "PAGE_SECONDS", 60.0)
    for number in range(1000):
        put_checkpoint(shard, f"{number:04}", f"t{number}")
    assert len(listed(shard, ListCheckpoints())) == 1000
    assert work(shard, ListCheckpoints(limit=1)) < 100
    assert work(shard, ListCheckpoints(before="0500", limit=1)) < 100
    assert work(shard, ListCheckpoints(checkpoint_id="0500")) < 100


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_a_search_for_nothing_in_particular_costs_its_answer(shard: Shard, metric: Any) -> None:
    """Which a vector of zeros is; all items score the same."""
    one, none = (struct.pack("<2f", *vector) for vector in ((1, 0), (0, 0)))
    for number in range(1000):
        vectors = (Vector("$", one),) if number % 3 else ()
        shard.execute(PutItem((f"n{number % 7}",), f"{number}", blob(), vectors=vectors), 0)
    there = [(f"n{number % 7}", f"{number}", number % 3 > 0) for number in range(1000)]
    query = RankItems((), b"", none, 300, 0, metric=metric)
    assert work(shard, replace(query, limit=1)) < 500
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
    assert work(shard, ReadThread("t", after)) < 1000
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
