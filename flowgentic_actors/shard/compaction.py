"""Compaction: the sealed part of a shard's journal, rewritten without what is dead.

It works from the files alone and runs as a process of its own beside the actor, which goes on
serving and appending:

    python -c '... compaction.main()' FOLDER SEALED_TO
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from flowgentic_actors.engine.records import (
    CheckpointStored,
    ItemDeleted,
    ItemStored,
    Record,
    ThreadDeleted,
    WritesStored,
)
from flowgentic_actors.shard.entries import KeptSessions, decode_entry, encode_entry
from flowgentic_actors.shard.sessions import Sessions
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.log import SegmentLog
from flowgentic_actors.storage.sets import open_newest, write_set

MODULE = "flowgentic_actors.shard.compaction"


class Liveness:
    """Which entries still matter: an item's last put, and everything of a thread that is there."""

    def __init__(self) -> None:
        self._items: dict[tuple[tuple[str, ...], str], int] = {}
        self._threads: dict[str, list[int]] = {}

    def observe(self, lsn: int, record: Record) -> None:
        """Take note of an entry; they come in order."""
        match record:
            case ItemStored(namespace, key):
                self._items[namespace, key] = lsn
            case ItemDeleted(namespace, key):
                self._items.pop((namespace, key), None)
            case CheckpointStored() | WritesStored():
                self._threads.setdefault(record.thread_id, []).append(lsn)
            case ThreadDeleted(thread_id):
                self._threads.pop(thread_id, None)

    def alive(self) -> set[int]:
        """The LSNs of the entries that matter."""
        return {*self._items.values(), *(lsn for run in self._threads.values() for lsn in run)}


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
        yield from SegmentLog(disk, folder, durable=False).read_sealed(start, sealed_to)

    liveness, sessions, latest_us = Liveness(), Sessions(), 0
    for lsn, payload in entries():
        entry = decode_entry(payload)
        latest_us = max(latest_us, entry.time_us)
        if isinstance(entry, KeptSessions):
            sessions.restore(entry.sessions)
            continue
        liveness.observe(lsn, entry.record)
        if lsn >= start:
            sessions.remember(entry.session, entry.seq, entry.low, entry.reply, entry.time_us)
    alive = liveness.alive()
    kept = encode_entry(KeptSessions(latest_us, tuple(sessions.states())))

    def survivors() -> Iterator[tuple[int, bytes]]:
        yield from ((lsn, payload) for lsn, payload in entries() if lsn in alive)
        yield sealed_to, kept  # no entry below the end has that LSN

    try:
        return write_set(disk, folder, sealed_to, survivors())
    finally:
        if previous is not None:
            previous.close()


def main() -> int:
    """Compact the journal named on the command line; ends when whoever started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)  # the actor beside it serves requests
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = compact(RealDisk(), Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"{path or ''}\n")
    return 0


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # a pipe that nobody writes to: it ends with its other end
    os._exit(1)
