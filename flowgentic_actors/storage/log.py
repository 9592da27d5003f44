"""The log of a shard: checked entries in preallocated segments.

An entry's address is its log sequence number (LSN): the number of bytes of entries before it, over
all segments ever written. It never changes, whatever becomes of the segment.

    segment   header (magic, format, first LSN, boot id, CRC), then entries, then zeros
    entry     length, CRC-32 of LSN and payload, CRC-32 of these two, payload, one trailing byte
              that is never zero

A process that dies while it appends leaves a beginning of what it wrote, and zeros after it: the
trailing byte of the cut entry is missing. That is a torn tail, and it is cut off. An entry that is
whole and does not match its CRC was changed after it was written: that is damage, and it is refused
rather than served. The head has a CRC of its own, or a changed length would make all that follows
look like a torn tail. Only when the machine itself went down since (the boot id tells) may the tail
of the last segment be anything, as its pages reach the medium in any order; then everything from
the first bad entry on is cut: nothing of it was acknowledged as on disk.

A sealed segment is cut to its length. Reopening seals the last segment and begins another, so what
was recovered is never written to again.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import Disk

FORMAT: Final = 2
SEGMENT_BYTES: Final = 64 << 20

_MAGIC: Final = b"FGAS"
_HEADER = struct.Struct("!4sIQ16sI")
_DATA: Final = 64  # entries begin here
_ENTRY = struct.Struct("!III")
_END: Final = b"\xa5"
_OVERHEAD: Final = _ENTRY.size + len(_END)
_SCAN: Final = 1 << 20


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


@dataclass
class Segment:
    """One file of the log.

    Attributes:
        path: The file.
        fd: Its descriptor.
        first: LSN of its first entry.
        end: LSN after its last entry.
        sealed: Whether it is complete and cut to its length.
    """

    path: Path
    fd: int
    first: int
    end: int
    sealed: bool

    def offset(self, lsn: int) -> int:
        """Where in the file an LSN is."""
        return _DATA + lsn - self.first


class SegmentLog:
    """Appends entries and reads them back by LSN.

    Call `recover` to its end before anything else.

    Args:
        disk: File operations.
        folder: Folder of the segments; it must exist.
        segment_bytes: Size of a segment; a larger batch gets a segment of its own.
        durable: Whether names and seals are synced too, for logs whose entries are.
    """

    def __init__(
        self, disk: Disk, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, durable: bool
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._durable = durable
        self._boot = boot_id()
        self._segments: list[Segment] = []
        self._firsts: list[int] = []
        self.cut_bytes = 0

    # ------------------------------------------------------------------ opening

    def recover(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, payload) of every entry from an LSN on, then make ready for appending.

        Args:
            start: LSN up to which something else, a compacted set, holds the entries.

        Raises:
            JournalDamagedError: If an entry is not what was written, or a segment is missing.
            JournalError: If a file was written by another version.
        """
        names = [name for name in self._disk.names(self._folder) if name.endswith(".seg")]
        paths = [self._folder / name for name in names]
        expected = start
        for index, path in enumerate(paths):
            segment, boot = self._open(path)
            self._segments.append(segment)
            if segment.first > expected:
                raise JournalDamagedError(
                    f"{self._folder}: the log from {expected} to {segment.first} is missing; "
                    "restore the folder from a copy"
                )
            last = index == len(paths) - 1
            for lsn, payload in self._scan(segment, last=last, rebooted=boot != self._boot):
                if lsn >= start:
                    yield lsn, payload
            expected = max(expected, segment.end)
        self._firsts = [segment.first for segment in self._segments]
        if self._segments:
            self._seal(self._segments[-1])
        self._begin(expected)

    def _open(self, path: Path) -> tuple[Segment, bytes]:
        fd = self._disk.open(path)
        header = self._disk.read(fd, _HEADER.size, 0)
        first = int(path.stem, 16)
        if not header.strip(b"\0"):
            # Its maker died before the header was written: nothing can be in it.
            return Segment(path, fd, first, first, sealed=False), self._boot
        if len(header) < _HEADER.size:
            raise JournalDamagedError(f"{path} is cut within its header")
        magic, version, told, boot, crc = _HEADER.unpack(header)
        if magic != _MAGIC or version != FORMAT:
            raise JournalError(
                f"{path} is not a log segment of format {FORMAT}: written by another version of "
                "flowgentic_actors, or not by it at all"
            )
        if crc != zlib.crc32(header[:-4]) or told != first:
            raise JournalDamagedError(f"{path}: its header does not match its checksum or name")
        return Segment(path, fd, first, first, sealed=False), boot

    def _scan(self, segment: Segment, *, last: bool, rebooted: bool) -> Iterator[tuple[int, bytes]]:
        """Yield a segment's entries and set its end."""
        size = self._disk.size(segment.fd)
        position = _DATA
        while position < size:
            found = self._entry(segment, position, size)
            if found is None:
                if not last:
                    raise self._damage(segment, position)
                if not rebooted:
                    self._check_torn(segment, position, size)
                self.cut_bytes += self._written_after(segment, position, size)
                break
            yield segment.end, found
            segment.end += len(found) + _OVERHEAD
            position = segment.offset(segment.end)

    def _entry(self, segment: Segment, position: int, size: int) -> bytes | None:
        """The payload of a whole and good entry, or None."""
        head = self._disk.read(segment.fd, _ENTRY.size, position)
        if len(head) < _ENTRY.size:
            return None
        length, crc, head_crc = _ENTRY.unpack(head)
        if zlib.crc32(head[:8]) != head_crc or position + _OVERHEAD + length > size:
            return None
        rest = self._disk.read(segment.fd, length + 1, position + _ENTRY.size)
        lsn = segment.first + position - _DATA
        if rest[-1:] != _END or checksum(lsn, rest[:-1]) != crc:
            return None
        return rest[:-1]

    def _check_torn(self, segment: Segment, position: int, size: int) -> None:
        """Make sure that a bad entry is what an interrupted append leaves, or raise."""
        head = self._disk.read(segment.fd, _ENTRY.size, position).ljust(_ENTRY.size, b"\0")
        length, _, head_crc = _ENTRY.unpack(head)
        unwritten = position + _ENTRY.size  # if the append was cut within the head
        if zlib.crc32(head[:8]) == head_crc:
            unwritten += length
            if unwritten >= size:
                # A segment is allocated before it is written to, so no entry passes its end.
                raise self._damage(segment, position)
        for start in range(unwritten, size, _SCAN):
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
        return self._segments[-1].end

    def append(self, payloads: Sequence[bytes]) -> list[int]:
        """Append entries; when this returns, they survive the death of this process.

        Returns:
            Their LSNs.

        Raises:
            OSError: If they could not be written. What is in the file then is unknown until
                `take_back` succeeds.
        """
        size = sum(len(payload) + _OVERHEAD for payload in payloads)
        active = self._segments[-1]
        if active.end > active.first and active.offset(active.end) + size > self._segment_bytes:
            self._seal(active)
            active = self._begin(active.end, size)
        elif active.offset(active.end) + size > self._segment_bytes:
            self._disk.truncate(active.fd, _DATA + size)  # one batch larger than a segment
        lsns: list[int] = []
        chunks: list[bytes] = []
        lsn = active.end
        for payload in payloads:
            head = struct.pack("!II", len(payload), checksum(lsn, payload))
            chunks += (head, struct.pack("!I", zlib.crc32(head)), payload, _END)
            lsns.append(lsn)
            lsn += len(payload) + _OVERHEAD
        self._disk.write(active.fd, b"".join(chunks), active.offset(active.end))
        active.end = lsn
        return lsns

    def take_back(self) -> None:
        """After a failed append: remove what may be left of it.

        Raises:
            OSError: If that fails as well.
        """
        active = self._segments[-1]
        self._disk.truncate(active.fd, active.offset(active.end))

    def sync(self) -> None:
        """Wait until everything appended so far is on the medium. Blocks; never retried."""
        self._disk.sync(self._segments[-1].fd)

    # ------------------------------------------------------------------ reading

    def read(self, lsn: int) -> bytes:
        """The payload of an entry.

        Raises:
            JournalDamagedError: If it is not what was written.
            KeyError: If it is in no segment.
        """
        index = bisect_right(self._firsts, lsn) - 1
        if index < 0 or lsn >= self._segments[index].end:
            raise KeyError(lsn)
        segment = self._segments[index]
        limit = segment.offset(segment.end)
        found = self._entry(segment, segment.offset(lsn), limit)
        if found is None:
            raise self._damage(segment, segment.offset(lsn))
        return found

    # ------------------------------------------------------------------ segments

    def sealed(self) -> list[Segment]:
        """The complete segments, oldest first."""
        return [segment for segment in self._segments if segment.sealed]

    @property
    def bytes(self) -> int:
        """Bytes of entries in all segments."""
        return sum(segment.end - segment.first for segment in self._segments)

    def forget_below(self, lsn: int) -> None:
        """Remove the sealed segments whose entries are all below an LSN."""
        for segment in [s for s in self.sealed() if s.end <= lsn]:
            self._disk.unlink(segment.path)
            self._disk.close(segment.fd)
            self._segments.remove(segment)
        self._firsts = [segment.first for segment in self._segments]

    def roll(self) -> None:
        """Seal the active segment, if anything is in it, and begin another."""
        active = self._segments[-1]
        if active.end > active.first:
            self._seal(active)
            self._begin(active.end)

    def close(self) -> None:
        """Seal the last segment and close every file."""
        if self._segments and not self._segments[-1].sealed:
            self._seal(self._segments[-1])
        self.abandon()

    def abandon(self) -> None:
        """Close every file as it is."""
        for segment in self._segments:
            self._disk.close(segment.fd)
        self._segments.clear()

    def _seal(self, segment: Segment) -> None:
        self._disk.truncate(segment.fd, segment.offset(segment.end))
        if self._durable:
            self._disk.sync(segment.fd)
        segment.sealed = True

    def _begin(self, first: int, size: int = 0) -> Segment:
        path = self._folder / f"{first:016x}.seg"
        if self._segments and self._segments[-1].first == first:
            empty = self._segments.pop()  # of an earlier life that wrote nothing
            self._disk.close(empty.fd)
            self._disk.unlink(path)
        fd = self._disk.create(path, max(self._segment_bytes, _DATA + size))
        head = _HEADER.pack(_MAGIC, FORMAT, first, self._boot, 0)[:-4]
        self._disk.write(fd, head + struct.pack("!I", zlib.crc32(head)), 0)
        if self._durable:
            self._disk.sync(fd)
            self._disk.sync_folder(self._folder)
        segment = Segment(path, fd, first, first, sealed=False)
        self._segments.append(segment)
        self._firsts = [segment.first for segment in self._segments]
        return segment
