"""A shard: commands in, replies and records out. The one truth of every mode."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from flowgentic_actors.engine.commands import (
    WRITES,
    Command,
    DeleteItem,
    DeleteThread,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    PutCheckpoint,
    PutItem,
    PutWrites,
    Query,
    SearchItems,
    WriteCommand,
)
from flowgentic_actors.engine.items import Items
from flowgentic_actors.engine.records import (
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
)
from flowgentic_actors.engine.threads import Threads

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

    It is changed by records alone: `apply` decides the record of a command and carries it out,
    `replay` carries out a record that was decided before. So a shard rebuilt from its records is
    the shard that was.
    """

    def __init__(self) -> None:
        self._threads = Threads()
        self._items = Items()

    def apply(self, command: Command, now_us: int) -> Applied:
        """Carry out a command.

        Args:
            command: What to do.
            now_us: The time to stamp items with, microseconds since the Unix epoch.

        Returns:
            The reply and, for a write that changed something, its record.

        Raises:
            InvalidRequestError: If the command cannot be carried out as it stands.
        """
        if not isinstance(command, WRITES):
            return Applied(self._read(command), None)
        planned = self._plan(command, now_us)
        if isinstance(planned, MissingBlobs):
            return Applied(planned, None)
        if planned is not None:
            self.replay(planned)
        return Applied(_DONE, planned)

    def replay(self, record: Record) -> None:
        """Carry out a record."""
        match record:
            case CheckpointStored():
                self._threads.store_checkpoint(record)
            case WritesStored():
                self._threads.store_writes(record)
            case ItemStored():
                self._items.store(record)
            case ItemDeleted():
                self._items.delete(record)
            case ThreadDeleted(thread_id):
                self._threads.delete(thread_id)

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
            case PutCheckpoint():
                return self._threads.plan_checkpoint(command)
            case PutWrites():
                return self._threads.plan_writes(command)
            case DeleteThread(thread_id):
                return ThreadDeleted(thread_id) if self._threads.has(thread_id) else None
            case PutItem():
                return self._items.plan_put(command, now_us)
            case DeleteItem(namespace, key):
                return ItemDeleted(namespace, key) if self._items.has(namespace, key) else None

    def _read(self, query: Query) -> Reply:
        match query:
            case GetCheckpoint():
                return CheckpointReply(self._threads.get(query))
            case ListCheckpoints():
                return self._threads.list(query)
            case GetItem(namespace, key):
                return ItemReply(self._items.get(namespace, key))
            case SearchItems():
                return self._items.search(query)
            case ListNamespaces():
                return self._items.list_namespaces(query)
