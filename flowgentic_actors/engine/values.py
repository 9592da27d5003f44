"""Values: in memory while they are hot, known by size and address when they are not.

A value's address is the LSN of the journal entry that it came with. A shard with a limit evicts
the bytes of values that were not read lately; a query for them raises `ColdValuesError`. Its caller
fetches the entries, hands them to `Shard.warm` and queries again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from sys import intern
from typing import Final

from msgspec import Struct

from flowgentic_actors.engine.model import Blob
from flowgentic_actors.errors import ColdValuesError

NOWHERE: Final = -1
"""The address of a value that is in no journal."""

SMALL: Final = 64
"""A value of at most this many bytes is never let go: its place in the index costs more."""

_AROUND: Final = 64  # bytes that a value in memory costs beyond its own


_SHARED: Final = 1 << 16
_numbers: dict[int, int] = {}
_share = _numbers.setdefault


def shared(size: int) -> int:
    """Intern a number, as one object for all equal ones: a number takes 32 bytes."""
    return _share(size, size) if size < _SHARED else size


class Value(Struct, gc=False):
    """One stored value: its blob while hot, its size and address otherwise.

    Attributes:
        kind: The blob's type, as its serializer named it.
        data: Its bytes, None while it is cold.
        size: How many they are.
        lsn: Its address.
    """

    kind: str
    data: bytes | None
    size: int
    lsn: int


class Values:
    """Decides which values are in memory: second chance, in order of arrival.

    Args:
        hot_bytes: Bytes that the values in memory may take, what is around each included; None
            for no limit.
    """

    def __init__(self, hot_bytes: int | None) -> None:
        self._limit = hot_bytes
        self._queue: deque[Value] = deque()  # what may be let go, the next one first
        self._dead = 0  # in the queue, and stored no more
        # Those that were read since eviction last looked at them, by id: a mark in every value
        # would cost the cold ones 16 bytes each.
        self._touched: set[int] = set()
        self._missed: dict[int, None] = {}
        self._missed_bytes = 0
        self.hot_bytes = 0
        self.on_dropped: Callable[[int, int], None] | None = None

    def add(self, blob: Blob, lsn: int) -> Value:
        """Add a new value, which is hot."""
        kind, data = blob
        size = len(data)
        value = Value(intern(kind), data, _share(size, size) if size < _SHARED else size, lsn)
        if self._limit is not None:
            self.track(value)
        return value

    def track(self, value: Value) -> None:
        """Count a value that has become hot."""
        if self._limit is not None and value.size > SMALL:
            self.hot_bytes += value.size + _AROUND
            self._queue.append(value)

    def remove(self, value: Value) -> None:
        """Remove a value that is not stored any more."""
        if self.on_dropped is not None:
            self.on_dropped(value.lsn, value.size)
        if self._limit is None or value.size <= SMALL or value.data is None:
            return
        self.hot_bytes -= value.size + _AROUND
        value.data = None
        self._touched.discard(id(value))
        self._dead += 1
        if self._dead > 1000 + len(self._queue) // 2:
            self._queue = deque(value for value in self._queue if value.data is not None)
            self._dead = 0

    def blob(self, value: Value) -> Blob:
        """The value's blob; an empty one when it is cold, which `raise_if_cold` reports."""
        if value.data is None:
            self.miss(value)
            return (value.kind, b"")
        if self._limit is not None and value.size > SMALL:
            self._touched.add(id(value))
        return (value.kind, value.data)

    def miss(self, value: Value) -> None:
        """Note that a cold value is needed."""
        self._missed[value.lsn] = None
        self._missed_bytes += value.size

    @property
    def missed(self) -> tuple[int, int]:
        """The number of cold values needed so far, and their bytes."""
        return len(self._missed), self._missed_bytes

    def start_query(self) -> None:
        """Begin a query."""
        if self._missed:
            self._missed.clear()
            self._missed_bytes = 0

    def raise_if_cold(self) -> None:
        """End a query; raise if it needed cold values.

        Raises:
            ColdValuesError: If a value that it needs is not in memory.
        """
        if self._missed:
            raise ColdValuesError(tuple(self._missed))

    def warm(self, value: Value, lsn: int, data: bytes, *, lasting: bool) -> None:
        """Load the bytes of a cold value, if they are those of its address.

        Args:
            value: The value.
            lsn: Where the bytes are from.
            data: The bytes.
            lasting: Whether it is likely to be read again; otherwise it is the next to go.
        """
        if value.lsn != lsn or value.data is not None:
            return
        value.data = data
        self.track(value)
        if not lasting and value.size > SMALL:
            self._queue.rotate(1)

    def cool(self, placed_to: int) -> None:
        """Evict values until the limit is kept.

        Args:
            placed_to: LSN up to which values can be fetched again.
        """
        if self._limit is None:
            return
        while self.hot_bytes > self._limit and self._queue:
            value = self._queue[0]
            if value.data is not None and value.lsn >= placed_to:
                return
            self._queue.popleft()
            if value.data is None:
                self._dead -= 1
            elif id(value) in self._touched:
                self._touched.discard(id(value))
                self._queue.append(value)
            else:
                self.hot_bytes -= value.size + _AROUND
                value.data = None
