"""An index of a journal's content, without values, for listings."""

from __future__ import annotations

from typing import NamedTuple

from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    ItemDeleted,
    ItemRecord,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    ThreadDeleted,
    ThreadRecord,
    ThreadsExpired,
    WritesStored,
)
from flowgentic_actors.shard.journaling.entries import SessionTable
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader


class ItemSummary(NamedTuple):
    """The summary of one item.

    Attributes:
        lsn: Where its value is.
        type: Type of the value, as its serializer named it.
        size: Bytes of the value.
        created_us: Microseconds since the Unix epoch.
        updated_us: The same.
    """

    lsn: int
    type: str
    size: int
    created_us: int
    updated_us: int


class ThreadSummary:
    """The summary of one thread.

    Attributes:
        lsns: Its entries.
        checkpoints: Ids of its checkpoints, with their namespaces.
    """

    def __init__(self) -> None:
        self.lsns: list[int] = []
        self.checkpoints: set[tuple[str, str]] = set()
        self._sizes: dict[tuple[object, ...], int] = {}

    @property
    def bytes(self) -> int:
        """The bytes of all values of the thread."""
        return sum(self._sizes.values())

    @property
    def namespaces(self) -> list[str]:
        """The thread's checkpoint namespaces, in order; the empty one is the graph's own."""
        return sorted({namespace for namespace, _ in self.checkpoints})

    @property
    def last_id(self) -> str:
        """The id of the newest checkpoint, empty when there is none."""
        return max((checkpoint_id for _, checkpoint_id in self.checkpoints), default="")

    def add(self, lsn: int, record: CheckpointStored | WritesStored) -> None:
        """Add a record."""
        self.lsns.append(lsn)
        namespace, checkpoint_id = record.checkpoint_ns, record.checkpoint_id
        if isinstance(record, WritesStored):
            for write in record.writes:
                place = ("w", namespace, checkpoint_id, record.task_id, write.index)
                self._sizes[place] = len(write.value[1])
            return
        self.checkpoints.add((namespace, checkpoint_id))
        size = len(record.checkpoint[1]) + len(record.metadata[1])
        self._sizes["c", namespace, checkpoint_id] = size
        self._add_sizes(record)

    def add_blobs(self, lsn: int, record: BlobsKept) -> None:
        """Add values whose checkpoint is removed."""
        self.lsns.append(lsn)
        self._add_sizes(record)

    def drop(self, lsn: int, record: CheckpointsDropped) -> None:
        """Remove checkpoints."""
        self.lsns.append(lsn)
        for dropped in record.branches:
            namespace, gone = dropped.checkpoint_ns, set(dropped.checkpoint_ids)
            self.checkpoints -= {(namespace, checkpoint_id) for checkpoint_id in gone}
            for channel, version in dropped.blobs:
                self._sizes.pop(("b", namespace, channel, version), None)
            for place in [p for p in self._sizes if p[0] != "b" and p[1] == namespace]:
                if place[2] in gone:
                    del self._sizes[place]

    def _add_sizes(self, record: CheckpointStored | BlobsKept) -> None:
        for channel, blob in record.blobs.items():
            if channel in record.versions:
                place = ("b", record.checkpoint_ns, channel, record.versions[channel])
                self._sizes[place] = len(blob[1])


class OfflineIndex:
    """The index of one shard's journal.

    Attributes:
        threads: Threads by id.
        items: Items by namespace and key.

    Args:
        reader: The journal, read to its end.
    """

    def __init__(self, reader: OfflineReader) -> None:
        self.threads: dict[str, ThreadSummary] = {}
        self.items: dict[tuple[tuple[str, ...], str], ItemSummary] = {}
        for found in reader.entries():
            if isinstance(found.entry, SessionTable):
                continue
            match found.entry.record:
                case ItemStored() | ItemDeleted() | ItemsRefreshed() | ItemsExpired() as record:
                    self._note_item(found.lsn, record)
                case record:
                    self._note_thread(found.lsn, record)

    def _note_item(self, lsn: int, record: ItemRecord) -> None:
        match record:
            case ItemStored(namespace, key, (kind, data), created_us, updated_us):
                summary = ItemSummary(lsn, kind, len(data), created_us, updated_us)
                self.items[namespace, key] = summary
            case ItemDeleted(namespace, key):
                self.items.pop((namespace, key), None)
            case ItemsExpired(places):
                for place in places:
                    self.items.pop(place, None)
            case ItemsRefreshed():
                pass  # how long they live is not told

    def _note_thread(self, lsn: int, record: ThreadRecord) -> None:
        match record:
            case ThreadDeleted(thread_id):
                self.threads.pop(thread_id, None)
                return
            case ThreadsExpired(thread_ids):
                for thread_id in thread_ids:
                    self.threads.pop(thread_id, None)
                return
        thread = self.threads.setdefault(record.thread_id, ThreadSummary())
        match record:
            case CheckpointStored() | WritesStored():
                thread.add(lsn, record)
            case BlobsKept():
                thread.add_blobs(lsn, record)
            case CheckpointsDropped():
                thread.drop(lsn, record)
                if not thread.checkpoints:
                    del self.threads[record.thread_id]
