"""Threads: checkpoints with per-channel blobs, and pending writes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from heapq import merge

from msgspec import Struct

from flowgentic_actors.engine.commands import (
    GetCheckpoint,
    ListCheckpoints,
    PutCheckpoint,
    PutWrites,
)
from flowgentic_actors.engine.model import PAGE_BYTES, Blob, Position, Scalar, Version, Write
from flowgentic_actors.engine.records import CheckpointStored, WritesStored
from flowgentic_actors.engine.replies import CheckpointPage, CheckpointRow, MissingBlobs

MAX_PAGE = 1024
"""Most checkpoints in one page, however small they are."""

MAX_SCAN = 20_000
"""Most checkpoints that one page looks at before it is closed, full or not."""


class _Entry(Struct, frozen=True):
    parent_id: str | None
    checkpoint: Blob
    metadata: Blob
    facets: dict[str, Scalar]
    versions: dict[str, Version]


class _PendingWrite(Struct, frozen=True, gc=False):
    channel: str
    value: Blob
    task_path: str


class _Branch:
    """One (thread, checkpoint namespace)."""

    __slots__ = ("blobs", "entries", "order", "writes")

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        self.order: list[str] = []  # ids, ascending; uuid6 ids arrive in order
        self.blobs: dict[tuple[str, Version], Blob] = {}  # by (channel, version)
        self.writes: dict[str, dict[tuple[str, int], _PendingWrite]] = {}


class Threads:
    """All threads of a shard."""

    def __init__(self) -> None:
        self._threads: dict[str, dict[str, _Branch]] = {}
        self.checkpoints = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._threads)

    # ------------------------------------------------------------------ writes, decided

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

    # ------------------------------------------------------------------ writes, carried out

    def store_checkpoint(self, record: CheckpointStored) -> None:
        """Apply a record."""
        branch = self._threads.setdefault(record.thread_id, {}).setdefault(
            record.checkpoint_ns, _Branch()
        )
        old = branch.entries.get(record.checkpoint_id)
        if old is None:
            insort(branch.order, record.checkpoint_id)
            self.checkpoints += 1
        else:
            self.bytes -= len(old.checkpoint[1]) + len(old.metadata[1])
        branch.entries[record.checkpoint_id] = _Entry(
            record.parent_id, record.checkpoint, record.metadata, record.facets, record.versions
        )
        self.bytes += len(record.checkpoint[1]) + len(record.metadata[1])
        for channel, blob in record.blobs.items():
            version = record.versions.get(channel)
            if version is None:
                continue  # a value without a version belongs to no checkpoint
            old_blob = branch.blobs.get((channel, version))
            self.bytes += len(blob[1]) - (len(old_blob[1]) if old_blob else 0)
            branch.blobs[channel, version] = blob

    def store_writes(self, record: WritesStored) -> None:
        """Apply a record."""
        branch = self._threads.setdefault(record.thread_id, {}).setdefault(
            record.checkpoint_ns, _Branch()
        )
        writes = branch.writes.setdefault(record.checkpoint_id, {})
        for write in record.writes:
            key = (record.task_id, write.index)
            self.bytes += len(write.value[1]) - (len(writes[key].value[1]) if key in writes else 0)
            writes[key] = _PendingWrite(write.channel, write.value, record.task_path)

    def delete(self, thread_id: str) -> None:
        """Apply the deletion of a thread."""
        for branch in self._threads.pop(thread_id, {}).values():
            self.checkpoints -= len(branch.entries)
            self.bytes -= sum(
                len(entry.checkpoint[1]) + len(entry.metadata[1])
                for entry in branch.entries.values()
            )
            self.bytes -= sum(len(data) for _, data in branch.blobs.values())
            self.bytes -= sum(
                len(write.value[1])
                for writes in branch.writes.values()
                for write in writes.values()
            )

    # ------------------------------------------------------------------ reads

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
        return _row(branch, query.thread_id, query.checkpoint_ns, checkpoint_id)

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
                row = _row(
                    branch, position.thread_id, position.checkpoint_ns, position.checkpoint_id
                )
                size += _row_bytes(row)
                if rows and size > PAGE_BYTES:
                    return CheckpointPage(tuple(rows), last)
                rows.append(row)
            if len(rows) == room or scanned >= MAX_SCAN:
                return CheckpointPage(tuple(rows), position)
            last = position
        return CheckpointPage(tuple(rows), None)

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

    def _branch(self, thread_id: str, checkpoint_ns: str) -> _Branch | None:
        return self._threads.get(thread_id, {}).get(checkpoint_ns)


_ABSENT = object()


def _position(candidate: tuple[Position, _Branch]) -> Position:
    return candidate[0]


def _row(branch: _Branch, thread_id: str, ns: str, checkpoint_id: str) -> CheckpointRow:
    entry = branch.entries[checkpoint_id]
    blobs = {
        channel: blob
        for channel, version in entry.versions.items()
        if (blob := branch.blobs.get((channel, version)))
    }
    pending = branch.writes.get(checkpoint_id)
    writes: tuple[tuple[str, str, Blob], ...] = ()
    if pending:
        # LangGraph's writes_sort_key: (task_path, task_id, index)
        ordered = sorted(pending.items(), key=lambda kv: (kv[1].task_path, *kv[0]))
        writes = tuple((task_id, write.channel, write.value) for (task_id, _), write in ordered)
    return CheckpointRow(
        thread_id,
        ns,
        checkpoint_id,
        entry.parent_id,
        entry.checkpoint,
        entry.metadata,
        dict(entry.versions),
        blobs,
        writes,
    )


def _row_bytes(row: CheckpointRow) -> int:
    return (
        len(row.checkpoint[1])
        + len(row.metadata[1])
        + sum(len(data) for _, data in row.blobs.values())
        + sum(len(data) for _, _, (_, data) in row.writes)
    )
