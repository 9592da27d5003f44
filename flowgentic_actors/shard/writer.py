"""The write path of a shard, the same in an actor and in the program's own process."""

from __future__ import annotations

from typing import Protocol

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import MAKES_ROOM, Command, Query, WriteCommand
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.journaling.entries import NO_SESSION, LogEntry, internal_entry
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted
from flowgentic_actors.shard.settings import ShardSettings


class Keep(Protocol):
    """The step of a write that differs between shards: into the journal, and into the shard."""

    def __call__(self, entry: LogEntry, *, urgent: bool) -> None:
        """Apply the record of an entry, and have the entry stored before the write's reply leaves.

        Args:
            entry: The entry.
            urgent: Whether it wins space back, and so may use what is kept for that.

        Raises:
            StorageError: If the journal has no room for it; nothing has changed then.
        """


class ShardWriter:
    """Carries out writes: decide, check the quotas, keep, trim; refresh and expire.

    It does no I/O but what `keep` does.

    Args:
        shard: The shard.
        settings: How much it keeps.
        keep: Stores and applies one entry.
    """

    def __init__(self, shard: Shard, settings: ShardSettings, keep: Keep) -> None:
        self._shard = shard
        self._quotas = settings.quotas if settings.quotas.any else None
        self._trims = settings.keep_last is not None
        self._keep = keep

    def execute(self, command: WriteCommand, now_us: int) -> Reply:
        """Decide and carry out a write without a session; raises what `decide` and `write` do."""
        reply, record = self._shard.decide(command, now_us)
        if record is not None:
            entry = LogEntry(NO_SESSION, 0, 0, now_us, b"", record)
            self.write(entry, urgent=type(command) in MAKES_ROOM)
        return reply

    def write(self, entry: LogEntry, *, urgent: bool) -> None:
        """Carry out a write that was decided, or refuse it before anything has changed.

        Args:
            entry: Its entry.
            urgent: Whether it wins space back.

        Raises:
            MemoryFullError: If it would exceed a quota.
            StorageError: If the journal has no room for it.
        """
        if self._quotas is not None:
            self._quotas.check(self._shard, entry.record)
        self._keep(entry, urgent=urgent)
        if self._trims:
            trimmed = self._shard.decide_trim(entry.record)
            if trimmed is not None:
                self.keep_own(trimmed, entry.time_us)

    def query(self, query: Query, now_us: int) -> Reply:
        """Answer a query, and refresh what it found if it says so; see `Shard.query`.

        Raises:
            RoomWanted: If the refresh has to wait for a segment.
        """
        reply = self._shard.query(query, now_us)
        refreshed = self._shard.decide_refresh(query, reply, now_us)
        if refreshed is not None:
            self.keep_own(refreshed, now_us, once=True)
        return reply

    def expire(self, now_us: int) -> bool:
        """Remove some of what has expired; False when nothing was removed."""
        return self.keep_own(self._shard.decide_expire(now_us), now_us)

    def redo(self, begun: Command | Record, now_us: int) -> None:
        """Complete in memory what an exception interrupted, and trim; see `Shard.redo`."""
        self._shard.redo(begun, now_us)
        self.keep_own(self._shard.decide_trim(begun), now_us)

    def keep_own(self, record: Record | None, now_us: int, *, once: bool = False) -> bool:
        """Carry out what the shard decided by itself; not on a full disk, where it has to wait.

        Args:
            record: What it decided, None for nothing.
            now_us: Its time.
            once: Whether it is not decided again: `RoomWanted` is raised then.

        Returns:
            Whether it was carried out.
        """
        if record is None:
            return False
        try:
            self._keep(internal_entry(record, now_us), urgent=True)
        except StorageError as error:
            if once and isinstance(error, RoomWanted):
                raise
            return False
        return True
