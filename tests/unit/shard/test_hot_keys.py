"""Hot keys: found where there are any, and only there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle, islice, repeat

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgentic_actors.cluster.protocol.status import known_stats
from flowgentic_actors.engine.commands import (
    CacheGet,
    Command,
    DeleteThread,
    FindRuns,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    PutItem,
    SearchItems,
)
from flowgentic_actors.shard.hot_keys import EVERY, HotKeys, Key, hot_in, key_of, sampling
from flowgentic_actors.wire.messages import Pong


def thread(name: object) -> Key:
    return "thread", str(name)


def feed(
    hot: HotKeys,
    keys: Iterable[Key | None],
    *,
    start: float = 0.0,
    per_second: float = 2000.0,
    sample: Iterator[bool] | None = None,
) -> float:
    """Have a shard see requests as an actor does, evenly spread over time; until when."""
    now = start
    for number, (key, due) in enumerate(zip(keys, sample or sampling(), strict=False)):
        now = start + number / per_second
        if due:
            hot.saw(key, now)
    return now


def test_one_request_in_sixteen_is_looked_at() -> None:
    seen = sum(islice(sampling(), 100_000))
    assert abs(seen - 100_000 / EVERY) < 100


@pytest.mark.parametrize("period", [2, 3, 5, 8, 16, 32, 48, 64, 100])
def test_threads_that_take_turns_are_seen_equally(period: int) -> None:
    due = list(islice(sampling(), 100 * 64 * EVERY))
    seen = [sum(due[turn::period]) for turn in range(period)]
    assert max(seen) < 1.2 * sum(seen) / period


@pytest.mark.parametrize("size", [8, 64])
def test_a_hot_thread_is_named_among_thousands(size: int) -> None:
    rng, hot = random.Random(1), HotKeys(0.0, size=size)
    keys = [thread("hot" if rng.random() < 0.6 else rng.randrange(5000)) for _ in range(20_000)]

    now = feed(hot, keys)

    ((key, share),) = hot.hot(now)
    assert key == thread("hot")
    assert 0.5 < share < 0.7
    ((named, percent),) = hot.stats(now).items()
    assert known_stats({"requests": 9, named: percent}) == {
        "requests": 9,
        "hot": (f"thread 'hot' {percent} %",),
    }


@pytest.mark.parametrize("threads", [4, 8, 64, 1000])
@pytest.mark.parametrize("order", ["turns", "random"])
def test_balanced_traffic_names_nobody_at_any_time(threads: int, order: str) -> None:
    rng, hot = random.Random(1), HotKeys(0.0)
    names = cycle(range(threads)) if order == "turns" else iter(lambda: rng.randrange(threads), -1)
    now, sample = 0.0, sampling()
    for _ in range(100):
        now = feed(hot, map(thread, islice(names, 400)), start=now, sample=sample)
        assert hot.hot(now) == []


def test_what_has_no_key_counts_as_well() -> None:
    hot = HotKeys(0.0)
    now = feed(hot, islice(cycle([thread("a"), *repeat(None, 9)]), 20_000))
    assert hot.hot(now) == []
    assert hot.hot(now, share=0.05)[0][0] == thread("a")


def test_an_idle_shard_names_nobody() -> None:
    hot = HotKeys(0.0)
    now = feed(hot, repeat(thread("a"), 2000), per_second=50)
    assert hot.hot(now) == []
    now = feed(hot, repeat(thread("a"), 20_000), start=now)
    assert hot.hot(now)
    assert hot.hot(now + 60) == []  # nobody asked since
    assert hot.stats(now + 1e9) == {}


def test_a_thread_that_was_hot_is_forgotten() -> None:
    hot = HotKeys(0.0)
    now = feed(hot, repeat(thread("a"), 40_000))
    now = feed(hot, repeat(thread("b"), 40_000), start=now)
    ((key, share),) = hot.hot(now)
    assert key == thread("b")
    assert share > 0.75


def test_however_many_keys_there_are_few_are_counted() -> None:
    hot = HotKeys(0.0)
    for number in range(10_000):
        hot.saw(thread(f"{number}" + "x" * 60_000 if number % 100 == 0 else number), 0.0)
    assert len(hot._counts.counts) == 64
    assert len(hot._counts.errors) <= 64
    assert hot.hot(0.0) == []


def test_counts_are_at_least_what_was_seen() -> None:
    rng, hot = random.Random(2), HotKeys(0.0, size=16)
    keys = [thread(int(rng.paretovariate(0.7))) for _ in range(5000)]
    for key in keys:
        hot.saw(key, 0.0)
    times, counts, errors = Counter(keys), hot._counts.counts, hot._counts.errors
    assert sum(counts.values()) == len(keys)
    for key, count in counts.items():
        assert count - errors.get(key, 0) <= times[key] <= count
    # Whoever has more than its part of the places is among them.
    assert {key for key in times if times[key] > len(keys) / 16} <= set(counts)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (DeleteThread("t"), ("thread", "t")),
        (ListCheckpoints("t"), ("thread", "t")),
        (ListCheckpoints(), None),
        (ListThreads("t", 1), None),
        (FindRuns(("r",)), None),
        (PutItem(("a", "b", "c"), "k", ("msgpack", b"")), ("namespace", "a.b")),
        (GetItem(("a",), "k"), ("namespace", "a")),
        (SearchItems(("a", "b"), b"", 1, 0), ("namespace", "a.b")),
        (SearchItems((), b"", 1, 0), None),
        (ListNamespaces((), None, 1, 0), None),
        (CacheGet(((("a",), "k"),)), None),
    ],
)
def test_what_a_command_is_about(command: Command, key: Key | None) -> None:
    assert key_of(command) == key


@given(st.text(st.characters(exclude_categories=()), max_size=300) | st.just("\udc80\n" * 200))
def test_any_id_travels_in_the_actors_counters(name: str) -> None:
    hot, key = HotKeys(0.0), key_of(DeleteThread(name))
    for _ in range(1000):
        hot.saw(key, 0.0)

    pong = Pong(1, 0.0, {"requests": 1, **hot.stats(0.0)})
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(pong), type=Pong)

    (told,) = hot_in(read.stats)
    assert told.startswith("thread ")
    assert told.endswith(" 100 %")
    assert told.isprintable()
