"""The file operations that storage is built on: a test can fail or crash at each of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from flowgentic_actors.storage.private_files import open_private


class Disk(Protocol):
    """File operations; every one of them may raise `OSError`."""

    def create(self, path: Path, size: int) -> int:
        """Make a new file of `size` zero bytes, allocated; return its descriptor."""

    def open(self, path: Path) -> int:
        """Open a file for reading and writing."""

    def close(self, fd: int) -> None:
        """Close a descriptor."""

    def size(self, fd: int) -> int:
        """The size of a file in bytes."""

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """Read up to `count` bytes."""

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of `data`."""

    def allocate(self, fd: int, size: int) -> None:
        """Extend the file to `size` bytes that can be written without asking for space."""

    def truncate(self, fd: int, size: int) -> None:
        """Truncate a file."""

    def sync(self, fd: int) -> None:
        """Wait until the file's data is on the medium."""

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder are on the medium."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, replacing the target in one step."""

    def unlink(self, path: Path) -> None:
        """Remove a file."""

    def names(self, folder: Path) -> list[str]:
        """List the names in a folder, sorted."""


class BlockReader:
    """Reads a file by position, in large blocks: for scans.

    Args:
        disk: File operations.
        fd: The file.
    """

    BLOCK = 1 << 20

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk = disk
        self._fd = fd
        self._start = 0
        self._block = b""

    def read(self, count: int, offset: int) -> bytes:
        """Read up to `count` bytes."""
        start = offset - self._start
        if start < 0 or start + count > len(self._block):
            self._block = self._disk.read(self._fd, max(count, self.BLOCK), offset)
            self._start, start = offset, 0
        return self._block[start : start + count]


class RealDisk:
    """The operating system's files."""

    def create(self, path: Path, size: int) -> int:
        """See `Disk.create`."""
        fd = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.allocate(fd, size)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):  # the first error is the one to tell
                path.unlink()
            raise
        return fd

    def open(self, path: Path) -> int:
        """See `Disk.open`."""
        return open_private(path, os.O_RDWR)

    def close(self, fd: int) -> None:
        """See `Disk.close`."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """See `Disk.size`."""
        return os.fstat(fd).st_size

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """See `Disk.read`."""
        data = os.pread(fd, count, offset)
        while data and len(data) < count:  # a read of more than 2 GiB comes in parts
            more = os.pread(fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """See `Disk.write`."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def allocate(self, fd: int, size: int) -> None:
        """See `Disk.allocate`."""
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """See `Disk.truncate`."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """See `Disk.sync`."""
        os.fsync(fd)

    def sync_folder(self, folder: Path) -> None:
        """See `Disk.sync_folder`."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """See `Disk.rename`."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """See `Disk.unlink`."""
        path.unlink()

    def names(self, folder: Path) -> list[str]:
        """See `Disk.names`."""
        return sorted(path.name for path in folder.iterdir())
