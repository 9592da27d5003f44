"""A listing in progress: pages of several shards merged into one order. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from flowgentic_actors.adapters.plan import Ask
from flowgentic_actors.engine.commands import ListCheckpoints, ListThreads
from flowgentic_actors.engine.model import Position, ThreadPosition
from flowgentic_actors.engine.replies import CheckpointRow, ThreadRow

R = TypeVar("R")


class _Page(Protocol[R]):
    rows: tuple[R, ...]
    after: Any


class Listing(Generic[R]):
    """Asks shards for pages and gives out their rows, newest first over all of them.

    Ask `asks`, `feed` the replies, `pop` a row, and begin again.

    Args:
        shards: The shards to list.
        query: What to list.
        limit: Rows wanted in all.
        position: Tells where a row is in the order: the greatest comes first.
    """

    def __init__(
        self,
        shards: Iterable[int],
        query: ListCheckpoints | ListThreads,
        limit: int | None,
        position: Callable[[R], Any],
    ) -> None:
        self._query = query
        self._left = limit
        self._position = position
        self._rows: dict[int, deque[R]] = {shard: deque() for shard in shards}
        self._after: dict[int, Any] = dict.fromkeys(self._rows, query.after)
        self._exhausted: set[int] = set(self._rows) if limit == 0 else set()
        self._asked: list[int] = []

    def asks(self) -> Sequence[Ask]:
        """What must be asked before the next row is known."""
        self._asked = [s for s, rows in self._rows.items() if not rows and s not in self._exhausted]
        return [
            Ask(shard, msgspec.structs.replace(self._query, after=self._after[shard]))
            for shard in self._asked
        ]

    def feed(self, replies: Sequence[Any]) -> None:
        """Take the replies to what was asked, in order."""
        for shard, reply in zip(self._asked, replies, strict=True):
            page: _Page[R] = reply
            self._rows[shard].extend(page.rows)
            self._after[shard] = page.after
            if page.after is None:
                self._exhausted.add(shard)

    def pop(self) -> R | None:
        """The next row, or None at the end."""
        heads = [(self._position(rows[0]), shard) for shard, rows in self._rows.items() if rows]
        if not heads:
            return None
        return self._rows[max(heads)[1]].popleft()

    def count(self) -> bool:
        """Count a row that was given out; True when no more are wanted."""
        if self._left is None:
            return False
        self._left -= 1
        return self._left <= 0


def checkpoint_position(row: CheckpointRow) -> Position:
    """Where a checkpoint is in a listing."""
    return Position(row.checkpoint_id, row.thread_id, row.checkpoint_ns)


def thread_position(row: ThreadRow) -> ThreadPosition:
    """Where a thread is in a listing."""
    return ThreadPosition(row.updated_us, row.thread_id)
