"""Compacted sets: the live entries of a log up to some LSN, in one file.

    header   magic, format, LSN up to which it replaces the log
    entry    LSN, length, CRC-32 of LSN and payload, payload      (LSNs ascending)
    index    LSN and position of the first entry of each stretch of the file
    footer   magic, position of the index, CRC-32 of everything before

A set is written under another name, synced, and renamed; so a file with a set's name is whole, or
was damaged since. `open_newest` checks every byte before it trusts one, and falls back to the set
before.
"""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.storage.disk import BlockReader, Disk
from flowgentic_actors.storage.segment import checksum

SUFFIX: Final = ".set"
UNFINISHED: Final = ".new"

_FORMAT: Final = 2
_HEADER = struct.Struct("!4sIQ")
_ENTRY = struct.Struct("!QII")
_FOOTER = struct.Struct("!4sQI")
_TAIL = struct.Struct("!4sQ")  # the footer without its CRC
_INDEXED: Final = 32 << 10  # bytes of entries between two that are in the index
_MAGIC: Final = b"FGAC"
_FOOTER_MAGIC: Final = b"FGAE"
_BLOCK: Final = 1 << 20

logger = logging.getLogger(__name__)


class CompactedSet:
    """A complete set, open for reading.

    Attributes:
        path: The file.
        end: LSN up to which it replaces the log.
        bytes: Size of the file.
    """

    def __init__(self, disk: Disk, path: Path, fd: int, *, end: int, index_at: int) -> None:
        self._disk = disk
        self._fd = fd
        self._index_at = index_at
        self.path = path
        self.end = end
        self.bytes = disk.size(fd)
        numbers = array("Q")
        numbers.frombytes(disk.read(fd, self.bytes - _FOOTER.size - index_at, index_at))
        if sys.byteorder == "little":
            numbers.byteswap()
        self._lsns, self._positions = numbers[::2], numbers[1::2]

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over all entries as (LSN, payload), in order of LSN."""
        reader = BlockReader(self._disk, self._fd)
        position = _HEADER.size
        while position < self._index_at:
            lsn, length, _ = _ENTRY.unpack(reader.read(_ENTRY.size, position))
            yield lsn, reader.read(length, position + _ENTRY.size)
            position += _ENTRY.size + length

    def read(self, lsn: int) -> bytes | None:
        """Read the payload of one entry, None when the set does not have it.

        Raises:
            JournalDamagedError: If it is not what was written.
        """
        nearest = bisect_right(self._lsns, lsn) - 1
        if nearest < 0:
            return None
        position = self._positions[nearest]
        last = nearest + 1 == len(self._positions)
        end = self._index_at if last else self._positions[nearest + 1]
        block = self._disk.read(self._fd, end - position, position)
        at = 0
        while at + _ENTRY.size <= len(block):
            found, length, crc = _ENTRY.unpack_from(block, at)
            at += _ENTRY.size
            if found == lsn:
                payload = block[at : at + length]
                if checksum(lsn, payload) != crc:
                    break
                return payload
            if found > lsn:
                return None
            at += length
        else:
            return None
        raise self._damage(lsn)

    def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int]:
        """Read some entries from an LSN on; returns them and the LSN to continue from.

        Args:
            lsn: Any LSN below the set's end.
            most: Bytes to read, about.

        Raises:
            JournalDamagedError: If one is not what was written.
        """
        nearest = bisect_right(self._lsns, lsn) - 1
        position = self._positions[nearest] if nearest >= 0 else _HEADER.size
        reader = BlockReader(self._disk, self._fd)
        found: list[tuple[int, bytes]] = []
        size = 0
        while position < self._index_at:
            here, length, crc = _ENTRY.unpack(reader.read(_ENTRY.size, position))
            if here >= self.end:  # not an entry of the log
                break
            if here >= lsn:
                if size >= most:
                    return found, here
                payload = reader.read(length, position + _ENTRY.size)
                if checksum(here, payload) != crc:
                    raise self._damage(here)
                found.append((here, payload))
                size += length
            position += _ENTRY.size + length
        return found, self.end

    def _damage(self, lsn: int) -> JournalDamagedError:
        return JournalDamagedError(
            f"{self.path}: the entry {lsn} is not what was written; the file was changed or the "
            "disk is failing. Restore the folder from a copy"
        )

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._fd)


def write_set(disk: Disk, folder: Path, end: int, entries: Iterable[tuple[int, bytes]]) -> Path:
    """Write a set that replaces the log up to `end`.

    Args:
        disk: File operations.
        folder: The shard's folder.
        end: LSN after the last entry that was considered.
        entries: (LSN, payload) of what is alive, LSNs ascending.

    Returns:
        Its file, synced and under its final name.
    """
    path = folder / f"{end:016x}{SUFFIX}"
    unfinished = path.with_suffix(UNFINISHED)
    if unfinished.name in disk.names(folder):
        disk.unlink(unfinished)
    fd = disk.create(unfinished, 0)
    try:
        crc = position = 0
        block = [_HEADER.pack(_MAGIC, _FORMAT, end)]
        size = _HEADER.size
        index, indexed = array("Q"), -_INDEXED

        def flush() -> None:
            nonlocal crc, position, size
            data = b"".join(block)
            disk.write(fd, data, position)
            crc, position, size = zlib.crc32(data, crc), position + len(data), 0
            block.clear()

        for lsn, payload in entries:
            at = position + size
            if at - indexed >= _INDEXED or len(payload) >= _INDEXED:
                index.extend((lsn, at))
                indexed = at
            block += (_ENTRY.pack(lsn, len(payload), checksum(lsn, payload)), payload)
            size += _ENTRY.size + len(payload)
            if size >= _BLOCK:
                flush()
        flush()
        index_at = position
        if sys.byteorder == "little":
            index.byteswap()
        block.append(index.tobytes())
        flush()
        crc = zlib.crc32(_TAIL.pack(_FOOTER_MAGIC, index_at), crc)
        disk.write(fd, _FOOTER.pack(_FOOTER_MAGIC, index_at, crc), position)
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(unfinished, path)
    disk.sync_folder(folder)
    return path


def open_newest(disk: Disk, folder: Path) -> CompactedSet | None:
    """Open the newest complete set, or None when there is none."""
    for name in reversed(set_names(disk, folder)):
        found = open_set(disk, folder / name)
        if found is not None:
            return found
        logger.error("%s is damaged: falling back to the set before it", folder / name)
    return None


def set_names(disk: Disk, folder: Path) -> list[str]:
    """List the names of a folder's sets, oldest first."""
    return [name for name in disk.names(folder) if name.endswith(SUFFIX)]


def open_set(disk: Disk, path: Path) -> CompactedSet | None:
    """Open a set after checking every byte of it; None when it is damaged."""
    fd = disk.open(path)
    size = disk.size(fd)
    if size >= _HEADER.size + _FOOTER.size:
        magic, version, end = _HEADER.unpack(disk.read(fd, _HEADER.size, 0))
        last = size - _FOOTER.size
        footer_magic, index_at, told = _FOOTER.unpack(disk.read(fd, _FOOTER.size, last))
        crc = 0
        for start in range(0, last, _BLOCK):
            crc = zlib.crc32(disk.read(fd, min(_BLOCK, last - start), start), crc)
        crc = zlib.crc32(_TAIL.pack(footer_magic, index_at), crc)
        good = (magic, version, footer_magic) == (_MAGIC, _FORMAT, _FOOTER_MAGIC)
        if good and crc == told and path.stem == f"{end:016x}":
            return CompactedSet(disk, path, fd, end=end, index_at=index_at)
    disk.close(fd)
    return None
