"""Threads: their stored checkpoints and writes, and how records change them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec.structs import replace

from flowgentic_actors.engine.branch import Branch, PendingWrite, StoredCheckpoint
from flowgentic_actors.engine.commands import PutCheckpoint, PutWrites
from flowgentic_actors.engine.model import Scalar
from flowgentic_actors.engine.order import CheckpointOrder
from flowgentic_actors.engine.pace import Pace
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    ThreadDeleted,
    ThreadRecord,
    ThreadsExpired,
    WritesStored,
)
from flowgentic_actors.engine.thread import Thread
from flowgentic_actors.engine.values import Value, Values

RUN_ID = "run_id"
"""The field of a checkpoint's metadata that names its run."""


class Threads:
    """All threads of a shard.

    Args:
        values: Keeps their values.

    Attributes:
        shown: Whether listings find a thread; None for all.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._runs: dict[str, set[str]] | None = None
        self._order: CheckpointOrder | None = None  # from the first question on
        self._threads: OrderedDict[str, Thread] = OrderedDict()  # last written to at the end
        self._latest_us = 0
        self._out_of_order = False  # records of several shards may come one shard after the other
        self.checkpoints = 0
        self.bytes = 0
        self.shown: Callable[[str], bool] | None = None

    def __len__(self) -> int:
        return len(self._threads)

    # ------------------------------------------------------------------ writes

    def restore(self, thread_ids: Iterable[str]) -> None:
        """Restore consistency after an interrupted change of threads; see `Shard.redo`."""
        for thread_id in thread_ids:
            thread = self._threads.get(thread_id)
            if thread is not None:
                thread.restore()
                if not thread.branches:
                    del self._threads[thread_id]
        self._runs = self._order = None
        self._out_of_order = True
        self.checkpoints = sum(thread.checkpoints for thread in self._threads.values())
        self.bytes = sum(thread.bytes for thread in self._threads.values())

    def apply(self, record: ThreadRecord, lsn: int) -> None:
        """Apply a record; see `Shard.apply`."""
        match record:
            case CheckpointStored():
                self.store_checkpoint(record, lsn)
            case WritesStored():
                self.store_writes(record, lsn)
            case BlobsKept():
                thread, branch = self._make(record.thread_id, record.checkpoint_ns)
                self._store_blobs(thread, branch, record, lsn)
            case CheckpointsDropped():
                self._drop_checkpoints(record)
            case ThreadDeleted(thread_id):
                self._delete(thread_id)
            case ThreadsExpired(thread_ids):
                for thread_id in thread_ids:
                    self._delete(thread_id)

    def store_checkpoint(
        self, record: CheckpointStored | PutCheckpoint, lsn: int, time_us: int = 0
    ) -> None:
        """Apply the record of a checkpoint, or a command at its time; see `Shard.apply`."""
        thread, branch = self._make(record.thread_id, record.checkpoint_ns)
        checkpoint = self._values.add(record.checkpoint, lsn)
        metadata = self._values.add(record.metadata, lsn)
        self._count(thread, checkpoint.size + metadata.size)
        entry = StoredCheckpoint(
            record.parent_id, checkpoint, metadata, record.facets, record.versions, record.deltas
        )
        old = branch.put(record.checkpoint_id, entry)
        if old is None:
            self.checkpoints += 1
            if self._order is not None and thread.order is self._order:
                self._order.add((record.checkpoint_id, record.thread_id, record.checkpoint_ns))
        else:
            self._drop(thread, old.checkpoint)
            self._drop(thread, old.metadata)
        self._store_blobs(thread, branch, record, lsn)
        if self._runs is not None:
            _note_run(self._runs, record.thread_id, record.facets)
        if not isinstance(record, PutCheckpoint):
            time_us = record.time_us
        self._touch(record.thread_id, thread, time_us)

    def _store_blobs(
        self,
        thread: Thread,
        branch: Branch,
        record: CheckpointStored | PutCheckpoint | BlobsKept,
        lsn: int,
    ) -> None:
        size = 0
        for channel, blob in record.blobs.items():
            version = record.versions.get(channel)
            if version is None:
                continue  # a value without a version belongs to no checkpoint
            place = channel, version
            if place in branch.blobs:
                self._drop(thread, branch.blobs[place])
            branch.blobs[place] = value = self._values.add(blob, lsn)
            size += value.size
        self._count(thread, size)

    def store_writes(self, record: WritesStored | PutWrites, lsn: int, time_us: int = 0) -> None:
        """Apply the record of pending writes, or a command; see `store_checkpoint`."""
        thread, branch = self._make(record.thread_id, record.checkpoint_ns)
        writes = branch.writes.setdefault(record.checkpoint_id, {})
        size = 0
        for write in record.writes:
            key = (record.task_id, write.index)
            if key in writes:
                self._drop(thread, writes[key].value)
            value = self._values.add(write.value, lsn)
            size += value.size
            writes[key] = PendingWrite(write.channel, value, record.task_path)
        self._count(thread, size)
        if not isinstance(record, PutWrites):
            time_us = record.time_us
        self._touch(record.thread_id, thread, time_us)

    def _delete(self, thread_id: str) -> None:
        thread = self._threads.pop(thread_id, None)
        if thread is None:
            return
        self._dropped(thread.checkpoints)
        for branch in thread.branches.values():
            for value in branch.all_values():
                self._drop(thread, value)

    def _drop_checkpoints(self, record: CheckpointsDropped) -> None:
        thread = self._threads.get(record.thread_id)
        if thread is None:
            return
        for dropped in record.branches:
            branch = thread.branches.get(dropped.checkpoint_ns)
            if branch is None:
                continue
            for checkpoint_id in dropped.checkpoint_ids:
                self._drop_checkpoint(thread, branch, checkpoint_id)
            for place in dropped.blobs:
                self._drop(thread, branch.blobs.pop(place, None))
            if not branch:
                del thread.branches[dropped.checkpoint_ns]
        if not thread.branches:
            del self._threads[record.thread_id]

    def _drop_checkpoint(self, thread: Thread, branch: Branch, checkpoint_id: str) -> None:
        entry = branch.pop(checkpoint_id)
        if entry is not None:
            self._dropped(1)
            self._drop(thread, entry.checkpoint)
            self._drop(thread, entry.metadata)
        for write in branch.writes.pop(checkpoint_id, {}).values():
            self._drop(thread, write.value)

    def _dropped(self, count: int) -> None:
        """Count removed checkpoints."""
        self.checkpoints -= count
        if self._order is not None and not self._order.drop(count):
            self._order = None

    def _make(self, thread_id: str, checkpoint_ns: str) -> tuple[Thread, Branch]:
        thread = self._threads.get(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = Thread(self._order)
        branch = thread.branches.get(checkpoint_ns)
        if branch is None:
            branch = thread.branches[checkpoint_ns] = Branch()
        return thread, branch

    def _touch(self, thread_id: str, thread: Thread, time_us: int) -> None:
        if time_us <= self._latest_us:
            self._out_of_order = True
        else:
            self._latest_us = time_us
        thread.updated_us = max(thread.updated_us, time_us)
        self._threads.move_to_end(thread_id)

    def _count(self, thread: Thread, size: int) -> None:
        thread.bytes += size
        self.bytes += size

    def _drop(self, thread: Thread, value: Value | None) -> None:
        if value is not None:
            thread.bytes -= value.size
            self.bytes -= value.size
            self._values.remove(value)

    # ------------------------------------------------------------------ values

    def values_of_checkpoint(self, record: CheckpointStored) -> Iterator[tuple[Value, bytes]]:
        """The stored values at the places of a checkpoint's record, with the record's bytes."""
        branch = self.branch(record.thread_id, record.checkpoint_ns)
        if branch is None:
            return
        entry = branch.entries.get(record.checkpoint_id)
        if entry is not None:
            yield entry.checkpoint, record.checkpoint[1]
            yield entry.metadata, record.metadata[1]
        for channel, (_, data) in record.blobs.items():
            version = record.versions.get(channel)
            value = None if version is None else branch.blobs.get((channel, version))
            if value is not None:
                yield value, data

    def values_of_writes(self, record: WritesStored) -> Iterator[tuple[Value, bytes]]:
        """The stored values at the places of pending writes, with the record's bytes."""
        branch = self.branch(record.thread_id, record.checkpoint_ns)
        writes = branch.writes.get(record.checkpoint_id, {}) if branch else {}
        for write in record.writes:
            stored = writes.get((record.task_id, write.index))
            if stored is not None:
                yield stored.value, write.value[1]

    def values_of_blobs(self, record: BlobsKept) -> Iterator[tuple[Value, bytes]]:
        """The stored values at the places of a `BlobsKept`, with the record's bytes."""
        branch = self.branch(record.thread_id, record.checkpoint_ns)
        for channel, (_, data) in record.blobs.items():
            value = branch.blobs.get((channel, record.versions[channel])) if branch else None
            if value is not None:
                yield value, data

    def live_part_of_checkpoint(
        self, lsn: int, record: CheckpointStored
    ) -> CheckpointStored | BlobsKept | None:
        """The live part of a record."""
        branch = self.branch(record.thread_id, record.checkpoint_ns)
        if branch is None:
            return None
        entry = branch.entries.get(record.checkpoint_id)
        if entry is not None and entry.checkpoint.lsn == lsn:
            return record
        places = [(c, record.versions[c]) for c in record.blobs if c in record.versions]
        kept = [p for p in places if (value := branch.blobs.get(p)) and value.lsn == lsn]
        if not kept:
            return None
        blobs = {channel: record.blobs[channel] for channel, _ in kept}
        return BlobsKept(record.thread_id, record.checkpoint_ns, dict(kept), blobs)

    def live_part_of_writes(self, lsn: int, record: WritesStored) -> WritesStored | None:
        """The live part of a record."""
        branch = self.branch(record.thread_id, record.checkpoint_ns)
        stored = branch.writes.get(record.checkpoint_id, {}) if branch else {}
        kept = tuple(
            write
            for write in record.writes
            if (found := stored.get((record.task_id, write.index))) and found.value.lsn == lsn
        )
        if len(kept) == len(record.writes):
            return record
        return replace(record, writes=kept) if kept else None

    # ------------------------------------------------------------------ questions

    def has(self, thread_id: str) -> bool:
        """Whether anything of a thread is stored."""
        return thread_id in self._threads

    def in_order(self, pace: Pace) -> CheckpointOrder | None:
        """The order of all checkpoints, those of invisible threads included.

        None if there was no time to complete it: ask again.
        """
        order, self._order = self._order, None  # one that is interrupted is made anew
        if order is None:
            order = CheckpointOrder(iter(self._threads))
        complete = order.grow(self._threads, pace)
        self._order = order
        return order if complete else None

    def branches(self, thread_id: str) -> Mapping[str, Branch]:
        """The branches of a thread by namespace, none for an unknown thread."""
        thread = self._threads.get(thread_id)
        return {} if thread is None else thread.branches

    def branch(self, thread_id: str, checkpoint_ns: str) -> Branch | None:
        """One branch of a thread."""
        thread = self._threads.get(thread_id)
        return None if thread is None else thread.branches.get(checkpoint_ns)

    def oldest_first(self) -> Iterator[tuple[str, Thread]]:
        """The threads in the order in which they were last written to."""
        self._put_in_order()
        return iter(self._threads.items())

    def newest_first(self) -> Iterator[tuple[str, Thread]]:
        """The visible threads, the last written to first."""
        self._put_in_order()
        shown = self.shown
        for thread_id, thread in reversed(self._threads.items()):
            if shown is None or shown(thread_id):
                yield thread_id, thread

    def purge_invisible(self, most: int) -> Iterator[ThreadsExpired | None]:
        """Yield records that remove invisible threads; see `Shard.purge_invisible`."""
        ids = list(self._threads)
        for start in range(0, len(ids), most):
            shown = self.shown
            if shown is None:
                return
            found = tuple(i for i in ids[start : start + most] if not shown(i))
            yield ThreadsExpired(found) if found else None

    def _put_in_order(self) -> None:
        if self._out_of_order:
            by_time = sorted(self._threads.items(), key=lambda kv: (kv[1].updated_us, kv[0]))
            self._threads = OrderedDict(by_time)
            self._out_of_order = False

    def of_runs(self, runs: set[str]) -> list[str]:
        """The threads that have checkpoints of given runs, sorted."""
        if self._runs is None:  # from the first question on: most shards are never asked
            known: dict[str, set[str]] = {}  # an interrupted search leaves none half made
            for thread_id, thread in self._threads.items():
                for branch in thread.branches.values():
                    for entry in branch.entries.values():
                        _note_run(known, thread_id, entry.facets)
            self._runs = known
        found = {thread_id for run_id in runs for thread_id in self._runs.get(run_id, ())}
        if self.shown is not None:
            found = set(filter(self.shown, found))
        return sorted(thread_id for thread_id in found if self._has_run(thread_id, runs))

    def _has_run(self, thread_id: str, runs: set[str]) -> bool:
        return any(
            entry.facets.get(RUN_ID) in runs
            for branch in self.branches(thread_id).values()
            for entry in branch.entries.values()
        )


def _note_run(runs: dict[str, set[str]], thread_id: str, facets: Mapping[str, Scalar]) -> None:
    run_id = facets.get(RUN_ID)
    if isinstance(run_id, str):
        runs.setdefault(run_id, set()).add(thread_id)
