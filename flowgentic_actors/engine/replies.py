"""The replies of a shard."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.commands import PutCheckpoint, PutWrites
from flowgentic_actors.engine.model import (
    Blob,
    Blobs,
    Channels,
    ItemPosition,
    NamespacePosition,
    Position,
    RankPosition,
    ThreadPosition,
)


class Done(Struct, tag=1, array_like=True, frozen=True, gc=False):
    """The write took effect."""


class MissingBlobs(Struct, tag=2, array_like=True, frozen=True, gc=False):
    """The checkpoint was not stored: resend it with the values of these channels."""

    channels: tuple[str, ...]


class CheckpointRow(Struct, array_like=True, frozen=True, gc=False):
    """A checkpoint with all parts of a `CheckpointTuple`.

    Attributes:
        blobs: Channel values, by channel.
        writes: Pending writes as (task id, channel, value), in the order of LangGraph's
            `writes_sort_key`.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    checkpoint: Blob
    metadata: Blob
    versions: Channels
    blobs: Blobs
    writes: tuple[tuple[str, str, Blob], ...]


class CheckpointReply(Struct, tag=3, array_like=True, frozen=True, gc=False):
    """The requested checkpoint, or None."""

    row: CheckpointRow | None


class CheckpointPage(Struct, tag=4, array_like=True, frozen=True, gc=False):
    """A page of checkpoints; `after` is where the next one begins, None on the last."""

    rows: tuple[CheckpointRow, ...]
    after: Position | None


class ItemRow(Struct, array_like=True, frozen=True, gc=False):
    """An item; times are microseconds since the Unix epoch, UTC."""

    namespace: tuple[str, ...]
    key: str
    value: Blob
    created_us: int
    updated_us: int


class ItemReply(Struct, tag=5, array_like=True, frozen=True, gc=False):
    """The requested item, or None."""

    row: ItemRow | None


class ItemPage(Struct, tag=6, array_like=True, frozen=True, gc=False):
    """A page of items.

    Attributes:
        rows: The items.
        after: Where the next page begins, None on the last.
        skipped: Matching items that were passed over, of the query's offset.
    """

    rows: tuple[ItemRow, ...]
    after: ItemPosition | None
    skipped: int


class NamespacePage(Struct, tag=7, array_like=True, frozen=True, gc=False):
    """A page of namespaces, sorted; see `ItemPage`."""

    namespaces: tuple[tuple[str, ...], ...]
    after: NamespacePosition | None = None
    skipped: int = 0


class ChannelHistory(Struct, array_like=True, frozen=True, gc=False):
    """The history of a channel's value.

    Attributes:
        writes: Writes to the channel on the way, as (task id, channel, value), oldest first.
        seed: The value that they go on from, None when the walk came to the first checkpoint.
        parts: What the seed consists of, by hidden channel, if it is a manifest.
    """

    writes: tuple[tuple[str, str, Blob], ...]
    seed: Blob | None
    parts: Blobs = {}


class ChannelHistories(Struct, tag=8, array_like=True, frozen=True, gc=False):
    """The history of each requested channel, in that order."""

    histories: tuple[ChannelHistory, ...]


class ThreadPage(Struct, tag=9, array_like=True, frozen=True, gc=False):
    """A page of commands that rebuild a thread; `after` begins the next page, None on the last.

    Attributes:
        checkpoints: Checkpoints, each with the values that those before it do not have.
        writes: Pending writes, of these checkpoints or of ones that never arrived.
    """

    checkpoints: tuple[PutCheckpoint, ...]
    writes: tuple[PutWrites, ...]
    after: Position | None


class ThreadIds(Struct, tag=10, array_like=True, frozen=True, gc=False):
    """Threads, in no order."""

    thread_ids: tuple[str, ...]


class Conflict(Struct, tag=11, array_like=True, frozen=True, gc=False):
    """The write conflicts with what is stored, and did not take effect.

    Attributes:
        found: The latest checkpoint's id, or the item's version (0: there is none).
    """

    found: str | int


class ScoredRow(Struct, array_like=True, frozen=True, gc=False):
    """An item and its similarity, None where it has no vector to compare."""

    row: ItemRow
    score: float | None


class RankPage(Struct, tag=12, array_like=True, frozen=True, gc=False):
    """A page of items by similarity; see `ItemPage`."""

    rows: tuple[ScoredRow, ...]
    after: RankPosition | None
    skipped: int


class ThreadRow(Struct, array_like=True, frozen=True, gc=False):
    """A thread in a listing.

    Attributes:
        updated_us: When it was last written to, microseconds since the Unix epoch, UTC.
        checkpoints: How many it has, in all namespaces.
        bytes: Bytes of its values.
    """

    thread_id: str
    updated_us: int
    checkpoints: int
    bytes: int


class ThreadListing(Struct, tag=13, array_like=True, frozen=True, gc=False):
    """A page of threads; `after` is where the next one begins, None on the last."""

    rows: tuple[ThreadRow, ...]
    after: ThreadPosition | None


class Cached(Struct, tag=14, array_like=True, frozen=True, gc=False):
    """The cached value for each key, None for none."""

    values: tuple[Blob | None, ...]


Reply: TypeAlias = (
    Done
    | MissingBlobs
    | CheckpointReply
    | CheckpointPage
    | ItemReply
    | ItemPage
    | NamespacePage
    | ChannelHistories
    | ThreadPage
    | ThreadIds
    | Conflict
    | RankPage
    | ThreadListing
    | Cached
)
