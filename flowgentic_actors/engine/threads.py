"""Threads: checkpoints with per-channel blobs, and pending writes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge

from msgspec import Struct
from msgspec.structs import replace

from flowgentic_actors.engine.commands import (
    DropRuns,
    GetChannelHistory,
    GetCheckpoint,
    ListCheckpoints,
    PruneThread,
    PutCheckpoint,
    PutWrites,
    ReadThread,
)
from flowgentic_actors.engine.model import PAGE_BYTES, Blob, Position, Scalar, Version, Write
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    DroppedFrom,
    WritesStored,
)
from flowgentic_actors.engine.replies import (
    ChannelHistories,
    ChannelHistory,
    CheckpointPage,
    CheckpointRow,
    MissingBlobs,
    ThreadPage,
)
from flowgentic_actors.engine.values import Value, Values

MAX_PAGE = 1024
"""Most checkpoints in one page, however small they are."""

MAX_SCAN = 20_000
"""Most checkpoints that one page looks at before it is closed, full or not."""


RUN_ID = "run_id"
"""The field of a checkpoint's metadata that names its run."""


class _Entry(Struct, frozen=True):
    parent_id: str | None
    checkpoint: Value
    metadata: Value
    facets: dict[str, Scalar]
    versions: dict[str, Version]
    deltas: tuple[str, ...]


class _PendingWrite(Struct, frozen=True, gc=False):
    channel: str
    value: Value
    task_path: str


class _Branch:
    """One (thread, checkpoint namespace)."""

    __slots__ = ("blobs", "entries", "order", "writes")

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        self.order: list[str] = []  # ids, ascending; uuid6 ids arrive in order
        self.blobs: dict[tuple[str, Version], Value] = {}  # by (channel, version)
        self.writes: dict[str, dict[tuple[str, int], _PendingWrite]] = {}


class Threads:
    """All threads of a shard.

    Args:
        values: Keeps their values.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._runs: dict[str, set[str]] | None = None
        self._threads: dict[str, dict[str, _Branch]] = {}
        self.checkpoints = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._threads)

    # ------------------------------------------------------------------ writes, decided

    def plan(
        self, command: PutCheckpoint | PutWrites | DropRuns | PruneThread
    ) -> CheckpointStored | WritesStored | CheckpointsDropped | MissingBlobs | None:
        """Decide what a write would record; None when it changes nothing."""
        match command:
            case PutCheckpoint():
                return self.plan_checkpoint(command)
            case PutWrites():
                return self.plan_writes(command)
            case DropRuns():
                return self.plan_drop_runs(command)
            case PruneThread():
                return self.plan_prune(command)

    def plan_checkpoint(self, command: PutCheckpoint) -> CheckpointStored | MissingBlobs:
        """Decide what storing a checkpoint would record."""
        branch = self._branch(command.thread_id, command.checkpoint_ns)
        known = branch.blobs if branch else {}
        missing = tuple(
            channel
            for channel in command.present
            if (channel, command.versions.get(channel)) not in known
        )
        if missing:
            return MissingBlobs(missing)
        # copies: LangGraph goes on changing its channel versions in place
        return CheckpointStored(
            command.thread_id,
            command.checkpoint_ns,
            command.checkpoint_id,
            command.parent_id,
            command.checkpoint,
            command.metadata,
            dict(command.facets),
            dict(command.versions),
            dict(command.blobs),
            command.deltas,
        )

    def plan_writes(self, command: PutWrites) -> WritesStored | None:
        """Decide which of a task's writes are accepted; None when none is."""
        branch = self._branch(command.thread_id, command.checkpoint_ns)
        known = branch.writes.get(command.checkpoint_id, {}) if branch else {}
        accepted: dict[int, Write] = {}
        for write in command.writes:
            if write.index < 0 or (
                write.index not in accepted and (command.task_id, write.index) not in known
            ):
                accepted[write.index] = write
        if not accepted:
            return None
        return WritesStored(
            command.thread_id,
            command.checkpoint_ns,
            command.checkpoint_id,
            command.task_id,
            command.task_path,
            tuple(accepted.values()),
        )

    def plan_drop_runs(self, command: DropRuns) -> CheckpointsDropped | None:
        """Decide what forgetting some runs of a thread would record."""
        runs = set(command.run_ids)

        def doomed(branch: _Branch) -> set[str]:
            return {i for i, entry in branch.entries.items() if entry.facets.get(RUN_ID) in runs}

        return self._plan_drop(command.thread_id, doomed)

    def plan_prune(self, command: PruneThread) -> CheckpointsDropped | None:
        """Decide what keeping only the latest checkpoints of a thread would record."""

        def doomed(branch: _Branch) -> set[str]:
            kept = set(branch.order[-command.keep :])
            for checkpoint_id in branch.order[-command.keep :]:
                kept |= _made_from(branch, checkpoint_id)
            return {i for i in branch.order if i not in kept}

        return self._plan_drop(command.thread_id, doomed)

    def _plan_drop(
        self, thread_id: str, doomed: Callable[[_Branch], set[str]]
    ) -> CheckpointsDropped | None:
        dropped = []
        for ns, branch in self._threads.get(thread_id, {}).items():
            ids = doomed(branch)
            if not ids:
                continue
            needed = {
                place
                for checkpoint_id, entry in branch.entries.items()
                if checkpoint_id not in ids
                for place in entry.versions.items()
            }
            blobs = tuple(place for place in branch.blobs if place not in needed)
            dropped.append(DroppedFrom(ns, tuple(sorted(ids)), blobs))
        return CheckpointsDropped(thread_id, tuple(dropped)) if dropped else None

    # ------------------------------------------------------------------ writes, carried out

    def store_checkpoint(self, record: CheckpointStored, lsn: int) -> None:
        """Apply a record."""
        branch = self._threads.setdefault(record.thread_id, {}).setdefault(
            record.checkpoint_ns, _Branch()
        )
        old = branch.entries.get(record.checkpoint_id)
        if old is None:
            insort(branch.order, record.checkpoint_id)
            self.checkpoints += 1
        else:
            self._drop(old.checkpoint)
            self._drop(old.metadata)
        branch.entries[record.checkpoint_id] = _Entry(
            record.parent_id,
            self._place(record.checkpoint, lsn),
            self._place(record.metadata, lsn),
            record.facets,
            record.versions,
            record.deltas,
        )
        self._store_blobs(branch, record, lsn)
        if self._runs is not None:
            self._note_run(record.thread_id, record.facets)

    def store_blobs(self, record: BlobsKept, lsn: int) -> None:
        """Apply a record."""
        branch = self._threads.setdefault(record.thread_id, {}).setdefault(
            record.checkpoint_ns, _Branch()
        )
        self._store_blobs(branch, record, lsn)

    def _store_blobs(self, branch: _Branch, record: CheckpointStored | BlobsKept, lsn: int) -> None:
        for channel, blob in record.blobs.items():
            version = record.versions.get(channel)
            if version is None:
                continue  # a value without a version belongs to no checkpoint
            self._drop(branch.blobs.get((channel, version)))
            branch.blobs[channel, version] = self._place(blob, lsn)

    def store_writes(self, record: WritesStored, lsn: int) -> None:
        """Apply a record."""
        branch = self._threads.setdefault(record.thread_id, {}).setdefault(
            record.checkpoint_ns, _Branch()
        )
        writes = branch.writes.setdefault(record.checkpoint_id, {})
        for write in record.writes:
            key = (record.task_id, write.index)
            if key in writes:
                self._drop(writes[key].value)
            value = self._place(write.value, lsn)
            writes[key] = _PendingWrite(write.channel, value, record.task_path)

    def delete(self, thread_id: str) -> None:
        """Apply the deletion of a thread."""
        for branch in self._threads.pop(thread_id, {}).values():
            self.checkpoints -= len(branch.entries)
            for entry in branch.entries.values():
                self._drop(entry.checkpoint)
                self._drop(entry.metadata)
            for value in branch.blobs.values():
                self._drop(value)
            for writes in branch.writes.values():
                for write in writes.values():
                    self._drop(write.value)

    def drop(self, record: CheckpointsDropped) -> None:
        """Apply the end of some checkpoints."""
        thread = self._threads.get(record.thread_id, {})
        for dropped in record.branches:
            branch = thread.get(dropped.checkpoint_ns)
            if branch is None:
                continue
            for checkpoint_id in dropped.checkpoint_ids:
                self._drop_checkpoint(branch, checkpoint_id)
            for place in dropped.blobs:
                self._drop(branch.blobs.pop(place, None))
            if not (branch.entries or branch.writes or branch.blobs):
                del thread[dropped.checkpoint_ns]
        if not thread:
            self._threads.pop(record.thread_id, None)

    def _drop_checkpoint(self, branch: _Branch, checkpoint_id: str) -> None:
        entry = branch.entries.pop(checkpoint_id, None)
        if entry is not None:
            del branch.order[bisect_left(branch.order, checkpoint_id)]
            self.checkpoints -= 1
            self._drop(entry.checkpoint)
            self._drop(entry.metadata)
        for write in branch.writes.pop(checkpoint_id, {}).values():
            self._drop(write.value)

    def _place(self, blob: Blob, lsn: int) -> Value:
        self.bytes += len(blob[1])
        return self._values.place(blob, lsn)

    def _drop(self, value: Value | None) -> None:
        if value is not None:
            self.bytes -= value.size
            self._values.drop(value)

    # ------------------------------------------------------------------ values

    def values_of_checkpoint(self, record: CheckpointStored) -> Iterator[tuple[Value, bytes]]:
        """The values that are stored where a record put its own, with the record's bytes."""
        branch = self._branch(record.thread_id, record.checkpoint_ns)
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
        """The same for pending writes."""
        branch = self._branch(record.thread_id, record.checkpoint_ns)
        writes = branch.writes.get(record.checkpoint_id, {}) if branch else {}
        for write in record.writes:
            stored = writes.get((record.task_id, write.index))
            if stored is not None:
                yield stored.value, write.value[1]

    def values_of_blobs(self, record: BlobsKept) -> Iterator[tuple[Value, bytes]]:
        """The same for values without their checkpoint."""
        branch = self._branch(record.thread_id, record.checkpoint_ns)
        for channel, (_, data) in record.blobs.items():
            value = branch.blobs.get((channel, record.versions[channel])) if branch else None
            if value is not None:
                yield value, data

    def remains_of_checkpoint(
        self, lsn: int, record: CheckpointStored
    ) -> CheckpointStored | BlobsKept | None:
        """What is stored still of a record."""
        branch = self._branch(record.thread_id, record.checkpoint_ns)
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

    def remains_of_writes(self, lsn: int, record: WritesStored) -> WritesStored | None:
        """What is stored still of a record."""
        branch = self._branch(record.thread_id, record.checkpoint_ns)
        stored = branch.writes.get(record.checkpoint_id, {}) if branch else {}
        kept = tuple(
            write
            for write in record.writes
            if (found := stored.get((record.task_id, write.index))) and found.value.lsn == lsn
        )
        if len(kept) == len(record.writes):
            return record
        return replace(record, writes=kept) if kept else None

    # ------------------------------------------------------------------ reads

    def of_runs(self, run_ids: Sequence[str]) -> tuple[str, ...]:
        """The threads that have checkpoints of some runs."""
        if self._runs is None:  # from the first question on: most shards are never asked
            self._runs = {}
            for thread_id, thread in self._threads.items():
                for branch in thread.values():
                    for entry in branch.entries.values():
                        self._note_run(thread_id, entry.facets)
        runs = set(run_ids)
        found = {thread_id for run_id in runs for thread_id in self._runs.get(run_id, ())}
        return tuple(sorted(thread_id for thread_id in found if self._has_run(thread_id, runs)))

    def _has_run(self, thread_id: str, runs: set[str]) -> bool:
        return any(
            entry.facets.get(RUN_ID) in runs
            for branch in self._threads.get(thread_id, {}).values()
            for entry in branch.entries.values()
        )

    def _note_run(self, thread_id: str, facets: Mapping[str, Scalar]) -> None:
        run_id = facets.get(RUN_ID)
        if isinstance(run_id, str) and self._runs is not None:
            self._runs.setdefault(run_id, set()).add(thread_id)

    def has(self, thread_id: str) -> bool:
        """Whether anything of a thread is stored."""
        return thread_id in self._threads

    def get(self, query: GetCheckpoint) -> CheckpointRow | None:
        """Fetch one checkpoint, the latest when no id (or an empty one) is given."""
        branch = self._branch(query.thread_id, query.checkpoint_ns)
        if branch is None or not branch.order:
            return None
        checkpoint_id = query.checkpoint_id or branch.order[-1]
        if checkpoint_id not in branch.entries:
            return None
        return self._row(branch, query.thread_id, query.checkpoint_ns, checkpoint_id)

    def list(self, query: ListCheckpoints) -> CheckpointPage:
        """One page of checkpoints, newest first over everything asked for."""
        rows: list[CheckpointRow] = []
        room = MAX_PAGE if query.limit is None else min(query.limit, MAX_PAGE)
        size = 0
        if not room:
            return CheckpointPage((), None)
        last: Position | None = None
        for scanned, (position, branch) in enumerate(self._newest_first(query), 1):
            facets = branch.entries[position.checkpoint_id].facets
            if all(facets.get(k, _ABSENT) == v for k, v in query.facets.items()):
                size += _row_bytes(branch, position.checkpoint_id)
                if rows and size > PAGE_BYTES:
                    return CheckpointPage(tuple(rows), last)
                rows.append(
                    self._row(
                        branch, position.thread_id, position.checkpoint_ns, position.checkpoint_id
                    )
                )
            if len(rows) == room or scanned >= MAX_SCAN:
                return CheckpointPage(tuple(rows), position)
            last = position
        return CheckpointPage(tuple(rows), None)

    def channel_histories(self, query: GetChannelHistory) -> ChannelHistories:
        """Walk back along the parents of a checkpoint, once for all channels."""
        branch = self._branch(query.thread_id, query.checkpoint_ns)
        writes: dict[str, list[tuple[str, str, Blob]]] = {c: [] for c in query.channels}
        seeds: dict[str, Blob] = {}
        if branch is not None and branch.order:
            entry = branch.entries.get(query.checkpoint_id or branch.order[-1])
            ancestor = entry.parent_id if entry else None
            seen: set[str] = set()  # ids come from outside: they may go in a circle
            while ancestor is not None and len(seeds) < len(writes) and ancestor not in seen:
                seen.add(ancestor)
                entry = branch.entries.get(ancestor)
                if entry is None:
                    break
                for task_id, write in reversed(_in_order(branch, ancestor)):
                    if write.channel in writes and write.channel not in seeds:
                        blob = self._values.blob(write.value)
                        writes[write.channel].append((task_id, write.channel, blob))
                for channel in writes.keys() - seeds.keys():
                    value = branch.blobs.get((channel, entry.versions.get(channel, "")))
                    if value is not None:
                        seeds[channel] = self._values.blob(value)
                ancestor = entry.parent_id
        return ChannelHistories(
            tuple(ChannelHistory(tuple(writes[c][::-1]), seeds.get(c)) for c in query.channels)
        )

    def read(self, query: ReadThread) -> ThreadPage:
        """One page of a thread, as the commands that would write it."""
        checkpoints: list[PutCheckpoint] = []
        writes: list[PutWrites] = []
        size = 0
        last: Position | None = None
        for ns, branch in sorted(self._threads.get(query.thread_id, {}).items()):
            known: dict[str, Version] = {}
            for checkpoint_id in sorted({*branch.entries, *branch.writes}):
                position = Position(checkpoint_id, query.thread_id, ns)
                entry = branch.entries.get(checkpoint_id)
                fresh = {
                    channel: value
                    for channel, version in (entry.versions if entry else {}).items()
                    if known.get(channel) != version
                    and (value := branch.blobs.get((channel, version)))
                }
                if entry is not None:
                    known = entry.versions
                if query.after is not None and (ns, checkpoint_id) <= (
                    query.after.checkpoint_ns,
                    query.after.checkpoint_id,
                ):
                    continue
                size += _bytes_of(branch, checkpoint_id, fresh.values())
                if last is not None and size > PAGE_BYTES:
                    return ThreadPage(tuple(checkpoints), tuple(writes), last)
                if entry is not None:
                    checkpoints.append(self._as_command(position, entry, fresh))
                writes += self._writes_as_commands(position, branch)
                last = position
        return ThreadPage(tuple(checkpoints), tuple(writes), None)

    def _as_command(
        self, position: Position, entry: _Entry, fresh: Mapping[str, Value]
    ) -> PutCheckpoint:
        blob = self._values.blob
        return PutCheckpoint(
            position.thread_id,
            position.checkpoint_ns,
            position.checkpoint_id,
            entry.parent_id,
            blob(entry.checkpoint),
            blob(entry.metadata),
            dict(entry.facets),
            dict(entry.versions),
            {channel: blob(value) for channel, value in fresh.items()},
            deltas=entry.deltas,
        )

    def _writes_as_commands(self, position: Position, branch: _Branch) -> Iterator[PutWrites]:
        tasks: dict[tuple[str, str], list[Write]] = {}
        for (task_id, index), write in branch.writes.get(position.checkpoint_id, {}).items():
            stored = Write(index, write.channel, self._values.blob(write.value))
            tasks.setdefault((task_id, write.task_path), []).append(stored)
        for (task_id, task_path), stored_writes in tasks.items():
            yield PutWrites(
                position.thread_id,
                position.checkpoint_ns,
                position.checkpoint_id,
                task_id,
                task_path,
                tuple(stored_writes),
            )

    def _newest_first(self, query: ListCheckpoints) -> Iterator[tuple[Position, _Branch]]:
        thread_ids = self._threads if query.thread_id is None else (query.thread_id,)
        runs = [
            self._branch_newest_first(branch, thread_id, ns, query)
            for thread_id in thread_ids
            for ns, branch in self._threads.get(thread_id, {}).items()
            if query.checkpoint_ns in (None, ns)
        ]
        return iter(runs[0]) if len(runs) == 1 else merge(*runs, key=_position, reverse=True)

    @staticmethod
    def _branch_newest_first(
        branch: _Branch, thread_id: str, ns: str, query: ListCheckpoints
    ) -> Iterator[tuple[Position, _Branch]]:
        begin, end = 0, len(branch.order)
        if query.checkpoint_id:
            begin = bisect_left(branch.order, query.checkpoint_id)
            end = bisect_right(branch.order, query.checkpoint_id)
        if query.before:
            end = min(end, bisect_left(branch.order, query.before))
        if query.after is not None:
            # ids above the position were listed; at the position itself, (thread, ns) decides
            end = min(end, bisect_right(branch.order, query.after.checkpoint_id))
        for index in range(end - 1, begin - 1, -1):
            position = Position(branch.order[index], thread_id, ns)
            if query.after is None or position < query.after:
                yield position, branch

    def _row(self, branch: _Branch, thread_id: str, ns: str, checkpoint_id: str) -> CheckpointRow:
        blob = self._values.blob
        entry = branch.entries[checkpoint_id]
        blobs = {
            channel: blob(value)
            for channel, version in entry.versions.items()
            if (value := branch.blobs.get((channel, version)))
        }
        writes = tuple(
            (task_id, write.channel, blob(write.value))
            for task_id, write in _in_order(branch, checkpoint_id)
        )
        return CheckpointRow(
            thread_id,
            ns,
            checkpoint_id,
            entry.parent_id,
            blob(entry.checkpoint),
            blob(entry.metadata),
            dict(entry.versions),
            blobs,
            writes,
        )

    def _branch(self, thread_id: str, checkpoint_ns: str) -> _Branch | None:
        return self._threads.get(thread_id, {}).get(checkpoint_ns)


_ABSENT = object()


def _position(candidate: tuple[Position, _Branch]) -> Position:
    return candidate[0]


def _made_from(branch: _Branch, checkpoint_id: str) -> set[str]:
    """The ancestors whose writes or values a checkpoint's delta channels are made from."""
    entry = branch.entries[checkpoint_id]
    wanted = {c for c in entry.deltas if (c, entry.versions.get(c, "")) not in branch.blobs}
    found: set[str] = set()
    ancestor = entry.parent_id
    while wanted and ancestor is not None and ancestor not in found:
        above = branch.entries.get(ancestor)
        if above is None:
            break
        found.add(ancestor)
        wanted = {c for c in wanted if (c, above.versions.get(c, "")) not in branch.blobs}
        ancestor = above.parent_id
    return found


def _in_order(branch: _Branch, checkpoint_id: str) -> list[tuple[str, _PendingWrite]]:
    """A checkpoint's pending writes by LangGraph's writes_sort_key: (task_path, task_id, index)."""
    pending = branch.writes.get(checkpoint_id)
    if not pending:
        return []
    ordered = sorted(pending.items(), key=lambda kv: (kv[1].task_path, *kv[0]))
    return [(task_id, write) for (task_id, _), write in ordered]


def _row_bytes(branch: _Branch, checkpoint_id: str) -> int:
    versions = branch.entries[checkpoint_id].versions.items()
    values = (branch.blobs.get(place) for place in versions)
    return _bytes_of(branch, checkpoint_id, [value for value in values if value is not None])


def _bytes_of(branch: _Branch, checkpoint_id: str, values: Iterable[Value]) -> int:
    """Bytes of a checkpoint and its writes, with the channel values given."""
    entry = branch.entries.get(checkpoint_id)
    return (
        (entry.checkpoint.size + entry.metadata.size if entry else 0)
        + sum(value.size for value in values)
        + sum(write.value.size for write in branch.writes.get(checkpoint_id, {}).values())
    )
