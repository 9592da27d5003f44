"""Entries that wait for the next commit: in order, and without those that there is no room for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import GetItem
from flowgentic_actors.engine.records import ItemStored
from flowgentic_actors.engine.replies import ItemReply
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.commits import JournalCommits
from flowgentic_actors.shard.journaling.entries import LogEntry, decode_entry
from flowgentic_actors.shard.settings import ActorSettings
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import Journal


class Room:
    """A journal's room, as it says."""

    def __init__(self) -> None:
        self.full = False

    def check_room(self, size: int, *, urgent: bool) -> None:
        if self.full:
            raise StorageError("no room")

    def after_append(self, size: int) -> None:
        pass


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(RealDisk(), tmp_path, durable=False)
    list(journal.replay())
    yield journal
    journal.close()


def entry(seq: int) -> LogEntry:
    stored = ItemStored(("a",), f"k{seq}", ("msgpack", b"x" * seq * 1000), seq, seq)
    return LogEntry(b"s" * 16, seq, 0, seq, b"reply", stored)


def test_entries_wait_in_order_and_are_applied_where_they_will_be(journal: Journal) -> None:
    room: Any = Room()
    shard = Shard()
    commits = JournalCommits(shard, journal, room, ActorSettings())
    made = [entry(seq) for seq in range(4)]
    lsns = []
    for each in made:
        lsns.append(commits.next_lsn)
        commits.keep(each, urgent=False)
    assert shard.size().items == 4
    assert journal.end == 0
    assert commits.commit() is None
    assert journal.end == commits.next_lsn
    assert commits.commit() is None
    assert journal.end == commits.next_lsn
    assert [decode_entry(journal.read(lsn)) for lsn in lsns] == made


def test_an_entry_without_room_leaves_nothing_behind(journal: Journal) -> None:
    room: Any = Room()
    shard = Shard()
    commits = JournalCommits(shard, journal, room, ActorSettings())
    commits.keep(entry(1), urgent=False)
    before, room.full = commits.next_lsn, True
    with pytest.raises(StorageError):
        commits.keep(entry(2), urgent=False)
    assert commits.next_lsn == before
    room.full = False
    commits.keep(entry(3), urgent=False)
    commits.commit()
    payloads, _ = journal.scan(0, 1 << 20)
    assert [decode_entry(payload) for _, payload in payloads] == [entry(1), entry(3)]
    assert shard.query(GetItem(("a",), "k2"), 0) == ItemReply(None)
