"""The log of a shard: checked entries in preallocated segments (see `segment`).

An entry's address is its log sequence number (LSN): the number of bytes of entries before it, over
all segments ever written. It never changes, whatever becomes of the segment.

A segment that is complete, and synced in a log that is, is named `.sealed`; until then `.seg`. What
is read again when a log is opened, and what is cut off, is decided in `log_recovery`.

How far the log is sealed is noted beside it (`sealed_end`): a log that ends before that was
shortened, or has lost a segment, and is refused.

`append` only writes to a file that is open and allocated, so an event loop may call it. Whatever
else there is to do with files belongs on a thread: allocating the next segment (`prepare`,
`make_room`), and cutting and naming the last ones (`settle`). A segment may so have entries before
it has its name; the LSN in their checksums tells where they belong, should the process die then.

A caller that promises durability waits for a `sync` that began after its append. Reopening seals
what it found; the first append begins another segment, so what was recovered is never written to
again and a log can be opened, and read, on a disk that is full.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.log_recovery import Recovery, boot_id
from flowgentic_actors.storage.next_segment import NextSegment
from flowgentic_actors.storage.sealed_end import read_end, write_end
from flowgentic_actors.storage.segment import (
    DATA,
    ENTRY_OVERHEAD,
    SEALED,
    Segment,
    encode,
)

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 16 << 20


class SyncPlan(NamedTuple):
    """The plan of a sync: the segments and the end that it waits for.

    Attributes:
        position: LSN up to which entries are on the medium when it is done.
        segments: The segments to sync.
    """

    position: int
    segments: tuple[Segment, ...]


class SegmentLog:
    """Appends entries, and yields them again when it is opened.

    Call `recover` to its end before anything else.

    Args:
        disk: File operations.
        folder: Folder of the segments; it must exist.
        durable: Whether a segment is synced before it gets its name, for callers that `sync`.
        segment_bytes: Size of a segment; a larger batch gets a segment of its own.
        boot: What tells this start of the machine from others. Default: `boot_id()`.
        cuts: Whether what follows the last good entry is removed, and the log says so; not where
            the files are only read.
        whole: Whether all that was sealed must be there; not where an actor goes on writing.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        *,
        durable: bool,
        segment_bytes: int = SEGMENT_BYTES,
        boot: bytes | None = None,
        cuts: bool = True,
        whole: bool = True,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._durable = durable
        self._boot = boot_id() if boot is None else boot
        self._segments: list[Segment] = []
        self._unsynced: list[Segment] = []
        self._next = NextSegment(disk, folder, segment_bytes, self._boot, durable=durable)
        self._lock = threading.Lock()  # of the segments: appending and forgetting may be 2 threads
        self._settling = threading.Lock()  # never taken on an event loop
        self._recovered_to: int | None = None
        self._cuts = cuts
        self._whole = whole
        self._noted: int | None = None
        self.on_begin: Callable[[], None] = lambda: None
        """Called by `append` when it has begun a segment: time to `settle`."""

    # ------------------------------------------------------------------ opening

    def recover(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, payload) of every entry from an LSN on, then make ready for appending.

        Args:
            start: LSN up to which something else, a compacted set, holds the entries.

        Raises:
            JournalDamagedError: If an entry is not what was written, or a segment is missing.
            JournalError: If a file was written by another version.
        """
        recovery = Recovery(
            self._disk, self._folder, self._segments, boot=self._boot, cuts=self._cuts
        )
        yield from recovery.entries(start)
        self._finish_recovery(recovery.end, lost_some=recovery.lost_some)

    def _finish_recovery(self, end: int, *, lost_some: bool) -> None:
        self._noted = read_end(self._disk, self._folder) if self._whole else None
        if self._noted is not None and end < self._noted and (self._durable or not lost_some):
            raise JournalDamagedError(
                f"{self._folder}: the log ends at {end}, and was sealed up to {self._noted}: its "
                "last segments were removed or shortened. Restore the folder from a copy"
            )
        for segment in list(self._segments):
            if segment.end == segment.first:  # of an earlier life that wrote nothing
                self._segments.remove(segment)
                segment.close()
                self._disk.unlink(segment.path)
            elif not segment.sealed:
                self._seal(segment)
        self.settle()
        if self._unsynced:
            self.sync(self.plan_sync())
        self._recovered_to = end
        self._next.begins_at(end)

    # ------------------------------------------------------------------ appending

    @property
    def end(self) -> int:
        """The LSN of the next entry."""
        active = self._active()
        if active is not None:
            return active.end
        # After the last one was sealed the next one may not be there yet.
        last = self._segments[-1].end if self._segments else 0
        return max(last, self._recovered_to or 0)

    @property
    def start(self) -> int:
        """The LSN of the oldest entry, or of the next one if there is none."""
        return self._segments[0].first if self._segments else self.end

    def has_room(self, size: int, *, kept: int = 0) -> bool:
        """Whether entries of so many bytes, overhead included, fit into what is allocated.

        Args:
            size: Bytes.
            kept: Bytes to leave free.
        """
        return size <= self.room(kept=kept)

    def room(self, *, kept: int = 0) -> int:
        """The most bytes of entries, overhead included, that fit into what is allocated."""
        active, spare = self._active(), self._next.file
        return max(
            0,
            active.room() - kept if active is not None else 0,
            spare.capacity - DATA - kept if spare is not None else 0,
        )

    def make_room(self, size: int, least: int | None = None) -> None:
        """Allocate the next segment so that entries of so many bytes fit into it. Blocks.

        Args:
            size: Bytes.
            least: Size of a segment that is new. Default: as all are.

        Raises:
            OSError: If that fails.
        """
        self._next.make(size, least)

    def nearly_full(self) -> bool:
        """Whether the next segment will be needed soon and is not allocated yet."""
        active = self._active()
        return self._next.file is None and (active is None or 2 * active.room() < active.capacity)

    def append(self, payloads: Sequence[bytes | memoryview]) -> list[int]:
        """Append entries; when this returns, they survive the death of this process.

        Returns:
            Their LSNs.

        Raises:
            OSError: If they could not be written. What is in the file then is unknown until
                `take_back` succeeds.
        """
        size = sum(len(payload) + ENTRY_OVERHEAD for payload in payloads)
        active = self._active()
        if active is None or size > active.room():
            active = self._begin(self.end, size)
        data, lsns = encode(active.end, payloads)
        self._disk.write(active.fd, data, active.offset(active.end))
        active.end += len(data)
        if active not in self._unsynced:
            self._unsynced.append(active)
        return lsns

    def read(self, lsn: int) -> bytes | None:
        """Read the payload of one entry; None when its segment is removed.

        Callable from one other thread than the one that appends, if that same thread closes what
        `forget_below` gives.

        Raises:
            JournalDamagedError: If it is not what was written.
        """
        segment = self._segment_of(lsn)
        return None if segment is None else segment.read(lsn)

    def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int] | None:
        """Read some entries from an LSN on, with the LSN after them; None without their segment.

        Callable from the thread of `read`.

        Args:
            lsn: Address of an entry, or the end of the log.
            most: Bytes to read, about; at least one entry is read.

        Raises:
            JournalDamagedError: If one is not what was written.
        """
        segment = self._segment_of(lsn)
        if segment is None:
            return ([], lsn) if lsn == self.end else None
        return segment.scan(lsn, most)

    def _segment_of(self, lsn: int) -> Segment | None:
        segments = self._segments
        index = bisect_right(segments, lsn, key=_first) - 1
        if index < 0 or lsn >= segments[index].end:
            return None
        return segments[index]

    def take_back(self) -> None:
        """Remove what a failed append may have left.

        Raises:
            OSError: If that fails as well.
        """
        active = self._active()
        if active is not None:
            active.capacity = active.offset(active.end)
            self._disk.truncate(active.fd, active.capacity)

    def mend(self) -> None:
        """Repair the log after an `append` that an exception of any kind interrupted.

        Its entries are in the log, all of them, or not.

        Raises:
            OSError: If that fails.
        """
        with self._settling:
            names = set(self._disk.names(self._folder))
            for segment in self._segments:
                segment.find_file(names)
        self.settle()
        active = self._active()
        if active is not None:  # behind the last entry there must be nothing but zeros
            self._disk.truncate(active.fd, active.offset(active.end))
            self._disk.allocate(active.fd, active.capacity)

    def truncate_from(self, lsn: int) -> None:
        """Forget the entries of the active segment from an LSN on; `take_back` removes them.

        Raises:
            OSError: If the LSN is not in the active segment.
        """
        active = self._active()
        if active is None or not active.first <= lsn <= active.end:
            raise OSError(f"position {lsn} is sealed already")
        active.end = lsn

    def plan_sync(self) -> SyncPlan:
        """The plan of a `sync` that brings everything appended so far to the medium."""
        unsynced, self._unsynced = self._unsynced, []
        return SyncPlan(self.end, tuple(unsynced))

    def sync(self, plan: SyncPlan) -> None:
        """Wait until a plan's entries are on the medium. Blocks; callable from any thread.

        Raises:
            OSError: If that failed. It must not be tried again: the kernel may have dropped what
                it could not write, and would call the next attempt a success.
        """
        self.settle()
        trimmed = [segment for segment in plan.segments if segment.trimmed]
        for segment in plan.segments:
            self._disk.sync(segment.fd)
        with self._settling:
            for segment in trimmed:
                segment.settle(synced=True)
            self._note_end()
        self._disk.sync_folder(self._folder)

    def settle(self) -> None:
        """Cut and name the files of the segments. Blocks; callable from any thread.

        Raises:
            OSError: If that is not possible now; nothing is lost, and a later call may succeed.
        """
        with self._settling:
            # Oldest first: recovery takes no segment that is not cut for one before another.
            for segment in [*self._segments]:
                segment.settle(synced=not self._durable)
            self._note_end()

    def _note_end(self) -> None:
        """Write down how far the log is sealed, where that has changed."""
        sealed = self.sealed() if self._cuts else []
        end = sealed[-1].end if sealed else 0
        if self._noted is not None and end <= self._noted:
            return
        try:
            write_end(self._disk, self._folder, end, synced=self._durable)
        except OSError as error:
            if self._noted is not None:
                raise
            # It never had one: the log can be opened, and read, on a disk that is full.
            logger.warning("%s: its end cannot be noted: %s", self._folder, error)
            return
        self._noted = end

    def prepare(self) -> None:
        """Allocate the next segment's file ahead of its need. Blocks; callable from any thread."""
        self._next.prepare()

    # ------------------------------------------------------------------ segments

    def sealed(self) -> list[Segment]:
        """The complete segments, synced in a log that is, oldest first."""
        return [segment for segment in self._segments if segment.path.suffix == SEALED]

    def bytes_from(self, lsn: int) -> int:
        """The bytes of the entries from an LSN on."""
        return max(0, self.end - lsn)

    def forget_below(self, lsn: int) -> list[Segment]:
        """Forget the sealed segments whose entries are all below an LSN.

        Returns:
            Them, for the caller to close and unlink: that takes time.
        """
        with self._lock:
            obsolete = [segment for segment in self.sealed() if segment.end <= lsn]
            self._segments = [segment for segment in self._segments if segment not in obsolete]
        return obsolete

    def close(self) -> None:
        """Seal the last segment, unless `recover` did not end, and close every file."""
        active = self._active()
        if self._recovered_to is not None:
            if active is not None:
                self._seal(active)
            self.settle()
            if self._durable and self._unsynced:
                self.sync(self.plan_sync())
        self.abandon()

    def abandon(self) -> None:
        """Close every file without sealing."""
        self._next.abandon()
        self.detach()

    def detach(self) -> None:
        """Close every file without any change, not even of a name."""
        self._next.detach()
        for segment in self._segments:
            segment.close()
        self._segments.clear()

    def _seal(self, segment: Segment) -> None:
        """End writing to a segment; `settle` has to follow."""
        segment.sealed = True
        if self._durable and segment not in self._unsynced:
            self._unsynced.append(segment)

    def _active(self) -> Segment | None:
        """The segment that is written to, if one was begun."""
        if self._segments and not self._segments[-1].sealed:
            return self._segments[-1]
        return None

    def _begin(self, first: int, size: int) -> Segment:
        """Seal the active segment and begin the next one, for a batch of `size` bytes."""
        ahead = self._next.file is not None
        spare = self._next.take(size)
        try:
            active = self._active()
            if active is not None:
                self._seal(active)
            segment = Segment(
                self._disk,
                spare.path,
                spare.fd,
                first,
                first,
                sealed=False,
                boot=self._boot,
                capacity=spare.capacity,
            )
            with self._lock:
                self._segments.append(segment)
        except BaseException:
            if all(segment.fd != spare.fd for segment in self._segments):
                self._next.offer(spare)
            raise
        if ahead:
            self.on_begin()
        else:
            self.settle()  # this append has blocked for the allocation anyway
        return segment


def _first(segment: Segment) -> int:
    return segment.first
