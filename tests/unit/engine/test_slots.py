"""What slot a command, a record and a cached value are about."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheEntry,
    CacheGet,
    CacheSet,
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    FindRuns,
    GetChannelHistory,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    Match,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    DroppedFrom,
    ItemDeleted,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    Record,
    ThreadDeleted,
    ThreadsExpired,
    WritesStored,
)
from flowgentic_actors.engine.slots import (
    SLOTS,
    SlotSet,
    part_of,
    slot_of_cached,
    slot_of_command,
    slot_of_namespace,
    slot_of_thread,
)

DEPTH = 2
EACH = even_table(SLOTS, DEPTH)
"""A table in which every slot is a shard of its own: its shards are slots."""

BLOB = ("msgpack", b"\xc0")
DEEP = ("team", "a", "deep")


def vector(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


# ---------------------------------------------------------------------- commands

ABOUT_THREADS: list[Command] = [
    PutCheckpoint("t", "", "1", None, BLOB, BLOB, {}, {}, {}),
    PutWrites("t", "", "1", "task", "", (Write(0, "c", BLOB),)),
    GetCheckpoint("t", "", None),
    ListCheckpoints("t"),
    GetChannelHistory("t", "", None, ("c",)),
    ReadThread("t"),
    DeleteThread("t"),
    DropRuns("t", ("r",)),
    PruneThread("t", 1),
]
ABOUT_NAMESPACES: list[Command] = [
    PutItem(DEEP, "k", BLOB),
    GetItem(DEEP, "k"),
    DeleteItem(DEEP, "k"),
    SearchItems(DEEP, b"", 1, 0),
    RankItems(DEEP, b"", vector(1.0), 1, 0),
]
ABOUT_MANY: list[Command] = [
    ListCheckpoints(),
    SearchItems((), b"", 1, 0),
    SearchItems(("team",), b"", 1, 0),
    RankItems(("team",), b"", vector(1.0), 1, 0),
    ListNamespaces((Match("prefix", DEEP),), None, 10, 0),
    FindRuns(("r",)),
    ListThreads("t", 10),
    CacheGet(((("c",), "k"),)),
    CacheSet((CacheEntry((("c",), "k"), BLOB),)),
    CacheClear(),
]


def test_every_command_is_told_apart() -> None:
    kinds = {type(command) for command in (*ABOUT_THREADS, *ABOUT_NAMESPACES, *ABOUT_MANY)}
    assert kinds == set(get_args(Command))


@pytest.mark.parametrize("command", ABOUT_THREADS, ids=lambda c: type(c).__name__)
def test_what_is_about_a_thread_has_the_slot_by_which_clients_find_it(command: Command) -> None:
    assert slot_of_command(command, DEPTH) == EACH.of_thread("t")


@pytest.mark.parametrize("command", ABOUT_NAMESPACES, ids=lambda c: type(c).__name__)
def test_what_is_about_a_namespace_has_the_slot_of_its_leading_labels(command: Command) -> None:
    assert slot_of_command(command, DEPTH) == EACH.of_namespace(DEEP)
    assert slot_of_command(command, 1) == even_table(SLOTS, 1).of_namespace(DEEP)
    assert slot_of_command(command, 1) != slot_of_command(command, DEPTH)


@pytest.mark.parametrize("command", ABOUT_MANY, ids=lambda c: type(c).__name__)
def test_what_is_asked_of_all_shards_has_no_slot(command: Command) -> None:
    assert slot_of_command(command, DEPTH) is None


def test_the_items_of_a_short_namespace_have_a_slot_and_a_search_below_it_has_none() -> None:
    assert slot_of_command(PutItem(("team",), "k", BLOB), DEPTH) == EACH.of_namespace(("team",))
    assert slot_of_command(SearchItems(("team",), b"", 1, 0), DEPTH) is None


def test_the_empty_thread_is_a_thread() -> None:
    assert slot_of_command(ListCheckpoints(""), DEPTH) == EACH.of_thread("")


@given(st.text(max_size=20), st.lists(st.text(max_size=5), min_size=1, max_size=4))
def test_a_client_and_a_shard_agree_on_every_key(thread: str, labels: list[str]) -> None:
    namespace = tuple(labels)

    assert slot_of_command(GetCheckpoint(thread, "", None), DEPTH) == EACH.of_thread(thread)
    assert slot_of_command(GetItem(namespace, "k"), DEPTH) == EACH.of_namespace(namespace)
    if len(namespace) >= DEPTH:
        search = SearchItems(namespace, b"", 1, 0)
        assert slot_of_command(search, DEPTH) == EACH.of_namespace(namespace)
    assert slot_of_command(SearchItems(namespace[: DEPTH - 1], b"", 1, 0), DEPTH) is None


# ---------------------------------------------------------------------- records

HERE, THERE = ("here", "n"), ("there", "n")
ITEM_HERE, ITEM_THERE = (HERE, "k"), (THERE, "k")


def within_here(slot: int) -> bool:
    return slot in (slot_of_namespace(HERE, DEPTH), slot_of_thread("here"))


def of_one(thread: str, namespace: tuple[str, ...]) -> list[Record]:
    """A record of each kind that is about one thread, or one item."""
    return [
        CheckpointStored(thread, "", "1", None, BLOB, BLOB, {}, {"c": 1}, {"c": BLOB}),
        WritesStored(thread, "", "1", "task", "", (Write(0, "c", BLOB),)),
        ThreadDeleted(thread),
        CheckpointsDropped(thread, (DroppedFrom("", ("1",), ()),)),
        BlobsKept(thread, "", {"c": 1}, {"c": BLOB}),
        ItemStored(namespace, "k", BLOB, 1, 1),
        ItemDeleted(namespace, "k"),
    ]


OF_SEVERAL: list[tuple[Record, Record, Record]] = [
    (
        ItemsRefreshed((ITEM_HERE, ITEM_THERE), 7),
        ItemsRefreshed((ITEM_HERE,), 7),
        ItemsRefreshed((ITEM_THERE,), 7),
    ),
    (
        ItemsExpired((ITEM_THERE, ITEM_HERE)),
        ItemsExpired((ITEM_HERE,)),
        ItemsExpired((ITEM_THERE,)),
    ),
    (
        ThreadsExpired(("here", "there")),
        ThreadsExpired(("here",)),
        ThreadsExpired(("there",)),
    ),
]


def test_every_record_is_told_apart() -> None:
    kinds = {type(record) for record in of_one("here", HERE)}
    assert kinds | {type(whole) for whole, _, _ in OF_SEVERAL} == set(get_args(Record))


def test_a_record_about_one_key_is_said_whole_or_not_at_all() -> None:
    for record in of_one("here", HERE):
        assert part_of(record, within_here, DEPTH) is record
    for record in of_one("there", THERE):
        assert part_of(record, within_here, DEPTH) is None


@pytest.mark.parametrize(("whole", "here", "there"), OF_SEVERAL)
def test_a_record_about_several_keys_is_cut(whole: Record, here: Record, there: Record) -> None:
    assert part_of(whole, within_here, DEPTH) == here
    assert part_of(here, within_here, DEPTH) == here
    assert part_of(there, within_here, DEPTH) is None


# ---------------------------------------------------------------------- sets of slots


@given(st.sets(st.integers(0, SLOTS - 1)))
def test_a_set_of_slots_is_what_was_packed(slots: set[int]) -> None:
    made = SlotSet(SlotSet.pack(slots))

    assert list(made) == sorted(slots)
    assert len(made) == len(slots)
    assert all((slot in made) == (slot in slots) for slot in range(SLOTS))
    assert len(made.packed) == SLOTS // 8


def test_no_slots_and_all_slots() -> None:
    assert list(SlotSet()) == list(SlotSet(SlotSet.pack([]))) == []
    assert list(SlotSet(SlotSet.pack(range(SLOTS)))) == list(range(SLOTS))


# ---------------------------------------------------------------------- a part of a shard


def test_every_cached_value_has_a_slot_by_its_whole_key() -> None:
    keys = [(("c",), f"k{number}") for number in range(100)]
    assert [slot_of_cached(key) for key in keys] == [EACH.of_cached(key) for key in keys]
    assert len({slot_of_cached(key) for key in keys}) > 90
