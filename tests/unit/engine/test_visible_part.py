"""A shard that shows a part of what it holds, and forgets the rest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine import shard as shard_module
from flowgentic_actors.engine.commands import (
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
from flowgentic_actors.engine.records import ItemsExpired, Record, ThreadsExpired
from flowgentic_actors.engine.replies import Cached, ThreadIds
from flowgentic_actors.engine.slots import SLOTS, slot_of_command, slot_of_namespace, slot_of_thread

DEPTH = 2

BLOB = ("msgpack", b"\xc0")


def vector(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


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
