"""Where keys live. A change of these numbers would lose sight of what is stored."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from flowgentic_actors.cluster.slots import SLOTS, SlotTable, even_table

EACH = even_table(SLOTS, 2)
"""A table in which every slot is a shard of its own."""


def test_slots_of_threads_never_change() -> None:
    golden = {
        "": 1039,
        "1": 2714,
        "2": 2348,
        "thread-1": 269,
        "\xe4 \u2603": 2439,
        "00000000-0000-4000-8000-000000000000": 1023,
    }
    assert {thread: EACH.of_thread(thread) for thread in golden} == golden


def test_slots_of_namespaces_never_change() -> None:
    golden = {
        ("users",): 3524,
        ("users", "ada"): 38,
        ("users", "ada", "facts"): 38,
        ("a", "b"): 705,
        ("b", "a"): 151,
        ("\u2603",): 3789,
    }
    assert {namespace: EACH.of_namespace(namespace) for namespace in golden} == golden


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 64, 256])
def test_slots_are_spread_evenly(shards: int) -> None:
    table = even_table(shards, 2)
    sizes = Counter(table.shards)

    assert len(table.shards) == SLOTS == 4096
    assert set(sizes) == set(range(shards))
    assert max(sizes.values()) - min(sizes.values()) <= 1


@pytest.mark.parametrize("name", ["{}", "thread-{}", "user/{:08}", "{}@example.org"])
def test_keys_that_differ_little_are_spread_evenly(name: str) -> None:
    table = even_table(8, 2)
    threads = Counter(table.of_thread(name.format(n)) for n in range(8000))
    namespaces = Counter(table.of_namespace(("users", name.format(n))) for n in range(8000))

    for loads in (threads, namespaces):
        assert min(loads.values()) > 850
        assert max(loads.values()) < 1150


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_leading_labels_of_a_namespace_decide(depth: int) -> None:
    table = even_table(SLOTS, depth)
    prefix = tuple("abcdefg"[:depth])

    below = {table.of_namespace((*prefix, *more)) for more in ((), ("x",), ("x", "y"))}

    assert below == {table.of_namespace(prefix)}
    assert table.below(prefix) == table.below((*prefix, "x")) == tuple(below)
    assert table.below(prefix[:-1]) == tuple(range(SLOTS))


def test_labels_are_not_run_together() -> None:
    assert EACH.of_namespace(("ab", "c")) != EACH.of_namespace(("a", "bc"))
    assert EACH.of_namespace(("ab",)) != EACH.of_thread("ab")


def test_a_table_travels() -> None:
    table = even_table(3, 2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=SlotTable) == table
