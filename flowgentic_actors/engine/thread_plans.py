"""Plans of changes to threads: what a command, a limit or the time would record."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flowgentic_actors.engine.branch import Branch
from flowgentic_actors.engine.commands import DropRuns, PruneThread, PutCheckpoint, PutWrites
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.records import (
    CheckpointsDropped,
    CheckpointStored,
    DroppedFrom,
    ThreadsExpired,
    WritesStored,
)
from flowgentic_actors.engine.replies import Conflict, MissingBlobs
from flowgentic_actors.engine.threads import RUN_ID, Threads


class Retention(NamedTuple):
    """Retention of threads: what is removed without a command to delete it.

    Attributes:
        keep_last: Checkpoints of each namespace of a thread; None for all.
        ttl_us: Microseconds for which a thread is kept after its last write; None for ever.
    """

    keep_last: int | None = None
    ttl_us: int | None = None


class ThreadPlans:
    """Decides what changes of threads would record, and changes nothing itself.

    Args:
        threads: The threads.
        retention: How much of them is kept.
    """

    def __init__(self, threads: Threads, retention: Retention) -> None:
        self._threads = threads
        self._retention = retention
        self._branch = threads.branch  # one look less on the path of each write

    def decide(
        self, command: PutCheckpoint | PutWrites | DropRuns | PruneThread, now_us: int
    ) -> CheckpointStored | WritesStored | CheckpointsDropped | MissingBlobs | Conflict | None:
        """Decide what a write would record; None when it changes nothing."""
        match command:
            case PutCheckpoint():
                return self.plan_checkpoint(command, now_us)
            case PutWrites():
                return self.plan_writes(command, now_us)
            case DropRuns(thread_id, run_ids):
                return self._plan_drop_runs(thread_id, set(run_ids))
            case PruneThread(thread_id, keep):
                return self._plan_drop(thread_id, lambda branch: branch.older_than_latest(keep))

    def plan_checkpoint(
        self, command: PutCheckpoint, now_us: int
    ) -> CheckpointStored | MissingBlobs | Conflict:
        """Decide what storing a checkpoint would record."""
        branch = self._branch(command.thread_id, command.checkpoint_ns)
        if command.follows:
            latest = branch.order[-1] if branch and branch.order else None
            if latest != command.parent_id and (
                branch is None or command.checkpoint_id not in branch.entries
            ):
                return Conflict(latest or "")
        if command.present:
            known = branch.blobs if branch else {}
            missing = tuple(
                channel
                for channel in command.present
                if (channel, command.versions.get(channel)) not in known
            )
            if missing:
                return MissingBlobs(missing)
        return CheckpointStored(
            command.thread_id,
            command.checkpoint_ns,
            command.checkpoint_id,
            command.parent_id,
            command.checkpoint,
            command.metadata,
            command.facets,
            command.versions,
            command.blobs,
            command.deltas,
            now_us,
        )

    def plan_writes(self, command: PutWrites, now_us: int) -> WritesStored | None:
        """Decide which of a task's writes are accepted; None when none is."""
        if self._retention.keep_last is None and self.takes_writes(command):
            return _writes_stored(command, command.writes, now_us)
        branch = self._branch(command.thread_id, command.checkpoint_ns)
        if branch is not None and self._was_dropped(branch, command.checkpoint_id):
            return None
        known = (branch.writes.get(command.checkpoint_id) if branch else None) or {}
        accepted: dict[int, Write] = {}
        for write in command.writes:
            if write.index < 0 or (
                write.index not in accepted and (command.task_id, write.index) not in known
            ):
                accepted[write.index] = write
        if not accepted:
            return None
        return _writes_stored(command, tuple(accepted.values()), now_us)

    def takes_checkpoint(self, command: PutCheckpoint) -> bool:
        """Whether `plan_checkpoint` would record the command as it is; see `Shard.writes`."""
        if command.follows:
            return False
        if command.present:
            branch = self._branch(command.thread_id, command.checkpoint_ns)
            if branch is None:
                return False
            known, versions = branch.blobs, command.versions
            for channel in command.present:
                if (channel, versions.get(channel)) not in known:
                    return False
        return True

    def takes_writes(self, command: PutWrites) -> bool:
        """Whether `plan_writes` would record the command as it is; see `Shard.writes`."""
        writes = command.writes
        if len(writes) != 1 and not _are_apart(writes):
            return False
        branch = self._branch(command.thread_id, command.checkpoint_ns)
        known = None if branch is None else branch.writes.get(command.checkpoint_id)
        if known is not None:
            task_id = command.task_id
            for write in writes:
                if write.index >= 0 and (task_id, write.index) in known:
                    return False
        return True

    def _was_dropped(self, branch: Branch, checkpoint_id: str) -> bool:
        """Whether writes come too late: their checkpoint is older than all kept ones."""
        keep = self._retention.keep_last
        return keep is not None and len(branch.order) >= keep and checkpoint_id < branch.order[0]

    def _plan_drop_runs(self, thread_id: str, runs: set[str]) -> CheckpointsDropped | None:
        def doomed(branch: Branch) -> set[str]:
            return {i for i, entry in branch.entries.items() if entry.facets.get(RUN_ID) in runs}

        return self._plan_drop(thread_id, doomed)

    def _plan_drop(
        self, thread_id: str, doomed: Callable[[Branch], set[str]]
    ) -> CheckpointsDropped | None:
        dropped = []
        for ns, branch in self._threads.branches(thread_id).items():
            if ids := doomed(branch):
                gone = {*branch.only_of(ids), *branch.unused()}
                blobs = tuple(place for place in branch.blobs if place in gone)
                dropped.append(DroppedFrom(ns, tuple(sorted(ids)), blobs))
        return CheckpointsDropped(thread_id, tuple(dropped)) if dropped else None

    # ------------------------------------------------------------------ expiry and retention

    def plan_trim(self, thread_id: str, checkpoint_ns: str) -> CheckpointsDropped | None:
        """Decide which checkpoints of a branch are too many, after one was stored."""
        keep = self._retention.keep_last
        branch = self._branch(thread_id, checkpoint_ns)
        if keep is None or branch is None or len(branch.order) <= keep:
            return None
        ids = branch.older_than_latest(keep)
        if not ids:
            return None
        dropped = DroppedFrom(checkpoint_ns, tuple(sorted(ids)), tuple(branch.only_of(ids)))
        return CheckpointsDropped(thread_id, (dropped,))

    def plan_expire(self, now_us: int, most: int) -> ThreadsExpired | None:
        """Decide which threads have expired, at most so many."""
        over: list[str] = []
        if self._retention.ttl_us is not None:
            latest = now_us - self._retention.ttl_us
            for thread_id, thread in self._threads.oldest_first():
                if thread.updated_us > latest or len(over) == most:
                    break
                over.append(thread_id)
        return ThreadsExpired(tuple(over)) if over else None

    def next_expiry_us(self) -> int | None:
        """The time at which the next thread expires."""
        if self._retention.ttl_us is None or not self._threads:
            return None
        _, oldest = next(self._threads.oldest_first())
        return oldest.updated_us + self._retention.ttl_us


def _are_apart(writes: tuple[Write, ...]) -> bool:
    """Whether each of a task's writes, if there are any, has a place of its own."""
    if len(writes) == 2:  # most often: a channel, and what comes next
        return writes[0].index != writes[1].index
    return 0 < len(writes) == len({write.index for write in writes})


def _writes_stored(command: PutWrites, writes: tuple[Write, ...], now_us: int) -> WritesStored:
    return WritesStored(
        command.thread_id,
        command.checkpoint_ns,
        command.checkpoint_id,
        command.task_id,
        command.task_path,
        writes,
        now_us,
    )
