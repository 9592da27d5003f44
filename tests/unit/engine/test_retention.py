"""What a shard forgets by itself, and what it finds by similarity: rules of the engine by name."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheEntry,
    CacheGet,
    CacheSet,
    DeleteItem,
    GetItem,
    ListCheckpoints,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
)
from flowgentic_actors.engine.expiry import Expiry
from flowgentic_actors.engine.model import Blob, Vector, Version, Write
from flowgentic_actors.engine.records import CheckpointsDropped, ItemStored
from flowgentic_actors.engine.replies import Cached, CheckpointPage, Conflict, ItemReply, RankPage
from flowgentic_actors.engine.thread_plans import Retention
from flowgentic_actors.errors import ColdValuesError, InvalidRequestError

BLOB: Blob = ("msgpack", b"x" * 10)


def checkpoint(number: int, parent: int | None = None, **given: Any) -> PutCheckpoint:
    versions: dict[str, Version] = {"a": f"{number}"}
    parent_id = None if parent is None else f"{parent:04}"
    put = PutCheckpoint("t", "", f"{number:04}", parent_id, BLOB, BLOB, {}, versions, {"a": BLOB})
    return replace(put, **given)


def put(shard: Shard, command: PutCheckpoint, now_us: int) -> CheckpointsDropped | None:
    record = shard.execute(command, now_us).record
    assert record is not None
    trimmed = shard.decide_trim(record)
    if trimmed is not None:
        shard.apply(trimmed)
    return trimmed


def ids(shard: Shard) -> list[str]:
    page = shard.execute(ListCheckpoints(), 0).reply
    assert isinstance(page, CheckpointPage)
    return [row.checkpoint_id for row in page.rows]


# ---------------------------------------------------------------------- keep_last


def test_one_checkpoint_goes_for_each_that_comes() -> None:
    shard = Shard(retention=Retention(keep_last=3))
    for number in range(10):
        trimmed = put(shard, checkpoint(number, number - 1 if number else None), number)
        assert (trimmed is not None) == (number >= 3)
    assert ids(shard) == ["0009", "0008", "0007"]
    assert shard.size().blob_bytes == 3 * 3 * 10


def test_a_value_that_a_kept_checkpoint_has_stays() -> None:
    shard = Shard(retention=Retention(keep_last=2))
    put(shard, checkpoint(0, versions={"a": "0", "b": "b"}, blobs={"a": BLOB, "b": BLOB}), 1)
    for number in range(1, 6):
        versions = {"a": str(number), "b": "b"}
        put(shard, checkpoint(number, versions=versions, present=("b",)), number + 1)
    page = shard.execute(ListCheckpoints(), 0).reply
    assert isinstance(page, CheckpointPage)
    assert [set(row.blobs) for row in page.rows] == [{"a", "b"}] * 2


def test_what_a_kept_delta_channel_is_made_from_stays_until_it_is_not_needed() -> None:
    shard = Shard(retention=Retention(keep_last=1))
    for number in range(1, 7):
        snapshot = number % 3 == 1
        command = checkpoint(
            number,
            number - 1,
            versions={"d": str(number)},
            blobs={"d": BLOB} if snapshot else {},
            deltas=("d",),
        )
        put(shard, command, number)
    assert ids(shard) == ["0006", "0005", "0004"]  # the last value is at 4
    put(shard, checkpoint(7, 6, versions={"d": "7"}, blobs={"d": BLOB}, deltas=("d",)), 7)
    assert ids(shard) == ["0007"]


def test_writes_that_come_after_their_checkpoint_was_dropped_are_not_kept() -> None:
    shard = Shard(retention=Retention(keep_last=2))
    for number in range(1, 5):
        put(shard, checkpoint(number), number)
    late = PutWrites("t", "", "0001", "task", "", (Write(0, "a", BLOB),))
    assert shard.execute(late, 9).record is None
    early = replace(late, checkpoint_id="0009")  # its checkpoint is still to come
    assert shard.execute(early, 9).record is not None


def test_a_checkpoint_that_must_follow_is_refused_where_it_does_not() -> None:
    shard = Shard()
    assert shard.execute(checkpoint(1, follows=True), 1).record is not None
    assert shard.execute(checkpoint(2, 1, follows=True), 2).record is not None
    assert shard.execute(checkpoint(3, 1, follows=True), 3).reply == Conflict("0002")
    assert shard.execute(checkpoint(3, follows=True), 3).reply == Conflict("0002")
    assert shard.execute(checkpoint(2, 1, follows=True), 3).record is not None  # put again
    assert shard.execute(checkpoint(3, 1), 4).record is not None  # a fork that is meant


# ---------------------------------------------------------------------- lives


def test_threads_are_over_in_the_order_of_their_last_write() -> None:
    shard = Shard(retention=Retention(ttl_us=100))
    for time_us, thread in ((1, "a"), (2, "b"), (3, "c"), (50, "a")):
        shard.execute(replace(checkpoint(time_us), thread_id=thread), time_us)
    assert shard.next_expiry_us() == 102
    assert shard.decide_expire(101) is None
    record = shard.decide_expire(103)
    assert record is not None
    shard.apply(record)
    assert shard.size().threads == 1
    assert shard.next_expiry_us() == 150
    shard.apply(record)  # as after a restart
    assert shard.size().threads == 1


def test_threads_of_several_journals_are_over_in_the_order_of_time() -> None:
    """After a re-sharding their records come one journal after the other."""
    shard = Shard(retention=Retention(ttl_us=100))
    for time_us, thread in ((30, "a"), (40, "b"), (10, "c"), (35, "d")):
        shard.execute(replace(checkpoint(time_us), thread_id=thread), time_us)
    over = [shard.decide_expire(now) for now in (110, 130)]
    assert [record and record.thread_ids for record in over] == [("c",), ("c", "a")]  # type: ignore[union-attr]


def test_the_queue_of_lives_does_not_grow_with_what_is_put_again() -> None:
    expiry = Expiry()
    place = (("a",), "k")
    for time_us in range(1, 10_000):
        expiry.begin(place, time_us + 50, 50)
        if time_us % 3 == 0:
            expiry.forget(place)
    assert len(expiry._queue) < 3000
    expiry.begin(place, 20_000, 50)
    expiry.begin(place, 5, 5)  # shorter than before
    assert expiry.over(6, 10) == [place]
    assert expiry.over(6, 10) == [place]  # nobody has forgotten it


def test_what_remains_of_a_refreshed_item_has_its_new_life() -> None:
    shard = Shard()
    stored = shard.execute(PutItem(("a",), "k", BLOB, ttl_us=100), 1_000).record
    assert isinstance(stored, ItemStored)
    journaled = Shard(hot_bytes=0, searchable=False)
    journaled.apply(stored, 7)
    read = shard.execute(GetItem(("a",), "k", refresh=True), 1_050)
    assert isinstance(read.reply, ItemReply)
    assert read.record is not None
    journaled.apply(read.record, 8)
    remains = journaled.live_part(7, stored)
    assert remains == replace(stored, expires_us=1_150)
    assert journaled.live_part(8, read.record) is None
    again = Shard()
    assert remains is not None
    again.apply(remains)
    assert again.execute(GetItem(("a",), "k"), 1_149).reply == read.reply
    assert again.execute(GetItem(("a",), "k"), 1_150).reply == ItemReply(None)


# ---------------------------------------------------------------------- similarity


def floats(vector: Any) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


def ranked(shard: Shard, **given: Any) -> list[tuple[str, float | None]]:
    """All pages of a search."""
    query = replace(RankItems((), b"", floats([1, 0, 0, 0]), 10**6, 0), **given)
    found: list[tuple[str, float | None]] = []
    while True:
        page = shard.execute(query, 0).reply
        assert isinstance(page, RankPage)
        found += [(scored.row.key, scored.score) for scored in page.rows]
        if page.after is None or len(found) >= query.limit:
            return found
        left = query.limit - len(found) if "limit" in given else query.limit
        query = replace(query, after=page.after, offset=query.offset - page.skipped, limit=left)


def test_ranking_is_that_of_plain_arithmetic() -> None:
    rng = random.Random(7)
    shard = Shard()
    items: dict[str, list[list[float]]] = {}
    for number in range(700):
        key = f"{rng.randrange(400):03}"
        items[key] = [[rng.gauss(0, 1) for _ in range(8)] for _ in range(rng.randrange(4))]
        vectors = tuple(Vector(str(n), floats(v)) for n, v in enumerate(items[key]))
        shard.execute(PutItem((key[0],), key, BLOB, vectors=vectors), number + 1)
        if number % 5 == 0:
            gone = rng.choice(list(items))
            del items[gone]
            shard.execute(DeleteItem((gone[0],), gone), number + 1)
    query = [rng.gauss(0, 1) for _ in range(8)]

    def score(vectors: list[list[float]]) -> float:
        return max(
            sum(a * b for a, b in zip(query, v, strict=True)) / math.hypot(*query) / math.hypot(*v)
            for v in vectors
        )

    for prefix in ((), ("1",), ("nothing",)):
        below = {k: v for k, v in items.items() if k[0] in prefix or not prefix}
        expected = {k: score(v) for k, v in below.items() if v}
        found = ranked(shard, vector=floats(query), prefix=prefix)
        scored = [(k, s) for k, s in found if s is not None]
        assert dict(scored) == pytest.approx(expected, abs=1e-6)
        assert all(a[1] >= b[1] for a, b in pairwise(scored))
        assert [k for k, s in found if s is None] == sorted(k for k, v in below.items() if not v)
    assert shard.size().vector_bytes == sum(len(v) for v in items.values()) * 8 * 4


def test_equal_scores_are_ordered_by_place_and_pages_are_whole() -> None:
    shard = Shard()
    for number in range(300):
        vector = Vector("$", floats([1, number % 2, 0, 0]))
        command = PutItem((str(number % 3),), f"{number:03}", BLOB, vectors=(vector,))
        shard.execute(command, number + 1)
    whole = ranked(shard)
    places = [(-(s or 0), str(int(k) % 3), k) for k, s in whole]
    assert places == sorted(places)
    paged = [ranked(shard, limit=7, offset=offset) for offset in range(0, 301, 7)]
    assert [row for page in paged for row in page] == whole


def test_an_item_with_vectors_of_another_size_has_no_score() -> None:
    shard = Shard()
    shard.execute(PutItem(("a",), "other", BLOB, vectors=(Vector("$", floats([1, 2])),)), 1)
    shard.execute(PutItem(("a",), "zero", BLOB, vectors=(Vector("$", floats([0] * 4)),)), 2)
    assert ranked(shard) == [("zero", 0.0), ("other", None)]


@pytest.mark.parametrize("data", [b"", b"12345", floats([1, float("nan")]), floats([math.inf])])
def test_a_vector_that_is_none_is_refused_and_nothing_changes(data: bytes) -> None:
    shard = Shard()
    with pytest.raises(InvalidRequestError, match=r"the vector of 'x'"):
        shard.execute(PutItem(("a",), "k", BLOB, vectors=(Vector("x", data),)), 1)
    assert shard.size().items == 0


def test_a_filter_on_cold_values_ranks_as_on_hot_ones() -> None:
    shard = Shard(hot_bytes=0)
    records = []
    for number in range(40):
        value = msgspec.msgpack.encode({"n": number, "pad": "x" * 100})
        vector = Vector("$", floats([1, number / 40, 0, 0]))
        command = PutItem(("a",), f"{number:02}", ("msgpack", value), vectors=(vector,))
        planned = shard.decide(command, number + 1)
        assert planned.record is not None
        records.append(planned.record)
        shard.apply(planned.record, number)
        shard.cool(number + 1)
    keep = msgspec.msgpack.encode({"n": {"$gte": 30}})
    query = RankItems((), keep, floats([1, 0, 0, 0]), 3, 0)
    for _ in range(50):
        try:
            page = shard.query(query, 0)
        except ColdValuesError as cold:
            for lsn in cold.lsns:
                shard.warm(lsn, records[lsn], lasting=True)
            continue
        assert isinstance(page, RankPage)
        if page.rows:
            break
        assert page.after is not None
        query = replace(query, after=page.after)
    assert isinstance(page, RankPage)
    assert [scored.row.key for scored in page.rows] == ["30", "31", "32"]


# ---------------------------------------------------------------------- the cache


def test_cached_values_are_no_part_of_what_is_recorded() -> None:
    shard = Shard(cache_bytes=5_000)
    key = (("a",), "k")
    applied = shard.execute(CacheSet((CacheEntry(key, BLOB, 10),)), 100)
    assert applied.record is None
    assert shard.execute(CacheGet((key, (("a",), "l"))), 109).reply == Cached((BLOB, None))
    assert shard.execute(CacheGet((key,)), 110).reply == Cached((None,))
    assert shard.size().cached == 0
    many = tuple(CacheEntry((("a",), str(n)), ("bytes", bytes(200))) for n in range(20))
    shard.execute(CacheSet(many), 111)
    assert 0 < shard.size().cache_bytes <= 5_000
    shard.execute(CacheClear(None), 112)
    assert (shard.size().cached, shard.size().cache_bytes) == (0, 0)
