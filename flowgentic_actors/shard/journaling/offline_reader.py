"""Reading a shard's journal from its files alone, without changing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.shard.journaling.entries import JournalEntry, LogEntry, decode_entry
from flowgentic_actors.storage.compacted_set import CompactedSet, open_newest
from flowgentic_actors.storage.log import SegmentLog
from flowgentic_actors.storage.read_only_disk import ReadOnlyDisk

_ANOTHER_BOOT: Final = b"\xff" * 16


class FoundEntry(NamedTuple):
    """One entry of a journal.

    Attributes:
        lsn: Its address.
        payload: As it is in the file.
        entry: Decoded.
        compacted: Whether it is from the compacted set.
    """

    lsn: int
    payload: bytes
    entry: JournalEntry
    compacted: bool


class OfflineReader:
    """Reads a journal's files as they are now; several passes see the same files.

    Args:
        folder: The shard's folder.
        live: Whether an actor may be writing to it: reading ends with the last whole entry then,
            whatever follows. Otherwise what follows must be what an interrupted append leaves.

    Raises:
        JournalError: If the folder changes faster than it can be opened.
        OSError: If it cannot be read.
    """

    def __init__(self, folder: Path, *, live: bool = False) -> None:
        self._folder = folder
        self._live = live
        self._view = ReadOnlyDisk(folder)
        self._set: CompactedSet | None = None
        self._log: SegmentLog | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._view.release()

    @property
    def total_bytes(self) -> int:
        """The size of all files, dead entries included."""
        return self._view.total_bytes

    def entries(self) -> Iterator[FoundEntry]:
        """Iterate over all entries in order, as recovery would find them.

        Raises:
            JournalDamagedError: If an entry is not what was written, and no older set has it.
            JournalError: If a file was written by another version.
        """
        self._set = newest = open_newest(self._view, self._folder)
        if newest is not None:
            for lsn, payload in newest.entries():
                yield FoundEntry(lsn, payload, decode_entry(payload), True)
        # As if the machine had gone down since: no order of an unsealed segment's pages is assumed.
        boot = _ANOTHER_BOOT if self._live else None
        self._log = SegmentLog(
            self._view, self._folder, durable=False, boot=boot, cuts=False, whole=not self._live
        )
        for lsn, payload in self._log.recover(newest.end if newest else 0):
            yield FoundEntry(lsn, payload, decode_entry(payload), False)

    def read(self, lsn: int) -> Record:
        """Read the record of one entry that a pass to the end has yielded.

        Raises:
            JournalDamagedError: If it is not what was written.
        """
        payload = self._log.read(lsn) if self._log else None
        if payload is None and self._set is not None:
            payload = self._set.read(lsn)
        if payload is None:
            raise JournalDamagedError(f"{self._folder}: there is no entry {lsn}")
        entry = decode_entry(payload)
        assert isinstance(entry, LogEntry)
        return entry.record


def holds_entries(folder: Path) -> bool:
    """Whether a shard's folder holds any entry, in its log or in a compacted set."""
    with ReadOnlyDisk(folder) as view:
        if any(name.endswith(".set") for name in view.names(folder)):
            return True
        log = SegmentLog(view, folder, durable=False, boot=_ANOTHER_BOOT, cuts=False)
        return next(log.recover(0), None) is not None
