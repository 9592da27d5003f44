"""Entries that wait for the next commit: in order, and without those that there is no room for."""

from __future__ import annotations

from typing import Any

import pytest

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import GetItem
from flowgentic_actors.engine.records import ItemStored
from flowgentic_actors.engine.replies import ItemReply
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.journaling.entries import LogEntry, decode_entry
from flowgentic_actors.shard.journaling.unwritten import Unwritten
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD


class Room:
    """A journal's room, in bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def check_room(self, size: int, *, urgent: bool) -> None:
        if size > self.left:
            raise StorageError("no room")


def entry(seq: int) -> LogEntry:
    value = ("msgpack", b"x" * seq * 1000)
    return LogEntry(
        b"s" * 16, seq, 0, seq, b"reply", ItemStored(("a",), f"k{seq}", value, seq, seq)
    )


def test_entries_wait_in_order_and_are_applied_where_they_will_be() -> None:
    room: Any = Room(1 << 20)
    shard = Shard()
    unwritten = Unwritten(shard, room, 100)
    made = [entry(seq) for seq in range(4)]
    for each in made:
        unwritten.keep(each, urgent=False)
    payloads = unwritten.take()
    assert [decode_entry(bytes(payload)) for payload in payloads] == made
    assert unwritten.take() == []
    size = sum(len(payload) + ENTRY_OVERHEAD for payload in payloads)
    assert (unwritten.bytes, unwritten.end) == (size, 100 + size)
    assert shard.size().items == 4


def test_an_entry_without_room_leaves_nothing_behind() -> None:
    room: Any = Room(0)
    shard = Shard()
    unwritten = Unwritten(shard, room, 0)
    for allowed, seq in ((True, 1), (False, 2), (True, 3)):
        room.left = 1 << 20 if allowed else unwritten.bytes
        if allowed:
            unwritten.keep(entry(seq), urgent=False)
            continue
        before = unwritten.bytes, unwritten.end
        with pytest.raises(StorageError):
            unwritten.keep(entry(seq), urgent=False)
        assert (unwritten.bytes, unwritten.end) == before
    assert [decode_entry(bytes(payload)) for payload in unwritten.take()] == [entry(1), entry(3)]
    assert shard.query(GetItem(("a",), "k2"), 0) == ItemReply(None)
