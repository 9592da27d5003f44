"""One file of a shard's log: checked entries, after a header.

    segment   header (magic, format, boot id, CRC), then entries, then zeros; its name is the LSN
              of its first entry
    entry     head (length, CRC-32 of LSN and payload, CRC-32 of the head), payload, one trailing
              byte that is never zero

A process that dies while it appends leaves a beginning of what it wrote, and zeros after it: the
trailing byte of the cut entry is missing, or its head is and all that would follow. That is a torn
tail. Anything else that is not as it was written is damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import BlockReader, Disk

FORMAT: Final = 2
ACTIVE: Final = ".seg"
SEALED: Final = ".sealed"
SPARE: Final = ".spare"
"""Of a file that is allocated ahead; it may have entries before it is named after the first."""

_MAGIC: Final = b"FGAS"
_HEADER = struct.Struct("!4sI16sI")
_HEAD = struct.Struct("!III")
_END: Final = b"\xa5"
_SCAN: Final = 1 << 20
_READ: Final = 8 << 10  # at first, for one entry: most are smaller

DATA: Final = 64
"""Where in a segment its entries begin."""

ENTRY_OVERHEAD: Final = _HEAD.size + len(_END)
"""Bytes around a payload: what an entry adds to the log's end is its payload and this."""


def checksum(lsn: int, payload: bytes | memoryview) -> int:
    """The CRC of an entry; the LSN is in it, so an entry at a wrong place does not pass."""
    return zlib.crc32(payload, lsn & 0xFFFF_FFFF)


def _head_checksum(lsn: int, length: int, crc: int) -> int:
    return zlib.crc32(struct.pack("!QII", lsn, length, crc))


def header(boot: bytes) -> bytes:
    """The header of a segment."""
    head = _HEADER.pack(_MAGIC, FORMAT, boot, 0)[:-4]
    return head + struct.pack("!I", zlib.crc32(head))


def encode(first: int, payloads: Sequence[bytes | memoryview]) -> tuple[bytes, list[int]]:
    """Encode entries from an LSN on; returns the bytes and the LSN of each."""
    chunks: list[bytes | memoryview] = []
    lsns: list[int] = []
    lsn = first
    for payload in payloads:
        length, crc = len(payload), checksum(lsn, payload)
        chunks += (_HEAD.pack(length, crc, _head_checksum(lsn, length, crc)), payload, _END)
        lsns.append(lsn)
        lsn += length + ENTRY_OVERHEAD
    return b"".join(chunks), lsns


def _boot_of(path: Path, start: bytes) -> bytes:
    """The boot id in a segment's header."""
    if len(start) < _HEADER.size:
        raise JournalDamagedError(f"{path} is cut within its header")
    magic, version, boot, crc = _HEADER.unpack(start)
    if magic != _MAGIC or version != FORMAT:
        raise JournalError(
            f"{path} is not a log segment of format {FORMAT}: written by another version of "
            "flowgentic_actors, or not by it at all"
        )
    if crc != zlib.crc32(start[:-4]):
        raise JournalDamagedError(f"{path}: its header does not match its checksum")
    return bytes(boot)


@dataclass(eq=False)
class Segment:
    """One file of the log, open.

    Attributes:
        disk: File operations.
        path: The file.
        fd: Its descriptor.
        first: LSN of its first entry.
        end: LSN after its last entry.
        sealed: Whether it is complete.
        boot: What told the start of the machine in which it was begun from others.
        capacity: Bytes of the file that are allocated.
        trimmed: Whether the file of a complete one is cut to its length.
    """

    disk: Disk
    path: Path
    fd: int
    first: int
    end: int
    sealed: bool
    boot: bytes
    capacity: int = 0
    trimmed: bool = False

    @classmethod
    def open(cls, disk: Disk, path: Path) -> Self:
        """Open a segment; `entries` reads its content.

        Raises:
            JournalDamagedError: If its header is not what was written.
            JournalError: If it was written by another version.
        """
        fd = disk.open(path)
        try:
            boot = _boot_of(path, disk.read(fd, _HEADER.size, 0))
        except BaseException:
            disk.close(fd)
            raise
        first = int(path.stem, 16)
        sealed = path.suffix == SEALED
        return cls(disk, path, fd, first, first, sealed=sealed, boot=boot, trimmed=sealed)

    @classmethod
    def open_spare(cls, disk: Disk, path: Path) -> Self | None:
        """Open a file that may have been written to before it got its name, None if it was not.

        Raises:
            JournalDamagedError: If it was, and its header is not what was written.
            JournalError: If it was written by another version.
        """
        segment = cls(disk, path, disk.open(path), 0, 0, sealed=False, boot=b"")
        try:
            if segment.bytes_after_end():
                segment.boot = _boot_of(path, disk.read(segment.fd, _HEADER.size, 0))
                return segment
        except BaseException:
            segment.close()
            raise
        segment.close()
        return None

    def begins_at(self, lsn: int) -> bool:
        """Whether the first entry has a given LSN, which is the segment's first from then on.

        For a file without a segment's name.
        """
        self.first = self.end = lsn
        try:
            self.read(lsn)
        except JournalDamagedError:
            return False
        return True

    def settle(self, *, synced: bool) -> None:
        """Give the file the current length and name of its segment. Blocks.

        Args:
            synced: Whether a complete one may be named so: its content is on the medium, or need
                not be.
        """
        if self.path.suffix == SPARE:
            self._rename(f"{self.first:016x}{ACTIVE}")
        if self.sealed and not self.trimmed:
            self.disk.truncate(self.fd, self.offset(self.end))
            self.trimmed = True
        if self.trimmed and synced and self.path.suffix != SEALED:
            self._rename(f"{self.first:016x}{SEALED}")

    def find_file(self, names: Collection[str]) -> None:
        """Find the file's name again, after an interrupted rename in `settle`.

        Args:
            names: The files in its folder.
        """
        for suffix in (ACTIVE, SEALED):
            name = f"{self.first:016x}{suffix}"
            if self.path.name not in names and name in names:
                self.path = self.path.with_name(name)

    def _rename(self, name: str) -> None:
        path = self.path.with_name(name)
        self.disk.rename(self.path, path)
        self.path = path

    def close(self) -> None:
        """Close the file."""
        self.disk.close(self.fd)

    def offset(self, lsn: int) -> int:
        """The offset of an LSN in the file."""
        return DATA + lsn - self.first

    def room(self) -> int:
        """The bytes of entries that still fit into what is allocated."""
        return self.capacity - self.offset(self.end)

    def damage(self, lsn: int) -> JournalDamagedError:
        """The error of a damaged entry at an LSN."""
        return JournalDamagedError(
            f"{self.path}: the entry at byte {self.offset(lsn)} is not what was written; the file "
            "was changed or the disk is failing. Restore the folder from a copy"
        )

    # ------------------------------------------------------------------ reading

    def entries(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield (LSN, payload) and set the end; None, last, for bytes that are not an entry."""
        # Recovery is as fast as this loop: it parses whole blocks, without a call for each field.
        size = self.disk.size(self.fd)
        position, start, block = DATA, DATA, b""
        while position < size:
            at = position - start
            end = at + _HEAD.size
            if end <= len(block):
                length, crc, head_crc = _HEAD.unpack_from(block, at)
                end += length + 1
            if end > len(block):
                wanted = min(max(end - at, _SCAN), size - position)
                if wanted > len(block) - at:
                    block, start = self.disk.read(self.fd, wanted, position), position
                    if wanted >= ENTRY_OVERHEAD and len(block) == wanted:
                        continue
                yield self.end, None  # it would pass the end of the file
                return
            lsn = self.end
            payload = block[at + _HEAD.size : end - 1]
            good = head_crc == _head_checksum(lsn, length, crc) and block[end - 1] == _END[0]
            if not good or checksum(lsn, payload) != crc:
                yield lsn, None
                return
            self.end = lsn + end - at
            position += end - at
            yield lsn, payload

    def read(self, lsn: int) -> bytes:
        """Read the payload of one entry.

        Raises:
            JournalDamagedError: If it is not what was written.
        """
        block = self.disk.read(self.fd, _READ, self.offset(lsn))
        if len(block) >= _HEAD.size:
            length, crc, head_crc = _HEAD.unpack_from(block)
            if head_crc == _head_checksum(lsn, length, crc):
                missing = _HEAD.size + length - len(block)
                if missing > 0:
                    block += self.disk.read(self.fd, missing, self.offset(lsn) + len(block))
                payload = block[_HEAD.size : _HEAD.size + length]
                if checksum(lsn, payload) == crc:
                    return payload
        raise self.damage(lsn)

    def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int]:
        """Read some entries from an LSN on, at least one, with the LSN after them.

        Raises:
            JournalDamagedError: If one is not what was written.
        """
        end = self.end  # what is appended from now on comes later
        block = self.disk.read(self.fd, min(most, end - lsn), self.offset(lsn))
        found: list[tuple[int, bytes]] = []
        at = 0
        while at + ENTRY_OVERHEAD <= len(block):
            length, crc, head_crc = _HEAD.unpack_from(block, at)
            here = lsn + at
            if head_crc != _head_checksum(here, length, crc):
                raise self.damage(here)
            if at + ENTRY_OVERHEAD + length > len(block):
                if found:
                    break
                block = self.disk.read(self.fd, length + ENTRY_OVERHEAD, self.offset(lsn))
            payload = block[at + _HEAD.size : at + _HEAD.size + length]
            if checksum(here, payload) != crc:
                raise self.damage(here)
            found.append((here, payload))
            at += length + ENTRY_OVERHEAD
        return found, lsn + at

    # ------------------------------------------------------------------ torn tails

    def check_torn(self) -> None:
        """Check that the bytes at the end are a torn tail: what an interrupted append leaves.

        That is zeros from the cut on: from the trailing byte at the latest, and from the end of
        the head when the head itself is not good.

        Raises:
            JournalDamagedError: If it is not.
        """
        size, position = self.disk.size(self.fd), self.offset(self.end)
        zeros = position + _HEAD.size
        head = BlockReader(self.disk, self.fd).read(_HEAD.size, position)
        if len(head) == _HEAD.size:
            length, crc, head_crc = _HEAD.unpack(head)
            if head_crc == _head_checksum(self.end, length, crc):
                zeros += length
                if zeros >= size:
                    # It is allocated before it is written to: no entry passes its end.
                    raise self.damage(self.end)
        for start in range(zeros, size, _SCAN):
            block = self.disk.read(self.fd, min(_SCAN, size - start), start)
            if block.strip(b"\0"):
                raise self.damage(self.end)

    def bytes_after_end(self) -> int:
        """The bytes after the last good entry, without the zeros that follow them."""
        size, position = self.disk.size(self.fd), self.offset(self.end)
        used = position
        for start in range(position, size, _SCAN):
            block = self.disk.read(self.fd, min(_SCAN, size - start), start).rstrip(b"\0")
            if block:
                used = start + len(block)
        return used - position
