"""Chunking: where the chunks of a long list begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from zlib import crc32

from flowgentic_actors.adapters.chunked_lists.format import ListChunk, Piece, chunk_name
from flowgentic_actors.engine.model import Blob

PART: Final = 64 << 10
"""Bytes up to which parts are put together."""

_TINY = 1 << 10  # bytes below which a part is not worth its place: what follows is put to it
_FAN = 4  # so many small parts in a row become one
_FRAGMENTS = 32  # parts that a list may have beyond those that its size accounts for
_SCAN = 4 * PART  # bytes of single items that are looked at for where known parts go on

Dumps: TypeAlias = Callable[[Any], Blob]


def cut(
    value: list[Any], dumps: Dumps, base: Sequence[ListChunk] = (), average: float = 1
) -> list[Piece]:
    """Cut a list into chunks, along those of an earlier version of it.

    Args:
        value: The list.
        dumps: Serializes.
        base: Parts of an earlier version.
        average: Bytes of an item, about, where there is no earlier version.
    """
    if base:
        average = sum([part.size for part in base]) / sum([part.items for part in base])
    cutter = _Cutter(value[:], dumps, max(average, 1))  # others may go on with the list
    index = 0
    while index < len(base):
        if cutter.keep(base[index]):
            index += 1
        elif (found := cutter.find(base, index)) is not None:
            end, index = found
            cutter.add(end)
        else:
            break
    cutter.add(len(value))
    cutter.put_together()
    return cutter.pieces


class _Cutter:
    """Cuts a list from its beginning to its end."""

    __slots__ = ("_at", "_average", "_dumps", "_scan", "_value", "pieces")

    def __init__(self, value: list[Any], dumps: Dumps, average: float) -> None:
        self._value = value
        self._dumps = dumps
        self._average = average
        self._at = 0  # items before this one are in pieces
        self._scan = _SCAN
        self.pieces: list[Piece] = []

    def keep(self, part: ListChunk) -> bool:
        """Reuse a known chunk, if its items are unchanged."""
        end = self._at + part.items
        if end > len(self._value):
            return False
        blob = self._dumps(self._value[self._at : end])
        if chunk_name(blob) != part.name:
            return False
        self.pieces.append((part, blob))
        self._at = end
        return True

    def find(self, base: Sequence[ListChunk], index: int) -> tuple[int, int] | None:
        """Find where the list may continue with a known chunk, after a mismatch.

        Returns:
            Position in the list and index of the known part.
        """
        if index + 1 == len(base):
            return None
        end = self._at + base[index].items
        if end < len(self._value) and self._head(end) == base[index + 1].head:
            return end, index + 1  # items were changed in place
        heads = {base[later].head: later for later in range(len(base) - 1, index, -1)}
        for position in range(self._at, len(self._value)):
            if self._scan <= 0:
                return None
            data = self._dumps(self._value[position])[1]
            self._scan -= len(data)
            if (later := heads.get(crc32(data))) is not None:
                return position, later
        return None

    def add(self, end: int) -> None:
        """Add new chunks, up to a position."""
        count = end - self._at
        step = count if count * self._average <= 2 * PART else int(PART / self._average) or 1
        while self._at < end:
            stop = min(end, self._at + step)
            blob = self._dumps(self._value[self._at : stop])
            count, size = stop - self._at, len(blob[1])
            fitting = count * PART // (size or 1) or 1
            if size > 2 * PART and count > 1:
                step = fitting
                continue
            self.pieces.append((self._part(blob, count, self._head(self._at)), blob))
            self._at = stop
            step = min(2 * step, fitting)

    def put_together(self) -> None:
        """Merge small chunks at the end, and cut a list anew that has too many chunks."""
        pieces = self.pieces
        while len(pieces) > 1:
            number = 2 if pieces[-2][0].size < _TINY else _FAN
            last = [part for part, _ in pieces[-number:]]
            size = sum([part.size for part in last])
            if len(last) < number or size > PART or (number > 2 and 2 * last[0].size > size):
                break
            count = sum([part.items for part in last])
            blob = self._dumps(self._value[self._at - count : self._at])
            pieces[-number:] = [(self._part(blob, count, last[0].head), blob)]
        if len(pieces) > _FRAGMENTS and len(pieces) > _FRAGMENTS + 8 * self._size() // PART:
            self._average = max(self._size() / len(self._value), 1)
            pieces.clear()
            self._at = 0
            self.add(len(self._value))

    def _size(self) -> int:
        return sum([part.size for part, _ in self.pieces])

    def _head(self, position: int) -> int:
        return crc32(self._dumps(self._value[position])[1])

    @staticmethod
    def _part(blob: Blob, count: int, head: int) -> ListChunk:
        return ListChunk(chunk_name(blob), count, len(blob[1]), head)
