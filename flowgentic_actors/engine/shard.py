"""A shard: commands in, replies and records out. The one truth of every mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from flowgentic_actors.engine.commands import (
    WRITES,
    Command,
    DeleteItem,
    DeleteThread,
    FindRuns,
    GetChannelHistory,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    PutItem,
    Query,
    ReadThread,
    SearchItems,
    WriteCommand,
)
from flowgentic_actors.engine.items import Items
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    ItemDeleted,
    ItemStored,
    Record,
    ThreadDeleted,
    WritesStored,
)
from flowgentic_actors.engine.replies import (
    CheckpointReply,
    Done,
    ItemReply,
    MissingBlobs,
    Reply,
    ThreadIds,
)
from flowgentic_actors.engine.threads import Threads
from flowgentic_actors.engine.values import NOWHERE, Value, Values

_DONE = Done()


class Applied(NamedTuple):
    """What a command came to: the answer, and the record to keep when it changed something."""

    reply: Reply
    record: Record | None


class ShardSize(Struct, frozen=True):
    """What a shard holds.

    Attributes:
        threads: Threads with anything stored.
        checkpoints: Checkpoints of all threads.
        items: Items of all namespaces.
        blob_bytes: Bytes of values (checkpoints, channel values, writes, items).
    """

    threads: int
    checkpoints: int
    items: int
    blob_bytes: int


class Shard:
    """The memory of one shard.

    It is changed by records alone: `plan` decides the record of a write and `replay` carries it
    out, whether it was decided now or long ago. So a shard rebuilt from its records is the shard
    that was.

    Args:
        hot_bytes: Bytes of values to keep in memory, for a shard whose records are in a journal;
            None keeps all.
    """

    def __init__(self, hot_bytes: int | None = None) -> None:
        self._values = Values(hot_bytes)
        self._threads = Threads(self._values)
        self._items = Items(self._values)

    def apply(self, command: Command, now_us: int) -> Applied:
        """Carry out a command, on a shard whose values are all in memory.

        Args:
            command: What to do.
            now_us: The time to stamp items with, microseconds since the Unix epoch.

        Returns:
            The reply and, for a write that changed something, its record.

        Raises:
            InvalidRequestError: If the command cannot be carried out as it stands.
        """
        if not isinstance(command, WRITES):
            return Applied(self.query(command), None)
        planned = self.plan(command, now_us)
        if planned.record is not None:
            self.replay(planned.record)
        return planned

    def query(self, query: Query) -> Reply:
        """Answer a query.

        Raises:
            InvalidRequestError: If it cannot be answered as it stands.
            ColdValuesError: If it needs values that are not in memory: `warm` them and ask again.
        """
        self._values.begin()
        reply = self._read(query)
        self._values.check()
        return reply

    def plan(self, command: WriteCommand, now_us: int) -> Applied:
        """Decide what a write comes to, and change nothing; see `apply`."""
        planned = self._plan(command, now_us)
        if isinstance(planned, MissingBlobs):
            return Applied(planned, None)
        return Applied(_DONE, planned)

    def replay(self, record: Record, lsn: int = NOWHERE) -> None:
        """Carry out a record.

        Args:
            record: The record.
            lsn: Address of the journal entry that holds it.
        """
        match record:
            case CheckpointStored():
                self._threads.store_checkpoint(record, lsn)
            case WritesStored():
                self._threads.store_writes(record, lsn)
            case ItemStored():
                self._items.store(record, lsn)
            case ItemDeleted():
                self._items.delete(record)
            case BlobsKept():
                self._threads.store_blobs(record, lsn)
            case CheckpointsDropped():
                self._threads.drop(record)
            case ThreadDeleted(thread_id):
                self._threads.delete(thread_id)

    # ------------------------------------------------------------------ hot and cold

    def warm(self, lsn: int, record: Record, *, lasting: bool) -> None:
        """Take the values of a journal entry into memory, those that are stored still.

        Args:
            lsn: The entry's address.
            record: Its record.
            lasting: Whether they are likely to be read again; otherwise they are the next to go.
        """
        for value, data in self._values_of(record):
            self._values.warm(value, lsn, data, lasting=lasting)

    def cool(self, placed_to: int) -> None:
        """Let go of values beyond the limit.

        Args:
            placed_to: LSN up to which entries can be read.
        """
        self._values.cool(placed_to)

    def alive(self, lsn: int, record: Record) -> int:
        """Bytes of the values of a journal entry that are stored still."""
        return sum(value.size for value, _ in self._values_of(record) if value.lsn == lsn)

    def remains(self, lsn: int, record: Record) -> Record | None:
        """What is stored still of a record; itself when that is all, None when it is nothing.

        Args:
            lsn: Address of its entry.
            record: The record.
        """
        match record:
            case CheckpointStored():
                return self._threads.remains_of_checkpoint(lsn, record)
            case WritesStored():
                return self._threads.remains_of_writes(lsn, record)
            case BlobsKept() | ItemStored():
                alive = any(value.lsn == lsn for value, _ in self._values_of(record))
                return record if alive else None
            case ItemDeleted() | ThreadDeleted() | CheckpointsDropped():
                return None

    def growth(self, record: Record) -> int:
        """Bytes of values by which a record would make the shard larger, without its deletions."""
        match record:
            case CheckpointStored():
                blobs = [record.checkpoint, record.metadata, *record.blobs.values()]
            case WritesStored():
                blobs = [write.value for write in record.writes]
            case ItemStored():
                blobs = [record.value]
            case _:
                return 0
        stored = sum(value.size for value, _ in self._values_of(record))
        return sum(len(data) for _, data in blobs) - stored

    def when_dropped(self, told: Callable[[int, int], None] | None) -> None:
        """Tell (LSN, size) of every value from now on that is deleted or replaced."""
        self._values.on_dropped = told

    @property
    def hot_bytes(self) -> int:
        """Bytes that values take in memory, in a shard with a limit."""
        return self._values.hot_bytes

    @property
    def thread_bytes(self) -> int:
        """Bytes of the values of threads."""
        return self._threads.bytes

    @property
    def item_bytes(self) -> int:
        """Bytes of the values of items."""
        return self._items.bytes

    def _values_of(self, record: Record) -> Iterator[tuple[Value, bytes]]:
        """The values stored at a record's places, with the record's bytes for each."""
        match record:
            case CheckpointStored():
                return self._threads.values_of_checkpoint(record)
            case WritesStored():
                return self._threads.values_of_writes(record)
            case BlobsKept():
                return self._threads.values_of_blobs(record)
            case ItemStored():
                return self._items.values_of(record)
            case ItemDeleted() | ThreadDeleted() | CheckpointsDropped():
                return iter(())

    # ------------------------------------------------------------------

    def size(self) -> ShardSize:
        """Count what is stored."""
        return ShardSize(
            threads=len(self._threads),
            checkpoints=self._threads.checkpoints,
            items=len(self._items),
            blob_bytes=self._threads.bytes + self._items.bytes,
        )

    def _plan(self, command: WriteCommand, now_us: int) -> Record | MissingBlobs | None:
        match command:
            case PutItem():
                return self._items.plan_put(command, now_us)
            case DeleteItem(namespace, key):
                return ItemDeleted(namespace, key) if self._items.has(namespace, key) else None
            case DeleteThread(thread_id):
                return ThreadDeleted(thread_id) if self._threads.has(thread_id) else None
            case _:
                return self._threads.plan(command)

    def _read(self, query: Query) -> Reply:
        match query:
            case GetItem(namespace, key):
                return ItemReply(self._items.get(namespace, key))
            case SearchItems():
                return self._items.search(query)
            case ListNamespaces():
                return self._items.list_namespaces(query)
            case _:
                return self._read_threads(query)

    def _read_threads(
        self, query: GetCheckpoint | ListCheckpoints | GetChannelHistory | ReadThread | FindRuns
    ) -> Reply:
        match query:
            case GetCheckpoint():
                return CheckpointReply(self._threads.get(query))
            case ListCheckpoints():
                return self._threads.list(query)
            case GetChannelHistory():
                return self._threads.channel_histories(query)
            case ReadThread():
                return self._threads.read(query)
            case FindRuns(run_ids):
                return ThreadIds(self._threads.of_runs(run_ids))
