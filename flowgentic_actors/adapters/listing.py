"""A listing of checkpoints in progress: pages of several shards merged into one order. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from flowgentic_actors.adapters.plan import Ask
from flowgentic_actors.engine.commands import ListCheckpoints
from flowgentic_actors.engine.model import Position
from flowgentic_actors.engine.replies import CheckpointPage, CheckpointRow


class Listing:
    """Asks shards for pages and gives out their rows, newest first over all of them.

    Ask `asks`, `feed` the replies, `pop` a row, and begin again.

    Args:
        shards: The shards to list.
        query: What to list.
        limit: Rows wanted in all.
    """

    def __init__(self, shards: Iterable[int], query: ListCheckpoints, limit: int | None) -> None:
        self._query = query
        self._left = limit
        self._rows: dict[int, deque[CheckpointRow]] = {shard: deque() for shard in shards}
        self._after: dict[int, Position | None] = dict.fromkeys(self._rows)
        self._exhausted: set[int] = set(self._rows) if limit == 0 else set()
        self._asked: list[int] = []

    def asks(self) -> Sequence[Ask]:
        """What must be asked before the next row is known."""
        self._asked = [s for s, rows in self._rows.items() if not rows and s not in self._exhausted]
        return [
            Ask(shard, msgspec.structs.replace(self._query, after=self._after[shard]))
            for shard in self._asked
        ]

    def feed(self, replies: Sequence[object]) -> None:
        """Take the replies to what was asked, in order."""
        for shard, page in zip(self._asked, replies, strict=True):
            assert isinstance(page, CheckpointPage)
            self._rows[shard].extend(page.rows)
            self._after[shard] = page.after
            if page.after is None:
                self._exhausted.add(shard)

    def pop(self) -> CheckpointRow | None:
        """The next row, or None at the end."""
        heads = [(_position(rows[0]), shard) for shard, rows in self._rows.items() if rows]
        if not heads:
            return None
        return self._rows[max(heads)[1]].popleft()

    def count(self) -> bool:
        """Count a row that was given out; True when no more are wanted."""
        if self._left is None:
            return False
        self._left -= 1
        return self._left <= 0


def _position(row: CheckpointRow) -> Position:
    return Position(row.checkpoint_id, row.thread_id, row.checkpoint_ns)
