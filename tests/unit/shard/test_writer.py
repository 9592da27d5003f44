"""The write path that all shards share: what is refused, and what a shard decides by itself."""

from __future__ import annotations

import pytest

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import GetItem, PutItem
from flowgentic_actors.engine.records import ItemsExpired, ItemsRefreshed, ItemStored
from flowgentic_actors.engine.shard import DONE
from flowgentic_actors.errors import MemoryFullError, StorageError
from flowgentic_actors.shard.embedded.volatile import VolatileShard
from flowgentic_actors.shard.journaling.entries import LogEntry
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.shard.writer import ShardWriter

SECOND = 1_000_000


class Kept:
    """A shard's writer, and the entries that it kept."""

    def __init__(self, settings: ShardSettings | None = None) -> None:
        settings = settings or ShardSettings()
        self.shard = settings.make_shard()
        self.entries: list[LogEntry] = []
        self.refuses: StorageError | None = None
        self.writer = ShardWriter(self.shard, settings, self.keep)

    def keep(self, entry: LogEntry, *, urgent: bool) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.entries.append(entry)
        self.shard.apply(entry.record)


def put(key: str, size: int = 10, ttl: int = 0) -> PutItem:
    return PutItem(("n",), key, ("msgpack", bytes(size)), ttl_us=ttl * SECOND)


def test_a_write_beyond_a_quota_is_kept_nowhere() -> None:
    kept = Kept(ShardSettings(item_bytes=100))
    assert kept.writer.execute(put("a"), 1) == DONE
    with pytest.raises(MemoryFullError):
        kept.writer.execute(put("b", 1000), 2)
    assert [type(entry.record) for entry in kept.entries] == [ItemStored]
    assert kept.shard.size().items == 1


def test_a_query_that_refreshes_waits_for_room_but_not_for_a_full_disk() -> None:
    kept = Kept()
    kept.writer.execute(put("a", ttl=60), SECOND)
    query = GetItem(("n",), "a", refresh=True)
    kept.refuses = StorageError("the disk is full")
    found = kept.writer.query(query, 2 * SECOND)
    kept.refuses = RoomWanted(10, urgent=True)
    with pytest.raises(RoomWanted):
        kept.writer.query(query, 2 * SECOND)
    kept.refuses = None
    assert kept.writer.query(query, 2 * SECOND) == found
    assert isinstance(kept.entries[-1].record, ItemsRefreshed)


def test_what_has_expired_is_removed_once_there_is_room() -> None:
    kept = Kept()
    kept.writer.execute(put("a", ttl=1), SECOND)
    assert not kept.writer.expire(SECOND)
    kept.refuses = RoomWanted(10, urgent=True)
    assert not kept.writer.expire(10 * SECOND)
    assert kept.shard.size().items == 1
    kept.refuses = None
    assert kept.writer.expire(10 * SECOND)
    assert not kept.writer.expire(10 * SECOND)
    assert isinstance(kept.entries[-1].record, ItemsExpired)


def test_an_interrupted_refresh_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = VolatileShard(ShardSettings())
    shard.ask(put("a", ttl=60))
    lives = shard._shard._items._expiry.lives
    ((place, before),) = lives.items()
    shard._clock.saw(before.expires_us - 10 * SECOND)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Shard, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shard.ask(GetItem(("n",), "a", refresh=True))
    assert lives[place] == before
    shard.stats()
    assert lives[place].expires_us > before.expires_us
    shard.close()
