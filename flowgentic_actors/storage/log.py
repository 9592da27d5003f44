"""The log of a shard: checked entries in preallocated segments.

An entry's address is its log sequence number (LSN): the number of bytes of entries before it, over
all segments ever written. It never changes, whatever becomes of the segment.

    segment   header (magic, format, boot id, CRC), then entries, then zeros; its name is the LSN
              of its first entry
    entry     head (length, CRC-32 of LSN and payload, CRC-32 of the head), payload, one trailing
              byte that is never zero

A process that dies while it appends leaves a beginning of what it wrote, and zeros after it: the
trailing byte of the cut entry is missing, or its head is and all that would follow. That is a torn
tail, and it is cut off. Anything else that is not as it was written is damage, and it is refused
rather than served or dropped.

A segment that is complete, and synced in a log that is, is named `.sealed`; until then `.seg`. When
the machine itself went down since (the boot id tells), what is in a `.seg` may be anything, as its
pages reach the medium in any order. Everything from the first bad entry on is cut then, later
segments included: none of it was acknowledged as on disk.

Nothing here waits for the medium but `sync` and `prepare`, which belong on a thread; a caller that
promises durability waits for a `sync` that began after its append. Reopening seals what it found;
the first append begins another segment, so what was recovered is never written to again and a log
can be opened, and read, on a disk that is full.
"""

from __future__ import annotations

import itertools
import logging
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import BlockReader, Disk

logger = logging.getLogger(__name__)

FORMAT: Final = 2
SEGMENT_BYTES: Final = 16 << 20

_MAGIC: Final = b"FGAS"
_HEADER = struct.Struct("!4sI16sI")
_DATA: Final = 64  # entries begin here
_HEAD = struct.Struct("!III")
_END: Final = b"\xa5"
ENTRY_OVERHEAD: Final = _HEAD.size + len(_END)
"""Bytes around a payload: what an entry adds to the log's end is its payload and this."""

_SCAN: Final = 1 << 20
_READ: Final = 8 << 10  # at first, for one entry: most are smaller
_ACTIVE: Final = ".seg"
_SEALED: Final = ".sealed"
_SPARE: Final = ".spare"


def boot_id() -> bytes:
    """16 bytes that change when the machine is started anew, zeros where it does not tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return bytes(16)
    return bytes.fromhex(text.strip().replace("-", ""))


def checksum(lsn: int, payload: bytes) -> int:
    """The CRC of an entry; the LSN is in it, so an entry at a wrong place does not pass."""
    return zlib.crc32(payload, lsn & 0xFFFF_FFFF)


def _head_checksum(lsn: int, length: int, crc: int) -> int:
    return zlib.crc32(struct.pack("!QII", lsn, length, crc))


class SyncPlan(NamedTuple):
    """What a sync waits for.

    Attributes:
        position: LSN up to which entries are on the medium when it is done.
        segments: The segments to sync.
    """

    position: int
    segments: tuple[Segment, ...]


@dataclass
class Segment:
    """One file of the log.

    Attributes:
        path: The file.
        fd: Its descriptor.
        first: LSN of its first entry.
        end: LSN after its last entry.
        sealed: Whether it is complete and cut to its length.
        capacity: Bytes of the file that are allocated.
    """

    path: Path
    fd: int
    first: int
    end: int
    sealed: bool
    capacity: int = 0

    def offset(self, lsn: int) -> int:
        """Where in the file an LSN is."""
        return _DATA + lsn - self.first

    def room(self) -> int:
        """Bytes of entries that still fit into what is allocated."""
        return self.capacity - self.offset(self.end)


class _Spare(NamedTuple):
    fd: int
    path: Path
    capacity: int


def _read_head(lsn: int, position: int, reader: BlockReader) -> tuple[int, int] | None:
    """The length and payload CRC in an entry's head, or None when the head is not good."""
    head = reader.read(_HEAD.size, position)
    if len(head) < _HEAD.size:
        return None
    length, crc, head_crc = _HEAD.unpack(head)
    return (length, crc) if head_crc == _head_checksum(lsn, length, crc) else None


class SegmentLog:
    """Appends entries, and yields them again when it is opened.

    Call `recover` to its end before anything else.

    Args:
        disk: File operations.
        folder: Folder of the segments; it must exist.
        durable: Whether a segment is synced before it gets its name, for callers that `sync`.
        segment_bytes: Size of a segment; a larger batch gets a segment of its own.
        boot: What tells this start of the machine from others. Default: `boot_id()`.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        *,
        durable: bool,
        segment_bytes: int = SEGMENT_BYTES,
        boot: bytes | None = None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._durable = durable
        self._boot = boot_id() if boot is None else boot
        self._segments: list[Segment] = []
        self._unsynced: list[Segment] = []
        self._spare: _Spare | None = None
        self._lock = threading.Lock()  # of both: appending, preparing, forgetting may be 3 threads
        self._spares = itertools.count()
        self._recovered_to: int | None = None

    # ------------------------------------------------------------------ opening

    def recover(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, payload) of every entry from an LSN on, then make ready for appending.

        Args:
            start: LSN up to which something else, a compacted set, holds the entries.

        Raises:
            JournalDamagedError: If an entry is not what was written, or a segment is missing.
            JournalError: If a file was written by another version.
        """
        paths = self._find()
        expected = start
        while paths:
            path = paths.pop(0)
            segment, boot = self._open(path)
            self._segments.append(segment)
            if segment.first > expected:
                raise JournalDamagedError(
                    f"{self._folder}: the log from {expected} to {segment.first} is missing; "
                    "restore the folder from a copy"
                )
            rebooted = boot != self._boot
            whole = True
            for lsn, payload in self._scan(segment):
                if payload is None:
                    whole = False
                    self._cut(segment, last=not paths, rebooted=rebooted)
                elif lsn >= start:
                    yield lsn, payload
            expected = max(expected, segment.end)
            if not whole:
                break
        for path in paths:  # written after what the machine lost, and acknowledged to nobody
            self._disk.unlink(path)
        self._finish_recovery(expected)

    def _find(self) -> list[Path]:
        """The segments' files, oldest first; removes a spare one that was never used."""
        names = self._disk.names(self._folder)
        for name in [name for name in names if name.endswith(_SPARE)]:
            self._disk.unlink(self._folder / name)
        return [self._folder / name for name in names if name.endswith((_ACTIVE, _SEALED))]

    def _finish_recovery(self, end: int) -> None:
        for segment in list(self._segments):
            if segment.end == segment.first:  # of an earlier life that wrote nothing
                self._segments.remove(segment)
                self._disk.close(segment.fd)
                self._disk.unlink(segment.path)
            elif not segment.sealed:
                self._seal(segment)
        if self._unsynced:
            self.sync(self.plan_sync())
        self._recovered_to = end

    def _open(self, path: Path) -> tuple[Segment, bytes]:
        fd = self._disk.open(path)
        header = self._disk.read(fd, _HEADER.size, 0)
        first = int(path.stem, 16)
        if len(header) < _HEADER.size:
            raise JournalDamagedError(f"{path} is cut within its header")
        magic, version, boot, crc = _HEADER.unpack(header)
        if magic != _MAGIC or version != FORMAT:
            raise JournalError(
                f"{path} is not a log segment of format {FORMAT}: written by another version of "
                "flowgentic_actors, or not by it at all"
            )
        if crc != zlib.crc32(header[:-4]):
            raise JournalDamagedError(f"{path}: its header does not match its checksum")
        return Segment(path, fd, first, first, sealed=path.suffix == _SEALED), boot

    def _scan(self, segment: Segment) -> Iterator[tuple[int, bytes | None]]:
        """Yield a segment's entries and set its end; None, last, for what is not an entry."""
        # Recovery is as fast as this loop: it parses whole blocks, without a call for each field.
        size = self._disk.size(segment.fd)
        position, start, block = _DATA, _DATA, b""
        while position < size:
            at = position - start
            end = at + _HEAD.size
            if end <= len(block):
                length, crc, head_crc = _HEAD.unpack_from(block, at)
                end += length + 1
            if end > len(block):
                wanted = min(max(end - at, _SCAN), size - position)
                if wanted > len(block) - at:
                    block, start = self._disk.read(segment.fd, wanted, position), position
                    if wanted >= ENTRY_OVERHEAD and len(block) == wanted:
                        continue
                yield segment.end, None  # it would pass the end of the file
                return
            lsn = segment.end
            payload = block[at + _HEAD.size : end - 1]
            good = head_crc == _head_checksum(lsn, length, crc) and block[end - 1] == _END[0]
            if not good or checksum(lsn, payload) != crc:
                yield lsn, None
                return
            segment.end = lsn + end - at
            position += end - at
            yield lsn, payload

    def _cut(self, segment: Segment, *, last: bool, rebooted: bool) -> None:
        """Decide that what follows a segment's last good entry can go, or raise."""
        size, position = self._disk.size(segment.fd), segment.offset(segment.end)
        if segment.sealed or not (last or rebooted):
            raise self._damage(segment, position)
        if not rebooted:
            self._check_torn(segment, position, size)
        if torn := self._written_after(segment, position, size):
            logger.warning("%s: cut %d bytes of an interrupted append", segment.path, torn)

    def _check_torn(self, segment: Segment, position: int, size: int) -> None:
        """Make sure that a bad entry is what an interrupted append leaves, or raise.

        It leaves zeros from the cut on: from the trailing byte at the latest, and from the end of
        the head when the head itself is not good.
        """
        reader = BlockReader(self._disk, segment.fd)
        head = _read_head(segment.end, position, reader)
        zeros = position + _HEAD.size + (head[0] if head else 0)
        if head and zeros >= size:
            # A segment is allocated before it is written to, so no entry passes its end.
            raise self._damage(segment, position)
        for start in range(zeros, size, _SCAN):
            block = self._disk.read(segment.fd, min(_SCAN, size - start), start)
            if block.strip(b"\0"):
                raise self._damage(segment, position)

    def _written_after(self, segment: Segment, position: int, size: int) -> int:
        used = position
        for start in range(position, size, _SCAN):
            block = self._disk.read(segment.fd, min(_SCAN, size - start), start).rstrip(b"\0")
            if block:
                used = start + len(block)
        return used - position

    @staticmethod
    def _damage(segment: Segment, position: int) -> JournalDamagedError:
        return JournalDamagedError(
            f"{segment.path}: the entry at byte {position} is not what was written; the file was "
            "changed or the disk is failing. Restore the folder from a copy"
        )

    # ------------------------------------------------------------------ appending

    @property
    def end(self) -> int:
        """LSN of the next entry."""
        active = self._active()
        return active.end if active else self._recovered_to or 0

    def has_room(self, size: int, *, kept: int = 0) -> bool:
        """Whether entries of so many bytes, overhead included, fit into what is allocated.

        Args:
            size: Bytes.
            kept: Bytes to leave free.
        """
        active = self._active()
        if active is not None and size <= active.room() - kept:
            return True
        spare = self._spare
        return spare is not None and _DATA + size <= spare.capacity - kept

    def make_room(self, size: int, least: int | None = None) -> None:
        """Allocate the next segment so that entries of so many bytes fit into it. Blocks.

        Args:
            size: Bytes.
            least: Size of a segment that is new. Default: as all are.

        Raises:
            OSError: If that fails.
        """
        self._offer(self._take_spare(size, least))

    def nearly_full(self) -> bool:
        """Whether the next segment will be wanted soon and is not there yet."""
        active = self._active()
        return self._spare is None and (active is None or 2 * active.room() < active.capacity)

    def append(self, payloads: Sequence[bytes]) -> list[int]:
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
        lsns: list[int] = []
        chunks: list[bytes] = []
        lsn = active.end
        for payload in payloads:
            length, crc = len(payload), checksum(lsn, payload)
            head = _HEAD.pack(length, crc, _head_checksum(lsn, length, crc))
            chunks += (head, payload, _END)
            lsns.append(lsn)
            lsn += len(payload) + ENTRY_OVERHEAD
        self._disk.write(active.fd, b"".join(chunks), active.offset(active.end))
        active.end = lsn
        if active not in self._unsynced:
            self._unsynced.append(active)
        return lsns

    def read(self, lsn: int) -> bytes | None:
        """The payload of one entry; None when its segment is gone.

        Callable from one other thread than the one that appends, if that same thread closes what
        `forget_below` gives.

        Raises:
            JournalDamagedError: If it is not what was written.
        """
        segment = self._segment_of(lsn)
        if segment is None:
            return None
        position = segment.offset(lsn)
        block = self._disk.read(segment.fd, _READ, position)
        if len(block) >= _HEAD.size:
            length, crc, head_crc = _HEAD.unpack_from(block)
            if head_crc == _head_checksum(lsn, length, crc):
                missing = _HEAD.size + length - len(block)
                if missing > 0:
                    block += self._disk.read(segment.fd, missing, position + len(block))
                payload = block[_HEAD.size : _HEAD.size + length]
                if checksum(lsn, payload) == crc:
                    return payload
        raise self._damage(segment, position)

    def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int] | None:
        """Some entries from an LSN on, and the LSN after them; None when their segment is gone.

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
        end = segment.end  # what is appended from now on comes later
        block = self._disk.read(segment.fd, min(most, end - lsn), segment.offset(lsn))
        found: list[tuple[int, bytes]] = []
        at = 0
        while at + ENTRY_OVERHEAD <= len(block):
            length, crc, head_crc = _HEAD.unpack_from(block, at)
            here = lsn + at
            if head_crc != _head_checksum(here, length, crc):
                raise self._damage(segment, segment.offset(here))
            if at + ENTRY_OVERHEAD + length > len(block):
                if found:
                    break
                block = self._disk.read(segment.fd, length + ENTRY_OVERHEAD, segment.offset(lsn))
            payload = block[at + _HEAD.size : at + _HEAD.size + length]
            if checksum(here, payload) != crc:
                raise self._damage(segment, segment.offset(here))
            found.append((here, payload))
            at += length + ENTRY_OVERHEAD
        return found, lsn + at

    def _segment_of(self, lsn: int) -> Segment | None:
        segments = self._segments
        index = bisect_right(segments, lsn, key=_first) - 1
        if index < 0 or lsn >= segments[index].end:
            return None
        return segments[index]

    def take_back(self) -> None:
        """After a failed append: remove what may be left of it.

        Raises:
            OSError: If that fails as well.
        """
        active = self._active()
        if active is not None:
            active.capacity = active.offset(active.end)
            self._disk.truncate(active.fd, active.capacity)

    def cut(self, lsn: int) -> None:
        """Forget the entries of the active segment from an LSN on; `take_back` removes them.

        Raises:
            OSError: If the LSN is not in the active segment.
        """
        active = self._active()
        if active is None or not active.first <= lsn <= active.end:
            raise OSError(f"position {lsn} is sealed already")
        active.end = lsn

    def plan_sync(self) -> SyncPlan:
        """What to `sync` so that everything appended so far is on the medium."""
        unsynced, self._unsynced = self._unsynced, []
        return SyncPlan(self.end, tuple(unsynced))

    def sync(self, plan: SyncPlan) -> None:
        """Wait until a plan's entries are on the medium. Blocks; callable from any thread.

        Raises:
            OSError: If that failed. It must not be tried again: the kernel may have dropped what
                it could not write, and would call the next attempt a success.
        """
        for segment in plan.segments:
            self._disk.sync(segment.fd)
        for segment in plan.segments:
            if segment.sealed and segment.path.suffix != _SEALED:
                self._name_sealed(segment)
        self._disk.sync_folder(self._folder)

    def prepare(self) -> None:
        """Make the next segment's file ahead of its need. Blocks; callable from any thread."""
        if self._spare is None:
            self._offer(self._create(self._segment_bytes))

    # ------------------------------------------------------------------ segments

    def sealed(self) -> list[Segment]:
        """The complete segments, synced in a log that is, oldest first."""
        return [segment for segment in self._segments if segment.path.suffix == _SEALED]

    def bytes_from(self, lsn: int) -> int:
        """Bytes of the entries from an LSN on."""
        return max(0, self.end - lsn)

    def forget_below(self, lsn: int) -> list[Segment]:
        """Forget the sealed segments whose entries are all below an LSN.

        Returns:
            Them, for the caller to close and unlink: that takes time.
        """
        with self._lock:
            needless = [segment for segment in self.sealed() if segment.end <= lsn]
            self._segments = [segment for segment in self._segments if segment not in needless]
        return needless

    def read_sealed(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, payload) from the sealed files between two LSNs, and change nothing.

        For a process that looks at another one's log; there is no need to `recover` first.

        Raises:
            JournalDamagedError: If an entry is not what was written, or a segment is missing.
        """
        expected = start
        for name in self._disk.names(self._folder):
            if not name.endswith(_SEALED) or int(name.partition(".")[0], 16) >= end:
                continue
            segment, _ = self._open(self._folder / name)
            try:
                if segment.first > expected:
                    raise JournalDamagedError(f"{self._folder}: the log at {expected} is missing")
                for lsn, payload in self._scan(segment):
                    if payload is None:
                        raise self._damage(segment, segment.offset(lsn))
                    if lsn >= start:
                        yield lsn, payload
            finally:
                self._disk.close(segment.fd)
            expected = max(expected, segment.end)
        if expected < end:
            raise JournalDamagedError(
                f"{self._folder}: the log from {expected} to {end} is missing"
            )

    def close(self) -> None:
        """Seal the last segment and close every file; as they are when `recover` did not end."""
        active = self._active()
        if active is not None and self._recovered_to is not None:
            self._seal(active)
            if self._durable:
                self.sync(self.plan_sync())
        self.abandon()

    def abandon(self) -> None:
        """Close every file as it is."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            self._discard(spare)
        for segment in self._segments:
            self._disk.close(segment.fd)
        self._segments.clear()

    def _seal(self, segment: Segment) -> None:
        self._disk.truncate(segment.fd, segment.offset(segment.end))
        segment.sealed = True
        if not self._durable:
            self._name_sealed(segment)
        elif segment not in self._unsynced:
            self._unsynced.append(segment)

    def _name_sealed(self, segment: Segment) -> None:
        path = segment.path.with_suffix(_SEALED)
        self._disk.rename(segment.path, path)
        segment.path = path

    def _active(self) -> Segment | None:
        """The segment that is written to, if one was begun."""
        if self._segments and not self._segments[-1].sealed:
            return self._segments[-1]
        return None

    def _begin(self, first: int, size: int) -> Segment:
        """Seal what was written to and begin the segment for a batch of `size` bytes."""
        spare = self._take_spare(size)
        active = self._active()
        if active is not None:
            self._seal(active)
        path = self._folder / f"{first:016x}{_ACTIVE}"
        self._disk.rename(spare.path, path)  # so that no .seg is without its header
        segment = Segment(path, spare.fd, first, first, sealed=False, capacity=spare.capacity)
        with self._lock:
            self._segments.append(segment)
        return segment

    def _take_spare(self, size: int, least: int | None = None) -> _Spare:
        """The next segment's file, made or extended for a batch of `size` bytes."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is None:
            return self._create(max(least or self._segment_bytes, _DATA + size))
        if spare.capacity < _DATA + size:
            try:
                self._disk.allocate(spare.fd, _DATA + size)
            except OSError:
                self._offer(spare)
                raise
            spare = spare._replace(capacity=_DATA + size)
        return spare

    def _offer(self, spare: _Spare) -> None:
        with self._lock:
            if self._spare is None:
                self._spare = spare
                return
        self._discard(spare)

    def _discard(self, spare: _Spare) -> None:
        self._disk.close(spare.fd)
        self._disk.unlink(spare.path)

    def _create(self, size: int) -> _Spare:
        path = self._folder / f"{next(self._spares)}{_SPARE}"
        fd = self._disk.create(path, size)
        head = _HEADER.pack(_MAGIC, FORMAT, self._boot, 0)[:-4]
        self._disk.write(fd, head + struct.pack("!I", zlib.crc32(head)), 0)
        if self._durable:
            self._disk.sync(fd)
        return _Spare(fd, path, size)


def _first(segment: Segment) -> int:
    return segment.first
