"""A shard: commands in, replies and records out; the same in every mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.cache import Cache
from flowgentic_actors.engine.commands import (
    WRITES,
    CacheClear,
    CacheGet,
    CacheSet,
    Command,
    DeleteItem,
    DeleteThread,
    GetCheckpoint,
    GetItem,
    ListNamespaces,
    PutCheckpoint,
    PutItem,
    PutWrites,
    Query,
    RankItems,
    SearchItems,
    WriteCommand,
)
from flowgentic_actors.engine.item_queries import ItemQueries
from flowgentic_actors.engine.items import Items
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointsDropped,
    CheckpointStored,
    ItemDeleted,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    Record,
    ThreadDeleted,
    ThreadsExpired,
    WritesStored,
)
from flowgentic_actors.engine.replies import (
    Conflict,
    Done,
    ItemPage,
    ItemReply,
    MissingBlobs,
    RankPage,
    Reply,
)
from flowgentic_actors.engine.thread_plans import Retention, ThreadPlans
from flowgentic_actors.engine.thread_queries import ThreadQueries
from flowgentic_actors.engine.threads import Threads
from flowgentic_actors.engine.values import NOWHERE, Value, Values

CACHE_BYTES: Final = 64 << 20
"""Bytes of cached values, unless something else is said."""

MOST_EXPIRED: Final = 1000
"""Items or threads that are forgotten at once when their time is over: others wait meanwhile."""

DONE: Final = Done()
"""What a write is answered with that took effect."""

Planned: TypeAlias = Record | MissingBlobs | Conflict | None
"""What a write comes to: a record, a refusal, or nothing to do."""

_REFUSALS = (MissingBlobs, Conflict)


class Applied(NamedTuple):
    """The result of a command: the reply, and the record to store when it changed something."""

    reply: Reply
    record: Record | None


class ShardSize(Struct, frozen=True):
    """The counts and bytes of what a shard holds.

    Attributes:
        threads: Threads with anything stored.
        checkpoints: Checkpoints of all threads.
        items: Items of all namespaces.
        blob_bytes: Bytes of values (checkpoints, channel values, writes, items), vectors included.
        vector_bytes: Bytes of vectors.
        cached: Cached values.
        cache_bytes: Bytes that they take.
    """

    threads: int
    checkpoints: int
    items: int
    blob_bytes: int
    vector_bytes: int = 0
    cached: int = 0
    cache_bytes: int = 0


class Shard:
    """The memory of one shard.

    It is changed by records alone: `decide` decides the record of a write and `apply` carries it
    out, whether it was decided now or long ago. So a shard rebuilt from its records is the shard
    that was. What is cached is no part of it.

    Args:
        hot_bytes: Bytes of values to keep in memory, for a shard whose records are in a journal;
            None keeps all.
        retention: How much of the threads is kept.
        cache_bytes: Bytes that cached values may take.
        searchable: Whether to keep vectors in a form in which they can be searched.
    """

    def __init__(
        self,
        hot_bytes: int | None = None,
        *,
        retention: Retention = Retention(),  # noqa: B008 - immutable
        cache_bytes: int = CACHE_BYTES,
        searchable: bool = True,
    ) -> None:
        self._values = Values(hot_bytes)
        self._threads = Threads(self._values)
        self._thread_plans = ThreadPlans(self._threads, retention)
        self._thread_queries = ThreadQueries(self._threads, self._values)
        self._items = Items(self._values, searchable=searchable)
        self._item_queries = ItemQueries(self._items, self._values)
        self._cache = Cache(cache_bytes)
        self._retention = retention
        # What is asked most, found by one look; the rest is told apart by its rooms.
        self._answers: dict[type, Callable[[Any, int], Reply]] = {
            GetItem: self._item_queries.get,
            GetCheckpoint: self._get_checkpoint,
        }
        self._plans: dict[type, Callable[[Any, int], Planned]] = {
            PutItem: self._items.plan_put,
            PutCheckpoint: self._thread_plans.plan_checkpoint,
            PutWrites: self._thread_plans.plan_writes,
        }
        # Those that a shard without a journal, a limit or a retention carries out at once: reads
        # that change nothing, whatever the time, and writes that may turn out to be recorded just
        # as they are asked for; a write has (whether it does, how it is carried out).
        self.reads: dict[type, Callable[[Any], Reply | None]] = {
            GetItem: self._item_queries.get_at_once,
            GetCheckpoint: self._thread_queries.get,
        }
        self.writes: dict[type, tuple[Callable[[Any], bool], Callable[[Any, int, int], None]]] = {
            PutItem: (self._items.takes, self._items.store),
            PutCheckpoint: (self._thread_plans.takes_checkpoint, self._threads.store_checkpoint),
            PutWrites: (self._thread_plans.takes_writes, self._threads.store_writes),
        }
        self._replays: dict[type, Callable[[Any, int], None]] = {
            ItemStored: self._items.store,
            CheckpointStored: self._threads.store_checkpoint,
            WritesStored: self._threads.store_writes,
        }

    def execute(self, command: Command, now_us: int) -> Applied:
        """Carry out a command on a shard whose values are all in memory.

        Args:
            command: What to do.
            now_us: The time, microseconds since the Unix epoch: for a write later than for any
                command before, since it is an item's version.

        Returns:
            The reply and, where something changed, its record.

        Raises:
            InvalidRequestError: If the command cannot be carried out as it stands.
        """
        if not isinstance(command, WRITES):
            reply = self.query(command, now_us)
            planned = Applied(reply, self.decide_refresh(command, reply, now_us))
        else:
            planned = self.decide(command, now_us)
        if planned.record is not None:
            self.apply(planned.record)
        return planned

    def query(self, query: Query, now_us: int) -> Reply:
        """Answer a query.

        Raises:
            InvalidRequestError: If it cannot be answered as it stands.
            ColdValuesError: If it needs values that are not in memory: `warm` them and ask again.
        """
        self._values.start_query()
        answer = self._answers.get(type(query), self._answer)
        reply = answer(query, now_us)
        self._values.raise_if_cold()
        return reply

    def decide(self, command: WriteCommand, now_us: int) -> Applied:
        """Decide the reply and record of a write, without a change; see `apply`."""
        planned = self._plans.get(type(command), self._plan)(command, now_us)
        if planned is None or not isinstance(planned, _REFUSALS):
            return Applied(DONE, planned)
        return Applied(planned, None)

    def decide_refresh(self, query: Query, reply: Reply, now_us: int) -> ItemsRefreshed | None:
        """Decide what a query that refreshes what it finds would record."""
        if (
            not self._items.any_expires
            or not isinstance(query, GetItem | SearchItems | RankItems)
            or not query.refresh
        ):
            return None
        match reply:
            case ItemReply(row):
                rows = [row] if row is not None else []
            case ItemPage(found):
                rows = [*found]
            case RankPage(ranked):
                rows = [scored.row for scored in ranked]
            case _:
                return None
        return self._items.plan_refresh(((row.namespace, row.key) for row in rows), now_us)

    def decide_trim(self, record: Command | Record) -> CheckpointsDropped | None:
        """Decide which checkpoints of a thread are too many after a record was applied."""
        if self._retention.keep_last is not None and isinstance(record, CheckpointStored):
            return self._thread_plans.plan_trim(record.thread_id, record.checkpoint_ns)
        return None

    def decide_expire(self, now_us: int, most: int = MOST_EXPIRED) -> Record | None:
        """Decide what has expired by now, at most so many items or threads; None for nothing."""
        return self._items.plan_expire(now_us, most) or self._thread_plans.plan_expire(now_us, most)

    @property
    def any_expires(self) -> bool:
        """Whether anything expires, or may expire."""
        return self._items.any_expires or self._retention.ttl_us is not None

    def next_expiry_us(self) -> int | None:
        """The time at which something may expire next, None for never as things are."""
        times = (self._items.next_expiry_us(), self._thread_plans.next_expiry_us())
        return min((time for time in times if time is not None), default=None)

    def apply(self, record: Record, lsn: int = NOWHERE) -> None:
        """Apply a record.

        Args:
            record: The record.
            lsn: Address of the journal entry that holds it.
        """
        self._replays.get(type(record), self._replay)(record, lsn)

    def redo(self, begun: Command | Record, now_us: int) -> None:
        """Complete an operation that an exception interrupted at any instruction.

        The dictionaries of threads, checkpoints and items hold the truth: counts, orders and
        indexes are derived from them anew, which takes a pass over the items or the threads, and
        the record is carried out once more. May be interrupted itself, and called again.

        Only for a shard that keeps all values in memory.

        Args:
            begun: The record, or a command about cached values, or one of the `writes` that was
                found to be recorded just as it is. Other commands change nothing.
            now_us: The time, as for `query`.
        """
        match begun:
            case CacheGet() | CacheSet() | CacheClear():
                self._cache.redo(begun, now_us)
                return
            case PutItem():
                self._items.restore([(begun.namespace, begun.key)])
                self._items.store(begun, NOWHERE, now_us)
                return
            case PutCheckpoint():
                self._threads.restore([begun.thread_id])
                self._threads.store_checkpoint(begun, NOWHERE, now_us)
                return
            case PutWrites():
                self._threads.restore([begun.thread_id])
                self._threads.store_writes(begun, NOWHERE, now_us)
                return
            case ItemStored(namespace, key) | ItemDeleted(namespace, key):
                self._items.restore([(namespace, key)])
            case ItemsRefreshed(places) | ItemsExpired(places):
                self._items.restore(places)
            case ThreadsExpired(thread_ids):
                self._threads.restore(thread_ids)
            case CheckpointStored() | WritesStored() | CheckpointsDropped() | ThreadDeleted():
                self._threads.restore([begun.thread_id])
            case _:
                return
        self.apply(begun)

    # ------------------------------------------------------------------ a part of it

    def set_visible(
        self,
        threads: Callable[[str], bool] | None,
        namespaces: Callable[[tuple[str, ...]], bool] | None,
    ) -> None:
        """Limit what searches and listings find from now on.

        What is asked for by its key is found all the same.

        Args:
            threads: Whether a thread is shown, None for all.
            namespaces: Whether the items of a namespace are, None for all.
        """
        self._threads.shown = threads
        self._items.shown = namespaces

    def purge_invisible(self, most: int = MOST_EXPIRED) -> Iterator[Record | None]:
        """Yield records that remove everything invisible; each is to be applied at once.

        Args:
            most: Items or threads of one record. After having looked at as many and found nothing,
                None is given: others may want a turn.
        """
        yield from self._threads.purge_invisible(most)
        yield from self._items.purge_invisible(most)

    # ------------------------------------------------------------------ hot and cold

    def warm(self, lsn: int, record: Record, *, lasting: bool) -> None:
        """Load the live values of a journal entry into memory.

        Args:
            lsn: The entry's address.
            record: Its record.
            lasting: Whether they are likely to be read again; otherwise they are the next to go.
        """
        for value, data in self._values_of(record):
            self._values.warm(value, lsn, data, lasting=lasting)

    def cool(self, placed_to: int) -> None:
        """Evict values from memory beyond the limit.

        Args:
            placed_to: LSN up to which entries can be read.
        """
        self._values.cool(placed_to)

    def alive(self, lsn: int, record: Record) -> int:
        """The bytes of the live values of a journal entry."""
        return sum(value.size for value, _ in self._values_of(record) if value.lsn == lsn)

    def live_part(self, lsn: int, record: Record) -> Record | None:
        """The part of a record that is still live: itself if all of it is, None if none is.

        Args:
            lsn: Address of its entry.
            record: The record.
        """
        match record:
            case CheckpointStored():
                return self._threads.live_part_of_checkpoint(lsn, record)
            case WritesStored():
                return self._threads.live_part_of_writes(lsn, record)
            case BlobsKept():
                alive = any(value.lsn == lsn for value, _ in self._values_of(record))
                return record if alive else None
            case ItemStored():
                return self._items.live_part_of(lsn, record)
            case _:  # what is gone, or was read, is told by what is left
                return None

    def growth(self, record: Record) -> int:
        """The bytes of values that a record would add to the shard, without its deletions."""
        match record:
            case CheckpointStored():
                blobs = [record.checkpoint, record.metadata, *record.blobs.values()]
            case WritesStored():
                blobs = [write.value for write in record.writes]
            case ItemStored():
                return self._items.growth(record)
            case _:
                return 0
        stored = sum(value.size for value, _ in self._values_of(record))
        return sum(len(data) for _, data in blobs) - stored

    def when_dropped(self, told: Callable[[int, int], None] | None) -> None:
        """Report (LSN, size) of every value that is deleted or replaced from now on."""
        self._values.on_dropped = told

    @property
    def hot_bytes(self) -> int:
        """The bytes of values in memory, in a shard with a limit."""
        return self._values.hot_bytes

    @property
    def thread_bytes(self) -> int:
        """The bytes of the values of threads."""
        return self._threads.bytes

    @property
    def item_bytes(self) -> int:
        """The bytes of the values of items, their vectors included."""
        return self._items.bytes

    def _values_of(self, record: Record) -> Iterator[tuple[Value, bytes]]:
        """The stored values at a record's places, with the record's bytes for each."""
        match record:
            case CheckpointStored():
                return self._threads.values_of_checkpoint(record)
            case WritesStored():
                return self._threads.values_of_writes(record)
            case BlobsKept():
                return self._threads.values_of_blobs(record)
            case ItemStored():
                return self._items.values_of(record)
            case _:
                return iter(())

    # ------------------------------------------------------------------

    def size(self) -> ShardSize:
        """Count what is stored."""
        return ShardSize(
            threads=len(self._threads),
            checkpoints=self._threads.checkpoints,
            items=len(self._items),
            blob_bytes=self._threads.bytes + self._items.bytes,
            vector_bytes=self._items.vectors.total_bytes,
            cached=len(self._cache),
            cache_bytes=self._cache.bytes,
        )

    def _answer(self, query: Query, now_us: int) -> Reply:
        match query:
            case CacheGet() | CacheSet() | CacheClear():
                return self._cache.answer(query, now_us)
            case GetItem() | SearchItems() | RankItems() | ListNamespaces():
                return self._item_queries.answer(query, now_us)
            case _:
                return self._thread_queries.answer(query)

    def _get_checkpoint(self, query: GetCheckpoint, _now_us: int) -> Reply:
        return self._thread_queries.get(query)

    def _plan(self, command: WriteCommand, now_us: int) -> Planned:
        match command:
            case PutItem():
                return self._items.plan_put(command, now_us)
            case DeleteItem():
                return self._items.plan_delete(command, now_us)
            case DeleteThread(thread_id):
                return ThreadDeleted(thread_id) if self._threads.has(thread_id) else None
            case _:
                return self._thread_plans.decide(command, now_us)

    def _replay(self, record: Record, lsn: int) -> None:
        match record:
            case ItemStored() | ItemDeleted() | ItemsRefreshed() | ItemsExpired():
                self._items.apply(record, lsn)
            case _:
                self._threads.apply(record, lsn)
