"""The commits of a shard's actor: how what was written becomes safe to acknowledge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from flowgentic_actors.engine import Shard
from flowgentic_actors.shard.journaling.maintenance import JournalMaintenance
from flowgentic_actors.shard.journaling.unwritten import Unwritten
from flowgentic_actors.shard.memory_tier import MemoryTier
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.storage.group_commit import entries_size
from flowgentic_actors.storage.group_commit_loop import LoopGroupCommit
from flowgentic_actors.storage.journal import Journal


class JournalCommits:
    """Commits what waits for one journal: at once, with a follower, or on a thread.

    Args:
        shard: The shard.
        journal: Its journal, replayed.
        maintenance: Of the journal.
        unwritten: What waits.
        durable: Whether to wait for the medium.
        appends: Whether a thread appends.
        evicts: Whether the shard lets values go beyond a limit.

    Attributes:
        leader: What hands entries on to a follower, None for a single copy.
        memory_tier: What is filled from the journal, None without a tier.
    """

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        maintenance: JournalMaintenance,
        unwritten: Unwritten,
        *,
        durable: bool,
        appends: bool,
        evicts: bool,
    ) -> None:
        self._shard = shard
        self._journal = journal
        self._maintenance = maintenance
        self._unwritten = unwritten
        self._appends = appends
        self._evicts = evicts
        self._group: LoopGroupCommit | None = None
        if durable or appends:
            self._group = LoopGroupCommit(journal, durable=durable, appends=appends)
        self._storing: list[asyncio.Future[None]] = []  # who waits for the next commit
        self.leader: ReplicationLeader | None = None
        self.memory_tier: MemoryTier | None = None

    def commit(self) -> asyncio.Future[None] | None:
        """Append what waits, in one go; see `Actor.commit`."""
        if self._storing:
            return self._commit_and_tell()
        entries = self._unwritten.take()
        if self._group is not None:
            return self._commit_later(self._group, entries)
        leader, end = self.leader, self._unwritten.end
        if entries:
            size = self._unwritten.bytes
            self._journal.append(entries)
            self._appended(size)
            if leader is not None:
                leader.appended(end - size, entries, end)
        if self._evicts:
            self._shard.cool(end)
        return None if leader is None else leader.wait(end, wrote=bool(entries))

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

    def _commit_and_tell(self) -> asyncio.Future[None] | None:
        """Commit, and let those know who wait for it beside the requests."""
        storing, self._storing = self._storing, []
        committed = self.commit()
        if committed is None:
            _settle(storing)
        else:
            committed.add_done_callback(partial(_settle, storing))
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
            self._appended(self._unwritten.bytes)
        return committed

    def _appended(self, size: int) -> None:
        self._unwritten.bytes -= size
        self._maintenance.after_append(size)
        if self.memory_tier is not None:
            self.memory_tier.advance(self._unwritten.end)


def _settle(
    storing: Sequence[asyncio.Future[None]], committed: asyncio.Future[None] | None = None
) -> None:
    """Tell those who wait for a commit what became of it."""
    error = None
    if committed is not None:
        error = asyncio.CancelledError() if committed.cancelled() else committed.exception()
    for future in storing:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
