"""Compaction: rewrites the sealed part of a shard's journal without dead entries.

It works from the files alone and runs as a process of its own beside the actor, which goes on
serving and appending:

    python -c '... compaction.main()' FOLDER SEALED_TO
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.shard.journaling.entries import (
    LogEntry,
    SessionTable,
    decode_entry,
    encode_entry,
)
from flowgentic_actors.shard.journaling.sessions import Sessions
from flowgentic_actors.storage.compacted_set import open_newest, write_set
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.segment import SEALED, Segment

MODULE = "flowgentic_actors.shard.journaling.compaction"


class Liveness:
    """Decides which parts of a journal are live, with an engine that has no values."""

    def __init__(self) -> None:
        self._shard = Shard(hot_bytes=0, searchable=False)

    def observe(self, lsn: int, record: Record) -> None:
        """Observe an entry; entries come in order."""
        self._shard.apply(record, lsn)
        self._shard.cool(lsn + 1)

    def remains(self, lsn: int, payload: bytes, entry: LogEntry) -> bytes | None:
        """The live part of an entry once all have been observed, None if there is none."""
        record = self._shard.live_part(lsn, entry.record)
        if record is None:
            return None
        if record is entry.record:
            return payload
        return encode_entry(msgspec.structs.replace(entry, record=record))


def compact(disk: Disk, folder: Path, sealed_to: int) -> Path | None:
    """Write a compacted set that replaces the journal up to an LSN.

    Args:
        disk: File operations.
        folder: The shard's folder.
        sealed_to: LSN up to which the log is sealed.

    Returns:
        The set's file, or None when there is nothing to compact.

    Raises:
        JournalDamagedError: If an entry is not what was written.
        OSError: If reading or writing failed; nothing has changed then.
    """
    previous = open_newest(disk, folder)
    start = previous.end if previous else 0
    if sealed_to <= start:
        return None

    def entries() -> Iterator[tuple[int, bytes]]:
        if previous is not None:
            yield from previous.entries()
        yield from _read_sealed(disk, folder, start, sealed_to)

    liveness, kept = _survey(entries(), start)

    def survivors() -> Iterator[tuple[int, bytes]]:
        for lsn, payload in entries():
            entry = decode_entry(payload)
            if isinstance(entry, LogEntry):
                remains = liveness.remains(lsn, payload, entry)
                if remains is not None:
                    yield lsn, remains
        yield sealed_to, kept  # no entry below the end has that LSN

    try:
        return write_set(disk, folder, sealed_to, survivors())
    finally:
        if previous is not None:
            previous.close()


def _read_sealed(disk: Disk, folder: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (LSN, payload) from the sealed files between two LSNs; another process has the log.

    Raises:
        JournalDamagedError: If an entry is not what was written, or a segment is missing.
    """
    expected = start
    for name in disk.names(folder):
        if not name.endswith(SEALED) or int(name.partition(".")[0], 16) >= end:
            continue
        segment = Segment.open(disk, folder / name)
        try:
            if segment.first > expected:
                raise JournalDamagedError(f"{folder}: the log at {expected} is missing")
            for lsn, payload in segment.entries():
                if payload is None:
                    raise segment.damage(lsn)
                if lsn >= start:
                    yield lsn, payload
        finally:
            segment.close()
        expected = max(expected, segment.end)
    if expected < end:
        raise JournalDamagedError(f"{folder}: the log from {expected} to {end} is missing")


def _survey(entries: Iterable[tuple[int, bytes]], start: int) -> tuple[Liveness, bytes]:
    """Survey a journal: what is live, and the encoded sessions."""
    liveness, sessions, latest_us = Liveness(), Sessions(), 0
    for lsn, payload in entries:
        entry = decode_entry(payload)
        latest_us = max(latest_us, entry.time_us)
        if isinstance(entry, SessionTable):
            sessions.restore(entry.sessions)
            continue
        liveness.observe(lsn, entry.record)
        if lsn >= start:
            sessions.remember(entry.session, entry.seq, entry.low, entry.reply, entry.time_us)
    return liveness, encode_entry(SessionTable(latest_us, tuple(sessions.states())))


def main() -> int:
    """Compact the journal named on the command line; ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)  # the actor beside it serves requests
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = compact(RealDisk(), Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.buffer.write(os.fsencode(path or ""))
    return 0


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # a pipe without data: it ends with its other end
    os._exit(1)
