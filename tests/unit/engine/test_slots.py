"""What slot a command and a record are about, and a shard that shows a part of what it holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine import shard as shard_module
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
from flowgentic_actors.engine.model import Scalar, Vector, Write
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
from flowgentic_actors.engine.replies import Cached, ThreadIds
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
        assert EACH.below(namespace) == (slot_of_command(search, DEPTH),)


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

NOW = 1_000_000


class Clocked:
    """A shard and its clock."""

    def __init__(self) -> None:
        self.shard = Shard()
        self.now = NOW

    def do(self, *commands: Command) -> None:
        for command in commands:
            self.now += 1
            self.shard.execute(command, self.now)

    def ask(self, query: Any) -> Any:
        return self.shard.execute(query, self.now).reply


def some_writes(thread: str, namespace: tuple[str, ...]) -> list[Command]:
    """Something of every kind in a thread and a namespace."""
    facets: dict[str, Scalar] = {"run_id": "run"}
    item = Vector("$", vector(1.0, len(thread)))
    return [
        PutCheckpoint(thread, "", "1", None, BLOB, BLOB, facets, {"c": 1}, {"c": BLOB}),
        PutCheckpoint(thread, "sub", "2", "1", BLOB, BLOB, facets, {"c": 1}, {"c": BLOB}),
        PutWrites(thread, "", "1", "task", "", (Write(0, "c", BLOB),)),
        PutItem(namespace, "ranked", BLOB, vectors=(item,)),
        PutItem(namespace, "plain", BLOB, ttl_us=10**9),
    ]


FAN_OUTS: list[Command] = [
    ListCheckpoints(),
    ListCheckpoints(checkpoint_ns="sub", facets={"run_id": "run"}),
    ListThreads("", 100),
    FindRuns(("run",)),
    SearchItems((), b"", 100, 0, refresh=True),
    SearchItems(("users",), b"", 100, 0),
    RankItems((), b"", vector(1.0, 1.0), 100, 0),
    RankItems(("users",), b"", vector(1.0, 1.0), 100, 0),
    ListNamespaces((), None, 100, 0),
    ListNamespaces((Match("prefix", ("users", "*")),), 2, 100, 0),
]


def keyed(thread: str, namespace: tuple[str, ...]) -> list[Command]:
    return [
        GetCheckpoint(thread, "", None),
        ListCheckpoints(thread),
        ReadThread(thread),
        GetChannelHistory(thread, "", None, ("c",)),
        GetItem(namespace, "ranked"),
    ]


def is_shown(name: str) -> bool:
    return name.startswith("s")


def shows_namespace(namespace: tuple[str, ...]) -> bool:
    return is_shown(namespace[-1])


THREADS = ("s1", "h1", "s2", "h2")
NAMESPACES = [("users", name) for name in THREADS]


def half_and_half() -> tuple[Clocked, Clocked]:
    """A shard, and another one that never had what the first one will not show."""
    whole, half = Clocked(), Clocked()
    for thread, namespace in zip(THREADS, NAMESPACES, strict=True):
        whole.do(*some_writes(thread, namespace))
        if is_shown(thread):
            half.do(*some_writes(thread, namespace))
        else:
            half.now = whole.now
    return whole, half


@pytest.mark.parametrize("query", FAN_OUTS, ids=lambda q: type(q).__name__)
def test_what_is_not_shown_is_found_by_no_search_and_no_listing(query: Command) -> None:
    whole, half = half_and_half()
    before = whole.ask(query)

    whole.shard.set_visible(is_shown, shows_namespace)

    assert whole.ask(query) == half.ask(query) != before
    whole.shard.set_visible(None, None)
    assert whole.ask(query) == before


def test_what_is_not_shown_is_not_asked_about_before_either() -> None:
    """The first question of a kind makes what later ones are answered from."""
    whole, half = half_and_half()
    whole.shard.set_visible(is_shown, shows_namespace)

    for query in FAN_OUTS:
        assert whole.ask(query) == half.ask(query)
    whole.shard.set_visible(None, None)
    assert whole.ask(FindRuns(("run",))) == ThreadIds(tuple(sorted(THREADS)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_of_what_is_shown_hold_each_once(size: int) -> None:
    whole, half = half_and_half()
    whole.shard.set_visible(is_shown, shows_namespace)

    def pages(of: Clocked, make: Callable[[Any], Command]) -> Iterator[Any]:
        after = None
        while True:
            page = of.ask(make(after))
            yield from page.rows
            after = page.after
            if after is None:
                return

    makes: list[Callable[[Any], Command]] = [
        lambda after: ListCheckpoints(limit=size, after=after),
        lambda after: ListThreads("", size, after=after),
        lambda after: SearchItems((), b"", size, 0, after=after),
        lambda after: RankItems((), b"", vector(1.0, 1.0), size, 0, after=after),
    ]
    for make in makes:
        assert list(pages(whole, make)) == list(pages(half, make)) != []


def test_what_is_not_shown_is_found_by_its_key() -> None:
    whole, _ = half_and_half()
    queries = [q for key in zip(THREADS, NAMESPACES, strict=True) for q in keyed(*key)]
    before = [whole.ask(query) for query in queries]

    whole.shard.set_visible(is_shown, shows_namespace)

    assert [whole.ask(query) for query in queries] == before


def test_what_is_not_shown_takes_records_like_everything_else() -> None:
    whole, _ = half_and_half()
    whole.shard.set_visible(is_shown, shows_namespace)

    whole.do(PutItem(("users", "h1"), "more", BLOB), *some_writes("h3", ("users", "h3")))

    assert whole.ask(GetItem(("users", "h1"), "more")).row is not None
    assert {row.thread_id for row in whole.ask(ListThreads("", 100)).rows} == {"s1", "s2"}
    whole.shard.set_visible(None, None)
    assert len(whole.ask(ListThreads("", 100)).rows) == 5


def forget(clocked: Clocked, most: int) -> list[Record]:
    found = []
    for record in clocked.shard.purge_invisible(most):
        if record is not None:
            found.append(record)
            clocked.shard.apply(record)
    return found


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_forgetting_what_is_not_shown_leaves_what_is(most: int) -> None:
    whole, half = half_and_half()
    whole.shard.set_visible(is_shown, shows_namespace)

    assert forget(whole, most)

    assert whole.shard.size() == half.shard.size()
    assert list(filter(None, whole.shard.purge_invisible(most))) == []
    whole.shard.set_visible(None, None)
    for query in FAN_OUTS:
        assert whole.ask(query) == half.ask(query)
    for query in keyed("h1", ("users", "h1")):
        assert whole.ask(query) == half.ask(query)


def test_forgetting_goes_by_small_steps() -> None:
    clocked = Clocked()
    for number in range(10):
        clocked.do(PutItem(("users", "h"), f"{number}", BLOB))
        clocked.do(PutCheckpoint(f"h{number}", "", "1", None, BLOB, BLOB, {}, {}, {}))
    clocked.shard.set_visible(is_shown, shows_namespace)

    found = forget(clocked, 3)

    sizes = [len(r.thread_ids) for r in found if isinstance(r, ThreadsExpired)]
    assert (sum(sizes), max(sizes)) == (10, 3)
    sizes = [len(r.items) for r in found if isinstance(r, ItemsExpired)]
    assert (sum(sizes), max(sizes)) == (10, 3)


def test_looking_at_much_that_is_shown_gives_others_a_turn() -> None:
    clocked = Clocked()
    for number in range(10):
        clocked.do(PutItem(("users", f"s{number}"), "k", BLOB))
        clocked.do(PutCheckpoint(f"s{number}", "", "1", None, BLOB, BLOB, {}, {}, {}))
    clocked.shard.set_visible(is_shown, shows_namespace)

    turns = list(clocked.shard.purge_invisible(2))

    assert set(turns) == {None}
    assert len(turns) >= 8


def test_what_is_shown_by_the_time_its_turn_comes_stays() -> None:
    whole, _ = half_and_half()
    before = whole.shard.size()
    whole.shard.set_visible(is_shown, shows_namespace)
    hidden = whole.shard.purge_invisible(1)
    first = next(record for record in hidden if record is not None)
    whole.shard.apply(first)

    whole.shard.set_visible(None, None)

    assert list(filter(None, hidden)) == []
    assert whole.shard.size().threads == before.threads - 1


def test_nothing_is_forgotten_where_all_is_shown() -> None:
    whole, _ = half_and_half()
    assert list(filter(None, whole.shard.purge_invisible())) == []


def test_cached_values_are_no_part_of_it() -> None:
    clocked = Clocked()
    key = (("c",), "k")
    clocked.do(CacheSet((CacheEntry(key, BLOB),)))
    clocked.shard.set_visible(lambda _: False, lambda _: False)
    forget(clocked, shard_module.MOST_EXPIRED)

    assert clocked.ask(CacheGet((key,))) == Cached((BLOB,))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(1, 5))
def test_any_part_can_be_forgotten(seed: int, most: int) -> None:
    """A shard that forgot some slots is the shard that never heard of them."""
    rng = random.Random(seed)
    kept = {slot for slot in range(SLOTS) if rng.random() < 0.5}
    whole, part = Clocked(), Clocked()
    for command in some_random_writes(rng, 60):
        whole.do(command)
        part.now = whole.now - 1
        if slot_of_command(command, DEPTH) in kept:
            part.do(command)
    part.now = whole.now

    whole.shard.set_visible(
        lambda thread: slot_of_thread(thread) in kept,
        lambda namespace: slot_of_namespace(namespace, DEPTH) in kept,
    )

    for query in FAN_OUTS:
        assert whole.ask(query) == part.ask(query)
    forget(whole, most)
    assert whole.shard.size() == part.shard.size()
    whole.shard.set_visible(None, None)
    for query in FAN_OUTS:
        assert whole.ask(query) == part.ask(query)


def some_random_writes(rng: random.Random, count: int) -> Sequence[Command]:
    made: list[Command] = []
    for number in range(count):
        thread = f"t{rng.randrange(8)}"
        namespace = ("users", f"n{rng.randrange(8)}", "x")[: rng.randrange(1, 4)]
        choices = [
            *some_writes(thread, namespace),
            DeleteThread(thread),
            DropRuns(thread, ("run",)),
            PruneThread(thread, 1),
            DeleteItem(namespace, "ranked"),
            PutItem(namespace, f"k{number}", BLOB),
        ]
        made.append(rng.choice(choices))
    return made


def test_every_cached_value_has_a_slot_by_its_whole_key() -> None:
    keys = [(("c",), f"k{number}") for number in range(100)]
    assert [slot_of_cached(key) for key in keys] == [EACH.of_cached(key) for key in keys]
    assert len({slot_of_cached(key) for key in keys}) > 90
