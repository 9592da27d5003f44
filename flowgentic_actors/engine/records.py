"""What a write did: the only thing that changes a shard, live or on replay.

A record is absolute (times are in it, refused parts are not), so replaying records in order gives
the same shard, and replaying one twice changes nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.model import Blob, Blobs, Channels, Facets, Version, Write


class CheckpointStored(Struct, tag=1, array_like=True, frozen=True):
    """A checkpoint and the channel values that came with it."""

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


class WritesStored(Struct, tag=2, array_like=True, frozen=True):
    """Pending writes of one task that were accepted."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    writes: tuple[Write, ...]


class ThreadDeleted(Struct, tag=3, array_like=True, frozen=True):
    """A thread is gone."""

    thread_id: str


class ItemStored(Struct, tag=4, array_like=True, frozen=True):
    """An item with its times, microseconds since the Unix epoch."""

    namespace: tuple[str, ...]
    key: str
    value: Blob
    created_us: int
    updated_us: int


class ItemDeleted(Struct, tag=5, array_like=True, frozen=True):
    """An item is gone."""

    namespace: tuple[str, ...]
    key: str


class DroppedFrom(Struct, array_like=True, frozen=True):
    """What one namespace of a thread loses: checkpoints with their writes, and channel values."""

    checkpoint_ns: str
    checkpoint_ids: tuple[str, ...]
    blobs: tuple[tuple[str, Version], ...]


class CheckpointsDropped(Struct, tag=6, array_like=True, frozen=True):
    """Some checkpoints of a thread are gone, and the values that only they had."""

    thread_id: str
    branches: tuple[DroppedFrom, ...]


class BlobsKept(Struct, tag=7, array_like=True, frozen=True):
    """What compaction leaves of a checkpoint that is gone: values that others still have."""

    thread_id: str
    checkpoint_ns: str
    versions: Channels
    blobs: Blobs


Record: TypeAlias = (
    CheckpointStored
    | WritesStored
    | ThreadDeleted
    | CheckpointsDropped
    | BlobsKept
    | ItemStored
    | ItemDeleted
)
