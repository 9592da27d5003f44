"""The commands to a shard. Those that change something for good are `WRITES`.

What stores something is limited by its types. What names a thread to read, or anything to delete,
is not: a local memory of an earlier version may hold ids of any length.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from flowgentic_actors.engine.model import (
    MAX_ENTRIES,
    MAX_FILTER,
    Blob,
    Blobs,
    Channels,
    Facets,
    ItemPosition,
    Limit,
    Micros,
    Namespace,
    NamespacePosition,
    Position,
    RankPosition,
    Text,
    ThreadPosition,
    Vector,
    Write,
)
from flowgentic_actors.engine.similarity import Metric


class PutCheckpoint(Struct, tag=1, array_like=True, frozen=True, gc=False):
    """Store a checkpoint and the channel values that are new with it.

    The shard keeps its dicts: the caller must not change them.

    Answered by `Done`, or by `MissingBlobs` when `present` names a channel whose value at that
    version the shard has never been given; nothing is stored then.

    Attributes:
        checkpoint: The checkpoint without `channel_values` and `channel_versions`.
        facets: The scalar top-level fields of the metadata, which listings filter on.
        versions: Version of every channel at this checkpoint.
        blobs: Values new with this checkpoint, by channel.
        present: Channels that have a value at this checkpoint but none in `blobs`.
        deltas: Channels whose value is made from writes of the checkpoints before this one.
        follows: Whether it must follow the latest checkpoint of its branch, or be a new version of
            one that is there; answered by `Conflict` where it does not.
    """

    thread_id: Text
    checkpoint_ns: Text
    checkpoint_id: Text
    parent_id: Text | None
    checkpoint: Blob
    metadata: Blob
    facets: Facets
    versions: Channels
    blobs: Blobs
    present: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)] = ()
    deltas: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)] = ()
    follows: bool = False


class PutWrites(Struct, tag=2, array_like=True, frozen=True, gc=False):
    """Store a task's pending writes; they may arrive before their checkpoint.

    At a non-negative index the first write wins, at a negative one (special channels) the last.
    """

    thread_id: Text
    checkpoint_ns: Text
    checkpoint_id: Text
    task_id: Text
    task_path: Text
    writes: tuple[Write, ...]


class GetCheckpoint(Struct, tag=3, array_like=True, frozen=True, gc=False):
    """Fetch one checkpoint, the latest of its branch when no id is given."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


class ListCheckpoints(Struct, tag=4, array_like=True, frozen=True, gc=False):
    """List checkpoints, newest first over all threads and namespaces asked for.

    Attributes:
        thread_id: One thread, or None for all.
        checkpoint_ns: One namespace, or None for all.
        checkpoint_id: One checkpoint, or None (or an empty one) for all.
        before: Only ids strictly below this one, if it is given and not empty.
        facets: Metadata fields that must be equal.
        limit: At most this many (a page may hold fewer).
        after: Go on after this position of an earlier page.
        table: Version of the table by which the shards that are asked were chosen, 0 where
            that is of no interest: for one shard alone.
    """

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    facets: Facets = {}
    limit: Limit | None = None
    after: Position | None = None
    table: int = 0


class DeleteThread(Struct, tag=5, array_like=True, frozen=True, gc=False):
    """Remove everything of a thread."""

    thread_id: str


class PutItem(Struct, tag=6, array_like=True, frozen=True, gc=False):
    """Store an item; its creation time is kept when it exists.

    Answered by `Done`, or by `Conflict` when `expected` is not the item's version.

    Attributes:
        ttl_us: How long it lives after it was stored, or read by a query that refreshes; 0 for
            ever.
        expected: Version that the item must have, 0 for an item that must not be there, None for
            whatever there is. Its version is the time at which it was stored, in microseconds.
        vectors: What it can be found by, all of one size.
    """

    namespace: Namespace
    key: Text
    value: Blob
    ttl_us: Micros = 0
    expected: int | None = None
    vectors: Annotated[tuple[Vector, ...], Meta(max_length=MAX_ENTRIES)] = ()


class DeleteItem(Struct, tag=7, array_like=True, frozen=True, gc=False):
    """Remove an item if it is there, and has the version expected."""

    namespace: tuple[str, ...]
    key: str
    expected: int | None = None


class GetItem(Struct, tag=8, array_like=True, frozen=True, gc=False):
    """Fetch one item.

    Attributes:
        refresh: Whether its life begins anew, if it has a limited one.
        expired: Whether it may be one whose time is over and that is still there.
    """

    namespace: Namespace
    key: Text
    refresh: bool = False
    expired: bool = False


class SearchItems(Struct, tag=9, array_like=True, frozen=True, gc=False):
    """Find items whose namespace starts with a prefix, ordered by namespace, then key.

    Attributes:
        prefix: Leading labels, compared whole.
        filter: A msgpack map of LangGraph's filter language, or empty bytes for none.
        limit: At most this many (a page may hold fewer).
        offset: Matching items to pass over first, from `after` on; the page says how many it did.
        after: Go on after this position of an earlier page.
        refresh: Whether the lives of the items that are found begin anew.
        expired: Whether to give items whose time is over and that are still there.
        table: Version of the table by which the shards that are asked were chosen, 0 where
            that is of no interest: for one shard alone.
    """

    prefix: Namespace
    filter: Annotated[bytes, Meta(max_length=MAX_FILTER)]
    limit: Limit
    offset: Limit
    after: ItemPosition | None = None
    refresh: bool = False
    expired: bool = False
    table: int = 0


class RankItems(Struct, tag=16, array_like=True, frozen=True, gc=False):
    """Find items like `SearchItems`, the most similar to a vector first.

    An item's score is that of the nearest of its vectors. Those that have none of the size follow,
    without a score, ordered by namespace, then key.

    Attributes:
        vector: What to compare with: 32-bit floats, little-endian.
        metric: What a score is.
    """

    prefix: Namespace
    filter: Annotated[bytes, Meta(max_length=MAX_FILTER)]
    vector: Annotated[bytes, Meta(min_length=4, max_length=4 * 65_536)]
    limit: Limit
    offset: Limit
    after: RankPosition | None = None
    refresh: bool = False
    expired: bool = False
    table: int = 0
    metric: Metric = "cosine"


class Match(Struct, array_like=True, frozen=True, gc=False):
    """One condition on a namespace; the label `*` matches any one label."""

    kind: Literal["prefix", "suffix"]
    path: Namespace


class ListNamespaces(Struct, tag=10, array_like=True, frozen=True, gc=False):
    """List the namespaces that hold items, sorted, cut to `max_depth` labels and made unique.

    Attributes:
        limit: At most this many (a page may hold fewer).
        offset: Those to pass over first, from `after` on; the page says how many it did.
        table: As in `SearchItems`.
        after: Go on after this position of an earlier page.
    """

    conditions: Annotated[tuple[Match, ...], Meta(max_length=64)]
    max_depth: Annotated[int, Meta(ge=1)] | None
    limit: Limit
    offset: Limit
    expired: bool = False
    table: int = 0
    after: NamespacePosition | None = None


class GetChannelHistory(Struct, tag=11, array_like=True, frozen=True, gc=False):
    """Walk back from a checkpoint, along its parents, to where some channels have a value.

    Attributes:
        checkpoint_id: The checkpoint, the latest of its branch when there is none given.
        channels: The channels; each is followed until an ancestor has a value for it.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None
    channels: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)]


class ReadThread(Struct, tag=12, array_like=True, frozen=True, gc=False):
    """Read a thread as the commands that would write it, oldest first.

    Attributes:
        after: Go on after this position of an earlier page.
    """

    thread_id: str
    after: Position | None = None


class FindRuns(Struct, tag=13, array_like=True, frozen=True, gc=False):
    """Find the threads that have checkpoints of given runs.

    Attributes:
        table: As in `ListCheckpoints`.
    """

    run_ids: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)]
    table: int = 0


class DropRuns(Struct, tag=14, array_like=True, frozen=True, gc=False):
    """Remove the checkpoints of given runs in a thread, with their writes and own values."""

    thread_id: str
    run_ids: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)]


class PruneThread(Struct, tag=15, array_like=True, frozen=True, gc=False):
    """Remove all but the latest checkpoints of each namespace of a thread.

    Those that a kept one's delta channels are made from are kept as well.

    Attributes:
        keep: How many of each namespace.
    """

    thread_id: str
    keep: Annotated[int, Meta(ge=1)]


class ListThreads(Struct, tag=17, array_like=True, frozen=True, gc=False):
    """List threads, the one that was written to last first.

    Attributes:
        prefix: What their ids begin with.
        limit: At most this many (a page may hold fewer).
        before: Only those that were last written to before this time.
        after: Go on after this position of an earlier page.
        table: As in `ListCheckpoints`.
    """

    prefix: Text
    limit: Limit
    before: Micros | None = None
    after: ThreadPosition | None = None
    table: int = 0


CacheKey: TypeAlias = tuple[Namespace, Text]


class CacheEntry(Struct, array_like=True, frozen=True, gc=False):
    """A value to cache; `ttl_us` is how long it is valid, 0 for no limit."""

    key: CacheKey
    value: Blob
    ttl_us: Micros = 0


class CacheGet(Struct, tag=18, array_like=True, frozen=True, gc=False):
    """Fetch cached values."""

    keys: Annotated[tuple[CacheKey, ...], Meta(max_length=MAX_ENTRIES)]


class CacheSet(Struct, tag=19, array_like=True, frozen=True, gc=False):
    """Cache values."""

    entries: Annotated[tuple[CacheEntry, ...], Meta(max_length=MAX_ENTRIES)]


class CacheClear(Struct, tag=20, array_like=True, frozen=True, gc=False):
    """Remove the cached values of given namespaces, or all.

    Attributes:
        table: As in `ListCheckpoints`.
    """

    namespaces: Annotated[tuple[Namespace, ...], Meta(max_length=MAX_ENTRIES)] | None = None
    table: int = 0


WriteCommand: TypeAlias = (
    PutCheckpoint | PutWrites | DeleteThread | DropRuns | PruneThread | PutItem | DeleteItem
)

ThreadQuery: TypeAlias = (
    GetCheckpoint | ListCheckpoints | GetChannelHistory | ReadThread | FindRuns | ListThreads
)

ItemQuery: TypeAlias = GetItem | SearchItems | RankItems | ListNamespaces

CacheCommand: TypeAlias = CacheGet | CacheSet | CacheClear
"""What is in a cache may be lost at any time: nothing of it is recorded."""

Query: TypeAlias = ThreadQuery | ItemQuery | CacheCommand
"""What is answered without a record, but for the refreshing of items."""

Command: TypeAlias = WriteCommand | Query

WRITES = (PutItem, PutCheckpoint, PutWrites, DeleteItem, DeleteThread, DropRuns, PruneThread)
"""The commands that change something for good."""

MAKES_ROOM = (DeleteThread, DropRuns, PruneThread, DeleteItem)
"""Those after which there is less: they are carried out on a full disk as well."""

ABOUT_A_THREAD = (
    PutCheckpoint,
    PutWrites,
    GetCheckpoint,
    ListCheckpoints,
    GetChannelHistory,
    ReadThread,
    DeleteThread,
    DropRuns,
    PruneThread,
)
"""Those that name one thread, or may: `thread_id`."""

ABOUT_AN_ITEM = (PutItem, GetItem, DeleteItem)
"""Those that name one item: `namespace` and `key`."""

PAGED = (SearchItems, RankItems, ListNamespaces, ListCheckpoints, ListThreads, ReadThread)
"""Those that are answered page by page: `after`."""

SEARCHES = (SearchItems, RankItems)
"""Those that look below a `prefix`."""
