"""The sealed end of a log, noted beside its segments, so that a missing end is noticed.

    file   two slots of 512 bytes: magic, format, LSN, CRC-32; from byte 64 of a slot on whose log
           it is: the memory's identity, the shard's number, CRC-32; the rest is zeros

A segment that was shortened or removed leaves a gap before the next one; behind the last one
there is none. The note is written in place, so it takes no room on a disk that is full. Both slots
say the same: one that was half written when the machine went down, or is damaged, is not missed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.private_files import read_private

NAME: Final = "log.end"

_UNFINISHED: Final = f"{NAME}.new"
_MAGIC: Final = b"FGAL"
_FORMAT: Final = 1
_NOTE = struct.Struct("!4sIQI")
_SLOT: Final = 512  # what a disk writes as a whole
_SLOTS: Final = (0, _SLOT)
_OWNER = struct.Struct("!16sII")
_OWNER_AT: Final = 64  # in a slot; earlier versions leave it as it is


class LogOwner(NamedTuple):
    """The owner of a log.

    Attributes:
        memory: The memory's identity, 16 bytes.
        shard: Number of the shard in it.
    """

    memory: bytes
    shard: int


def read_end(disk: Disk, folder: Path) -> int | None:
    """Read the LSN up to which the log in a folder was sealed; None when none was noted.

    Raises:
        JournalDamagedError: If the note is not what was written.
        JournalError: If it was written by another version.
    """
    path = folder / NAME
    if NAME not in disk.names(folder):
        return None
    fd = disk.open(path)
    try:
        slots = [disk.read(fd, _NOTE.size, at) for at in _SLOTS]
    finally:
        disk.close(fd)
    ends = [end for slot in slots if (end := _end_of(path, slot)) is not None]
    if not ends:
        raise JournalDamagedError(
            f"{path} is not what was written; the file was changed or the disk is failing. Restore "
            "the folder from a copy"
        )
    return max(ends)


def write_end(disk: Disk, folder: Path, end: int, *, synced: bool = True) -> None:
    """Write the LSN up to which the log in a folder is sealed. Blocks.

    Args:
        disk: File operations.
        folder: The shard's folder.
        end: The LSN.
        synced: Whether to wait until the note is on the medium; a new one always is.

    Raises:
        OSError: If that is not possible; the note before, if there was one, still counts.
    """
    names = disk.names(folder)
    if NAME in names:
        fd = disk.open(folder / NAME)
        try:
            _write(disk, fd, end)
            if synced:
                disk.sync(fd)
        finally:
            disk.close(fd)
        return
    unfinished = folder / _UNFINISHED
    if _UNFINISHED in names:
        disk.unlink(unfinished)
    fd = disk.create(unfinished, 2 * _SLOT)
    try:
        _write(disk, fd, end)
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(unfinished, folder / NAME)
    disk.sync_folder(folder)


def read_owner(folder: Path) -> LogOwner | None:
    """Read the owner of the log in a folder; None where none was noted, or is readable."""
    data = read_private(folder / NAME)
    for at in _SLOTS:
        note = data[at + _OWNER_AT : at + _OWNER_AT + _OWNER.size]
        if len(note) == _OWNER.size and any(note):
            memory, shard, crc = _OWNER.unpack(note)
            if crc == zlib.crc32(note[:-4]):
                return LogOwner(memory, int(shard))
    return None


def write_owner(disk: Disk, folder: Path, owner: LogOwner) -> None:
    """Write the owner of the log in a folder, where its end is noted already. Blocks.

    Raises:
        OSError: If that is not possible.
    """
    head = _OWNER.pack(*owner, 0)[:-4]
    fd = disk.open(folder / NAME)
    try:
        for at in _SLOTS:
            disk.write(fd, head + struct.pack("!I", zlib.crc32(head)), at + _OWNER_AT)
        disk.sync(fd)
    finally:
        disk.close(fd)


def _write(disk: Disk, fd: int, end: int) -> None:
    head = _NOTE.pack(_MAGIC, _FORMAT, end, 0)[:-4]
    note = head + struct.pack("!I", zlib.crc32(head))
    for at in _SLOTS:  # one after the other: one of them is whole at any time
        disk.write(fd, note, at)


def _end_of(path: Path, slot: bytes) -> int | None:
    """The LSN in a slot of the file, None when the slot is incomplete."""
    if len(slot) < _NOTE.size:
        return None
    magic, version, end, crc = _NOTE.unpack(slot)
    if magic != _MAGIC or crc != zlib.crc32(slot[:-4]):
        return None
    if version != _FORMAT:
        raise JournalError(
            f"{path} is of format {version}, not {_FORMAT}: it was written by another version of "
            "flowgentic_actors. Use that one, or a newer one"
        )
    return int(end)
