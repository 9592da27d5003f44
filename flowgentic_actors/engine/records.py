"""Records: what writes did, the only thing that changes a shard, live or on replay.

A record is absolute (times are in it, refused parts are not), so replaying records in order gives
the same shard, and replaying one twice changes nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.model import Blob, Blobs, Channels, Facets, Vector, Version, Write


class CheckpointStored(Struct, tag=1, array_like=True, frozen=True, gc=False):
    """A stored checkpoint, with its new channel values and its time."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    checkpoint: Blob
    metadata: Blob
    facets: Facets
    versions: Channels
    blobs: Blobs
    deltas: tuple[str, ...] = ()
    time_us: int = 0


class WritesStored(Struct, tag=2, array_like=True, frozen=True, gc=False):
    """The accepted pending writes of one task."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    writes: tuple[Write, ...]
    time_us: int = 0


class ThreadDeleted(Struct, tag=3, array_like=True, frozen=True, gc=False):
    """The deletion of a thread."""

    thread_id: str


class ItemStored(Struct, tag=4, array_like=True, frozen=True, gc=False):
    """A stored item with its times, in microseconds since the Unix epoch.

    Attributes:
        updated_us: Its version as well: no two of one key are the same.
        expires_us: When its time is over, 0 for never.
        ttl_us: How long it lives from a refresh on.
    """

    namespace: tuple[str, ...]
    key: str
    value: Blob
    created_us: int
    updated_us: int
    expires_us: int = 0
    ttl_us: int = 0
    vectors: tuple[Vector, ...] = ()


class ItemDeleted(Struct, tag=5, array_like=True, frozen=True, gc=False):
    """The deletion of an item."""

    namespace: tuple[str, ...]
    key: str


class DroppedFrom(Struct, array_like=True, frozen=True, gc=False):
    """Removals from one branch: checkpoints with their writes, and channel values."""

    checkpoint_ns: str
    checkpoint_ids: tuple[str, ...]
    blobs: tuple[tuple[str, Version], ...]


class CheckpointsDropped(Struct, tag=6, array_like=True, frozen=True, gc=False):
    """The removal of checkpoints of a thread, and of the values that only they had."""

    thread_id: str
    branches: tuple[DroppedFrom, ...]


class BlobsKept(Struct, tag=7, array_like=True, frozen=True, gc=False):
    """The rest of a removed checkpoint after compaction: values that other checkpoints share."""

    thread_id: str
    checkpoint_ns: str
    versions: Channels
    blobs: Blobs


class ItemsRefreshed(Struct, tag=8, array_like=True, frozen=True, gc=False):
    """The refresh of items that were read: their lives restart at that time."""

    items: tuple[tuple[tuple[str, ...], str], ...]
    time_us: int


class ItemsExpired(Struct, tag=9, array_like=True, frozen=True, gc=False):
    """The removal of expired items."""

    items: tuple[tuple[tuple[str, ...], str], ...]


class ThreadsExpired(Struct, tag=10, array_like=True, frozen=True, gc=False):
    """The removal of expired threads."""

    thread_ids: tuple[str, ...]


ThreadRecord: TypeAlias = (
    CheckpointStored
    | WritesStored
    | ThreadDeleted
    | CheckpointsDropped
    | BlobsKept
    | ThreadsExpired
)

ItemRecord: TypeAlias = ItemStored | ItemDeleted | ItemsRefreshed | ItemsExpired

Record: TypeAlias = ThreadRecord | ItemRecord

RECORDS = (
    CheckpointStored,
    WritesStored,
    ThreadDeleted,
    CheckpointsDropped,
    BlobsKept,
    ThreadsExpired,
    ItemStored,
    ItemDeleted,
    ItemsRefreshed,
    ItemsExpired,
)
"""Their types, to tell them from commands."""
