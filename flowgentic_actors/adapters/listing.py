"""Listings: pages of several shards, merged into one order. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from flowgentic_actors.adapters.items import time_of
from flowgentic_actors.adapters.operations import Operation, retry_on_new_table
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.client.routing import shard_of
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import ListCheckpoints, ListThreads
from flowgentic_actors.engine.model import Position, ThreadPosition
from flowgentic_actors.engine.replies import CheckpointRow, ThreadRow


class ThreadInfo(NamedTuple):
    """A thread, as a listing of threads tells of it.

    Attributes:
        thread_id: Its id.
        updated_at: When it was last written to, UTC.
        checkpoints: How many it has, in all namespaces.
        bytes: Bytes of its checkpoints, values and pending writes.
    """

    thread_id: str
    updated_at: datetime
    checkpoints: int
    bytes: int


R = TypeVar("R")


class _Page(Protocol[R]):
    rows: tuple[R, ...]
    after: Any


class Listing(Generic[R]):
    """A listing in progress: asks shards for pages, and yields rows newest first over all.

    When slots have moved between shards, it goes on behind the last row that it gave out: each
    shard is asked anew, and what is at hand of pages by the older table counts for nothing.

    Args:
        client: How to reach the shards.
        query: What to list.
        limit: Rows wanted in all.
        position: Tells where a row is in the order: the greatest comes first.
    """

    def __init__(
        self,
        client: MemoryClient,
        query: ListCheckpoints | ListThreads,
        limit: int | None,
        position: Callable[[R], Any],
    ) -> None:
        self._client = client
        self._query = query
        self._left = limit
        self._position = position
        self._last: Any = query.after
        self._version = 0  # of the table that the pages are by
        self._rows: dict[int, deque[R]] = {}
        self._after: dict[int, Any] = {}
        self._exhausted: set[int] = set()

    def next(self) -> Operation[R | None]:
        """The next row, None at the end."""
        if self._left == 0:
            return None
        if shard_of(self._client.table, self._query) is not None:  # the client goes after it
            return (yield from self._next(self._client.table))
        return (yield from retry_on_new_table(self._client, self._next))

    def count(self) -> bool:
        """Count a row that was yielded; True when the limit is reached."""
        if self._left is None:
            return False
        self._left -= 1
        return self._left <= 0

    def _next(self, table: SlotTable) -> Operation[R | None]:
        if table.version != self._version:
            self._begin(table)
        asked = [s for s, rows in self._rows.items() if not rows and s not in self._exhausted]
        while asked:
            pages: list[_Page[R]] = yield [
                (shard, msgspec.structs.replace(self._query, after=self._after[shard]))
                for shard in asked
            ]
            for shard, page in zip(asked, pages, strict=True):
                self._rows[shard].extend(page.rows)
                self._after[shard] = page.after
                if page.after is None:
                    self._exhausted.add(shard)
            asked = [s for s in asked if not self._rows[s] and s not in self._exhausted]
        heads = [(self._position(rows[0]), shard) for shard, rows in self._rows.items() if rows]
        if not heads:
            return None
        self._last, shard = max(heads)
        return self._rows[shard].popleft()

    def _begin(self, table: SlotTable) -> None:
        """Drop the pages at hand, and continue after the last row that was yielded."""
        shard = shard_of(table, self._query)
        self._version = table.version
        self._query = msgspec.structs.replace(
            self._query, table=table.version if shard is None else 0
        )
        self._rows = {s: deque() for s in (table.owners if shard is None else (shard,))}
        self._after = dict.fromkeys(self._rows, self._last)
        self._exhausted.clear()


def checkpoint_position(row: CheckpointRow) -> Position:
    """The position of a checkpoint in a listing."""
    return Position(row.checkpoint_id, row.thread_id, row.checkpoint_ns)


def thread_position(row: ThreadRow) -> ThreadPosition:
    """The position of a thread in a listing."""
    return ThreadPosition(row.updated_us, row.thread_id)


def thread_info(row: ThreadRow) -> ThreadInfo:
    """What a listing tells of a thread."""
    return ThreadInfo(row.thread_id, time_of(row.updated_us), row.checkpoints, row.bytes)
