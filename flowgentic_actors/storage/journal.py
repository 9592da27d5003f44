"""The journal of a shard: an append-only file of checked entries.

    header   b"FGAJ", format version
    entry    length, CRC-32 of the payload, CRC-32 of these two, payload

A process that dies while it appends leaves at most one entry cut short at the end of the file;
`replay` cuts it off. An entry that is whole and does not match its CRC was changed after it was
written: that is damage, and it is refused rather than served. The head has a CRC of its own, or a
changed length would make all that follows look like a torn tail.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import JournalDamagedError, JournalError, JournalLockedError

_FORMAT: Final = 1
_HEADER = struct.Struct("!4sI")
_ENTRY = struct.Struct("!III")
_MAGIC: Final = b"FGAJ"
_READ = 1 << 20

FILE_NAME: Final = "journal.fga"
LOCK_NAME: Final = "journal.lock"


class Journal:
    """One shard's journal, locked by the process that has it open.

    Call `replay` to its end before the first `append`.

    Args:
        folder: The shard's folder; made with mode 0700 when it is not there.

    Raises:
        JournalLockedError: If another process has it open.
        JournalError: If the file is not a journal of a format that this version reads.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise JournalLockedError(
                f"the journal in {folder} is open in another process; a shard has one actor"
            ) from None
        self._file = -1
        self._end = 0
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
            self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes in the journal."""
        return self._end

    def replay(self) -> Iterator[bytes]:
        """Yield every entry's payload in order, and cut off what an interrupted append left.

        Raises:
            JournalDamagedError: If an entry is not what was written.
        """
        size = os.fstat(self._file).st_size
        position = _HEADER.size
        with os.fdopen(os.dup(self._file), "rb", buffering=_READ) as reader:
            reader.seek(position)
            while head := reader.read(_ENTRY.size):
                if len(head) < _ENTRY.size:
                    break
                length, crc, head_crc = _ENTRY.unpack(head)
                if zlib.crc32(head[:8]) != head_crc:
                    raise self._damage(position)
                end = position + _ENTRY.size + length
                if end > size:
                    break
                payload = reader.read(length)
                if zlib.crc32(payload) != crc:
                    raise self._damage(position)
                yield payload
                position = end
        if position < size:
            os.ftruncate(self._file, position)
        self._end = position

    def append(self, payloads: Sequence[bytes]) -> None:
        """Append entries; when this returns, they survive the death of this process.

        Raises:
            JournalError: If they could not be written. Nothing of them is in the journal then.
        """
        chunks: list[bytes] = []
        for payload in payloads:
            head = struct.pack("!II", len(payload), zlib.crc32(payload))
            chunks += (head, struct.pack("!I", zlib.crc32(head)), payload)
        data = b"".join(chunks)
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            self._take_back(error)
        self._end += len(data)

    def close(self) -> None:
        """Close the file and let go of the lock; once, as their numbers are given out again."""
        descriptors = (self._file, self._lock)
        self._file = self._lock = -1
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _begin(self) -> None:
        head = os.pread(self._file, _HEADER.size, 0)
        if len(head) < _HEADER.size:
            os.ftruncate(self._file, 0)  # never begun, or torn while its header was written
            os.write(self._file, _HEADER.pack(_MAGIC, _FORMAT))
        elif head != _HEADER.pack(_MAGIC, _FORMAT):
            raise JournalError(
                f"{self._path} is not a journal of format {_FORMAT}: written by another version of "
                "flowgentic_actors, or not by it at all"
            )
        self._end = os.fstat(self._file).st_size  # until `replay` has looked closer

    def _damage(self, position: int) -> JournalDamagedError:
        return JournalDamagedError(
            f"{self._path}: the entry at byte {position} does not match its checksum; the file was "
            "changed or the disk is failing. Restore it from a copy"
        )

    def _take_back(self, error: OSError) -> None:
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            # What is in the file now is unknown, so is what a restart will find: answer nobody.
            os._exit(EXIT_JOURNAL)
        raise JournalError(
            f"cannot append to {self._path}: {error}. Free space there or set scratch= to another "
            "folder"
        ) from error


EXIT_JOURNAL: Final = 74
"""Exit code of a process that could neither append to its journal nor take the attempt back."""
