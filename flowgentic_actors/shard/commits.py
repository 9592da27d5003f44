"""The entries of a shard's actor on their way into its journal, and their commits."""

from __future__ import annotations

import asyncio
from functools import partial

from flowgentic_actors.engine import Shard
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.journaling.entries import LogEntry, encode_entry_into
from flowgentic_actors.shard.journaling.maintenance import JournalMaintenance
from flowgentic_actors.shard.journaling.waiting_calls import hand_on
from flowgentic_actors.shard.memory_tier import MemoryTier
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.settings import ActorSettings
from flowgentic_actors.storage.group_commit import entries_size
from flowgentic_actors.storage.group_commit_loop import LoopGroupCommit
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD


class JournalCommits:
    """Applies entries, and appends them with the next commit: at once, or on a thread.

    Args:
        shard: The shard.
        journal: Its journal, replayed.
        maintenance: Of the journal: tells whether there is room.
        settings: The actor's.

    Attributes:
        next_lsn: LSN after the last entry, those included that wait to be appended.
        leader: What hands entries on to a follower, None for a single copy.
        memory_tier: What is filled from the journal, None without a tier.
    """

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        maintenance: JournalMaintenance,
        settings: ActorSettings,
    ) -> None:
        self._shard = shard
        self._journal = journal
        self._maintenance = maintenance
        durable, self._appends = settings.journal.ack.durable, settings.journal.appends == "thread"
        self._evicts = settings.hot_bytes is not None
        self._group: LoopGroupCommit | None = None
        if durable or self._appends:
            self._group = LoopGroupCommit(journal, durable=durable, appends=self._appends)
        # Each in a piece of its own, entries would lie between the values that are kept, and leave
        # holes in the process's memory when they go: measured, a quarter of what was stored.
        self._buffer = bytearray()
        self._ends: list[int] = []  # of the entries in it
        self._unwritten = 0  # bytes of entries that are not in the journal yet, with what is around
        self._storing: list[asyncio.Future[None]] = []  # who waits for the next commit
        self.next_lsn = journal.end
        self.leader: ReplicationLeader | None = None
        self.memory_tier: MemoryTier | None = None

    def keep(self, entry: LogEntry, *, urgent: bool) -> None:
        """Apply an entry that the next commit appends; see `writer.Keep`."""
        buffer = self._buffer
        start = len(buffer)
        encode_entry_into(entry, buffer, start)
        end = len(buffer)
        size = end - start + ENTRY_OVERHEAD
        try:
            self._maintenance.check_room(size + self._unwritten, urgent=urgent)
        except StorageError:
            del buffer[start:]
            raise
        self._ends.append(end)
        self._shard.apply(entry.record, self.next_lsn)
        self.next_lsn += size
        self._unwritten += size

    def commit(self) -> asyncio.Future[None] | None:
        """Append what waits, in one go; see `Actor.commit`."""
        if self._storing:
            return self._commit_and_tell()
        entries = self._take() if self._ends else []
        if self._group is not None:
            return self._commit_later(self._group, entries)
        leader = self.leader
        if entries:
            size = self._unwritten
            self._journal.append(entries)
            self._appended(size)
            if leader is not None:
                leader.appended(self.next_lsn - size, entries, self.next_lsn)
        if self._evicts:
            self._shard.cool(self.next_lsn)
        return None if leader is None else leader.wait(self.next_lsn, wrote=bool(entries))

    def stored(self) -> asyncio.Future[None]:
        """A future that is done when the next commit is."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._storing.append(future)
        return future

    def close(self, timeout: float) -> None:
        """Give up all that wait, and end the thread. Blocks."""
        for future in self._storing:
            future.cancel()
        if self._group is not None:
            self._group.close(timeout)

    def _take(self) -> list[memoryview]:
        whole, ends = memoryview(self._buffer), self._ends
        self._buffer, self._ends = bytearray(), []
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _commit_and_tell(self) -> asyncio.Future[None] | None:
        """Commit, and let those know who wait for it beside the requests."""
        storing, self._storing = self._storing, []
        committed = self.commit()
        for future in storing:
            if committed is not None:
                committed.add_done_callback(partial(hand_on, future))
            elif not future.done():
                future.set_result(None)
        return committed

    def _commit_later(
        self, group: LoopGroupCommit, entries: list[memoryview]
    ) -> asyncio.Future[None] | None:
        self._shard.cool(self._journal.end)
        # Reads wait as well while a commit is due: they may have seen what is not in it yet.
        if not entries:
            return group.pending()
        if self._appends:
            committed = group.commit(entries)
            size = entries_size(entries)
            committed.add_done_callback(lambda _: self._appended(size))
        else:
            self._journal.append(entries)
            committed = group.commit()
            self._appended(self._unwritten)
        return committed

    def _appended(self, size: int) -> None:
        self._unwritten -= size
        self._maintenance.after_append(size)
        if self.memory_tier is not None:
            self.memory_tier.advance(self.next_lsn)
