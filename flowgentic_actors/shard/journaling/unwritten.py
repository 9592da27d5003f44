"""The entries of an actor's journal that the next commit appends."""

from __future__ import annotations

from flowgentic_actors.engine import Shard
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.journaling.entries import LogEntry, encode_entry_into
from flowgentic_actors.shard.journaling.maintenance import JournalMaintenance
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD


class Unwritten:
    """Entries that are applied and wait to be appended, encoded into one buffer.

    Each in a piece of its own, they would lie between the values that are kept, and leave holes in
    the process's memory when they go: measured, a quarter of what was stored.

    Args:
        shard: The shard that they are applied to.
        maintenance: Of the journal: tells whether there is room.
        end: LSN after the journal's last entry.
    """

    __slots__ = ("_buffer", "_ends", "_maintenance", "_shard", "bytes", "end")

    def __init__(self, shard: Shard, maintenance: JournalMaintenance, end: int) -> None:
        self._shard = shard
        self._maintenance = maintenance
        self._buffer = bytearray()
        self._ends: list[int] = []
        self.end = end
        """LSN after the last entry, those included that wait."""
        self.bytes = 0
        """Bytes of entries that are not in the journal yet, overhead included."""

    def keep(self, entry: LogEntry, *, urgent: bool) -> None:
        """Apply an entry that the next commit appends; see `Keep`."""
        buffer = self._buffer
        start = len(buffer)
        encode_entry_into(entry, buffer, start)
        end = len(buffer)
        size = end - start + ENTRY_OVERHEAD
        try:
            self._maintenance.check_room(size + self.bytes, urgent=urgent)
        except StorageError:
            del buffer[start:]
            raise
        self._ends.append(end)
        self._shard.apply(entry.record, self.end)
        self.end += size
        self.bytes += size

    def take(self) -> list[memoryview]:
        """Take all entries out, to be appended."""
        if not self._ends:
            return []
        whole, ends = memoryview(self._buffer), self._ends
        self._buffer, self._ends = bytearray(), []
        starts = [0, *ends[:-1]]
        return [whole[start:end] for start, end in zip(starts, ends, strict=True)]
