"""Re-sharding: deals the entries of journals out to the journals of other shards.

Every new shard gets one compacted set of what is alive of it. The old files are read and not
changed, so an attempt that ends anywhere has cost nothing but the new files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import JournalError
from flowgentic_actors.shard.journaling.compaction import Liveness
from flowgentic_actors.shard.journaling.entries import SessionState, SessionTable, encode_entry
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader
from flowgentic_actors.shard.journaling.sessions import Sessions
from flowgentic_actors.storage.compacted_set import write_set
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.sealed_end import write_end

Route: TypeAlias = Callable[[Record], int]
"""Which new shard a record belongs to."""

_BLOCK: Final = 1 << 20
_BLOCKS: Final = 2  # that wait for one writer
_POLL: Final = 0.2


def reshard(
    disk: Disk,
    sources: Sequence[OfflineReader],
    folders: Sequence[Path],
    route: Route,
    *,
    owner: Route | None = None,
    progress: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> int:
    """Write the live entries of journals into new ones, streaming the values.

    Args:
        disk: File operations on the new journals.
        sources: The journals to read, open, with a live actor's appends as the only writes.
        folders: Folder of each new shard; it is there and empty.
        route: Tells the shard of a record.
        owner: Tells which of the sources a record counts in, by number; another one that has it had
            it once, or was to get it. Default: the one that has it.
        progress: Called now and then with the bytes of entries written so far.
        stop: Set when the result is not wanted any more.

    Returns:
        Number of entries written.

    Raises:
        JournalError: If a journal cannot be read, or `stop` was set.
        OSError: If reading or writing failed.
    """
    # LSNs begin anew. No journal has more entries than bytes, so the sets can end there.
    end = sum(source.total_bytes for source in sources) + 1
    writers = [_SetWriter(disk, folder, end) for folder in folders]
    union: dict[bytes, SessionState] = {}
    latest_us = written = 0
    try:
        for number, source in enumerate(sources):
            liveness, sessions, time_us = _survey(source, stop)
            latest_us = max(latest_us, time_us)
            for state in sessions.states():
                union[state.session] = _together(union.get(state.session), state)
            for found in source.entries():
                if isinstance(found.entry, SessionTable):
                    continue
                remains = liveness.remains(found.lsn, found.payload, found.entry)
                if remains is not None and (owner is None or owner(found.entry.record) == number):
                    _check(stop)
                    writers[route(found.entry.record)].put(remains)
                    written += len(remains)
                    progress(written)
        states = sorted(union.values(), key=lambda state: state.used_us)
        kept = encode_entry(SessionTable(latest_us, tuple(states)))
        for writer in writers:
            writer.finish(kept)
    finally:
        for writer in writers:
            writer.abandon()
    return sum(writer.count for writer in writers)


def _survey(source: OfflineReader, stop: threading.Event | None) -> tuple[Liveness, Sessions, int]:
    """Survey a journal: its liveness, its sessions, and its latest time."""
    liveness, sessions, latest_us = Liveness(), Sessions(), 0
    for lsn, _, entry, compacted in source.entries():
        _check(stop)
        latest_us = max(latest_us, entry.time_us)
        if isinstance(entry, SessionTable):
            sessions.restore(entry.sessions)
            continue
        liveness.observe(lsn, entry.record)
        if not compacted:
            sessions.remember(entry.session, entry.seq, entry.low, entry.reply, entry.time_us)
    return liveness, sessions, latest_us


def _together(one: SessionState | None, other: SessionState) -> SessionState:
    if one is None:
        return other
    low = max(one.low, other.low)
    replies = {seq: reply for seq, reply in (one.replies | other.replies).items() if seq >= low}
    return SessionState(one.session, low, max(one.used_us, other.used_us), replies)


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise JournalError("the re-sharding was given up; nothing has changed")


class _SetWriter:
    """Writes one shard's compacted set on a thread of its own, beside those of the others."""

    def __init__(self, disk: Disk, folder: Path, end: int) -> None:
        self._disk = disk
        self._folder = folder
        self._end = end
        self._block: list[tuple[int, bytes]] = []
        self._bytes = 0
        self._blocks: queue.Queue[list[tuple[int, bytes]] | None] = queue.Queue(_BLOCKS)
        self._abandoned = False
        self._error: BaseException | None = None
        self.count = 0
        self._thread = threading.Thread(target=self._run, name="reshard", daemon=True)
        self._thread.start()

    def put(self, payload: bytes) -> None:
        """Write an entry, or raise the error of an earlier one."""
        self._block.append((self.count, payload))
        self.count += 1
        self._bytes += len(payload)
        if self._bytes >= _BLOCK:
            self._hand_over()

    def finish(self, kept: bytes) -> None:
        """Write the sessions, and wait until the complete set is on the medium."""
        self._block.append((self._end - 1, kept))
        self._hand_over()
        self._hand_over(last=True)
        self._thread.join()
        self._raise()

    def abandon(self) -> None:
        """End the thread without a set, unless it has ended."""
        self._abandoned = True
        self._thread.join()

    def _hand_over(self, *, last: bool = False) -> None:
        block, self._block, self._bytes = self._block, [], 0
        while True:
            self._raise()
            try:
                return self._blocks.put(None if last else block, timeout=_POLL)
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            write_set(self._disk, self._folder, self._end, self._entries())
            write_end(self._disk, self._folder, self._end)
        except BaseException as error:  # noqa: BLE001 - raised on the thread that waits for it
            self._error = error

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        while not self._abandoned:
            try:
                block = self._blocks.get(timeout=_POLL)
            except queue.Empty:
                continue
            if block is None:
                return
            yield from block
        raise JournalError("the re-sharding was given up")
