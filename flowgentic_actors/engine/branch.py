"""A branch: the checkpoints of one namespace of one thread, their values and pending writes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.model import Scalar, Version
from flowgentic_actors.engine.values import Value

BranchKey: TypeAlias = tuple[str, Version]
"""Where a channel's value is: (channel, version)."""

_NOT_THERE: Version = ""  # no channel has an empty version


class StoredCheckpoint(Struct, frozen=True):
    """One stored checkpoint; its channel values are at the places that `versions` names."""

    parent_id: str | None
    checkpoint: Value
    metadata: Value
    facets: dict[str, Scalar]
    versions: dict[str, Version]
    deltas: tuple[str, ...]


class PendingWrite(Struct, frozen=True, gc=False):
    """One pending write of a task."""

    channel: str
    value: Value
    task_path: str


class Branch:
    """Everything that is stored of one checkpoint namespace of a thread.

    Attributes:
        entries: Checkpoints by id.
        order: Their ids, ascending; uuid6 ids arrive in order.
        blobs: Channel values by place.
        writes: Pending writes of each checkpoint, by (task id, index).
    """

    __slots__ = ("_deltas", "_uses", "blobs", "entries", "order", "writes")

    def __init__(self) -> None:
        self.entries: dict[str, StoredCheckpoint] = {}
        self.order: list[str] = []
        self.blobs: dict[BranchKey, Value] = {}
        self.writes: dict[str, dict[tuple[str, int], PendingWrite]] = {}
        self._uses: dict[BranchKey, int] | None = None
        self._deltas = False  # whether any checkpoint ever had delta channels

    def __bool__(self) -> bool:
        return bool(self.entries or self.writes or self.blobs)

    # ------------------------------------------------------------------ changes

    def put(self, checkpoint_id: str, entry: StoredCheckpoint) -> StoredCheckpoint | None:
        """Put a checkpoint; returns the one of the same id that it replaces."""
        old = self.entries.get(checkpoint_id)
        if old is None:
            insort(self.order, checkpoint_id)
        self.entries[checkpoint_id] = entry
        if entry.deltas:
            self._deltas = True
        if self._uses is not None:
            _count(self._uses, old, -1)
            _count(self._uses, entry, 1)
        return old

    def pop(self, checkpoint_id: str) -> StoredCheckpoint | None:
        """Take a checkpoint out."""
        entry = self.entries.pop(checkpoint_id, None)
        if entry is not None:
            del self.order[bisect_left(self.order, checkpoint_id)]
            if self._uses is not None:
                _count(self._uses, entry, -1)
        return entry

    def restore(self) -> None:
        """Rebuild all derived state after an interrupted change."""
        self.order = sorted(self.entries)
        self._uses = None
        self._deltas = any(entry.deltas for entry in self.entries.values())

    # ------------------------------------------------------------------ removable values

    def only_of(self, checkpoint_ids: Iterable[str]) -> Iterator[BranchKey]:
        """The places of values that only the given checkpoints have.

        From the first question on uses are counted, so the next ones cost their answer.
        """
        if self._uses is None:
            uses: dict[BranchKey, int] = {}  # an interrupted question leaves none half made
            for entry in self.entries.values():
                _count(uses, entry, 1)
            self._uses = uses
        used = self._uses
        gone: dict[BranchKey, int] = {}
        for checkpoint_id in checkpoint_ids:
            for place in self.entries[checkpoint_id].versions.items():
                gone[place] = gone.get(place, 0) + 1
        return (p for p, n in gone.items() if p in self.blobs and used[p] == n)

    def unused(self) -> Iterator[BranchKey]:
        """The places of values that no checkpoint has."""
        used = {place for entry in self.entries.values() for place in entry.versions.items()}
        return (place for place in self.blobs if place not in used)

    def older_than_latest(self, keep: int) -> set[str]:
        """All checkpoints but the latest, and those that their delta channels are made from."""
        older = set(self.order[:-keep])
        if self._deltas and older:
            for checkpoint_id in self.order[-keep:]:
                older -= self._made_from(checkpoint_id)
        return older

    def _made_from(self, checkpoint_id: str) -> set[str]:
        """The ancestors whose writes or values a checkpoint's delta channels are made from."""
        entry = self.entries[checkpoint_id]
        wanted = {c for c in entry.deltas if not self.has_value(entry, c)}
        found: set[str] = set()
        ancestor = entry.parent_id
        while wanted and ancestor is not None and ancestor not in found:
            above = self.entries.get(ancestor)
            if above is None:
                break
            found.add(ancestor)
            wanted = {c for c in wanted if not self.has_value(above, c)}
            ancestor = above.parent_id
        return found

    # ------------------------------------------------------------------ questions

    def has_value(self, entry: StoredCheckpoint, channel: str) -> bool:
        """Whether a channel has a value at a checkpoint."""
        return (channel, entry.versions.get(channel, _NOT_THERE)) in self.blobs

    def value(self, entry: StoredCheckpoint, channel: str) -> Value | None:
        """A channel's value at a checkpoint."""
        return self.blobs.get((channel, entry.versions.get(channel, _NOT_THERE)))

    def values(self, versions: Mapping[str, Version]) -> Iterator[tuple[str, Value]]:
        """The channels with a value at given versions, and their values."""
        for place in versions.items():
            value = self.blobs.get(place)
            if value is not None:
                yield place[0], value

    def writes_in_order(self, checkpoint_id: str) -> list[tuple[str, PendingWrite]]:
        """A checkpoint's pending writes by LangGraph's `writes_sort_key`.

        That is (task_path, task_id, index); given as (task_id, write).
        """
        pending = self.writes.get(checkpoint_id)
        if not pending:
            return []
        ordered = sorted(pending.items(), key=lambda kv: (kv[1].task_path, *kv[0]))
        return [(task_id, write) for (task_id, _), write in ordered]

    def ids_after(self, checkpoint_id: str | None) -> Iterator[str]:
        """The ids of checkpoints, and of those that only have writes, in order; None for all."""
        begin = 0 if checkpoint_id is None else bisect_right(self.order, checkpoint_id)
        early = sorted(
            i
            for i in self.writes.keys() - self.entries.keys()
            if checkpoint_id is None or i > checkpoint_id
        )
        return merge(islice(self.order, begin, None), early)

    def bytes_of(self, checkpoint_id: str, values: Iterable[Value]) -> int:
        """The bytes of a checkpoint and its writes, with the given channel values."""
        entry = self.entries.get(checkpoint_id)
        return (
            (entry.checkpoint.size + entry.metadata.size if entry else 0)
            + sum(value.size for value in values)
            + sum(write.value.size for write in self.writes.get(checkpoint_id, {}).values())
        )

    def row_bytes(self, checkpoint_id: str) -> int:
        """The bytes of a checkpoint with all its values and writes."""
        values = self.values(self.entries[checkpoint_id].versions)
        return self.bytes_of(checkpoint_id, (value for _, value in values))

    def all_values(self) -> Iterator[Value]:
        """All stored values."""
        for entry in self.entries.values():
            yield entry.checkpoint
            yield entry.metadata
        yield from self.blobs.values()
        for writes in self.writes.values():
            for write in writes.values():
                yield write.value


def _count(uses: dict[BranchKey, int], entry: StoredCheckpoint | None, change: int) -> None:
    if entry is not None:
        for place in entry.versions.items():
            uses[place] = uses.get(place, 0) + change
