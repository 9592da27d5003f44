"""The file of a log's next segment, allocated before its first entry is known."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import NamedTuple

from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.segment import ACTIVE, DATA, SPARE, header


class SegmentFile(NamedTuple):
    """An allocated file without entries."""

    fd: int
    path: Path
    capacity: int


class NextSegment:
    """Allocates the next segment's file, ahead of its need or when it is taken.

    Args:
        disk: File operations.
        folder: Folder of the segments.
        segment_bytes: Size of a segment; a larger batch gets a segment of its own.
        boot: What tells this start of the machine from others.
        durable: Whether a file is synced before it is used.

    Attributes:
        file: The file that is allocated, if one is.
    """

    def __init__(
        self, disk: Disk, folder: Path, segment_bytes: int, boot: bytes, *, durable: bool
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._boot = boot
        self._durable = durable
        self._lock = threading.Lock()  # of the file: taking and preparing may be 2 threads
        self._numbers = itertools.count()
        self._first: int | None = None
        self.file: SegmentFile | None = None

    def begins_at(self, first: int) -> None:
        """Say which LSN the first file begins with, so that it is named at once."""
        self._first = first

    def prepare(self) -> None:
        """Allocate a file if there is none. Blocks; callable from any thread."""
        if self.file is None:
            self.offer(self._create(self._segment_bytes))

    def make(self, size: int, least: int | None = None) -> None:
        """Allocate a file that has room for a batch of `size` bytes; see `SegmentLog.make_room`."""
        self.offer(self.take(size, least))

    def take(self, size: int, least: int | None = None) -> SegmentFile:
        """Take the file, made or extended for a batch of `size` bytes.

        Args:
            size: Bytes.
            least: Size of a file that is new. Default: as all are.
        """
        with self._lock:
            spare, self.file = self.file, None
        if spare is None:
            return self._create(max(least or self._segment_bytes, DATA + size))
        if spare.capacity < DATA + size:
            try:
                self._disk.allocate(spare.fd, DATA + size)
            except BaseException:
                self.offer(spare)
                raise
            spare = spare._replace(capacity=DATA + size)
        return spare

    def offer(self, spare: SegmentFile) -> None:
        """Keep a file for the next `take`, or remove it if there is another one."""
        with self._lock:
            if self.file is None:
                self.file = spare
                return
        self._discard(spare)

    def abandon(self) -> None:
        """Close and remove the file."""
        with self._lock:
            spare, self.file = self.file, None
        if spare is not None:
            self._discard(spare)

    def detach(self) -> None:
        """Close the file and leave it where it is."""
        with self._lock:
            spare, self.file = self.file, None
        if spare is not None:
            self._disk.close(spare.fd)

    def _discard(self, spare: SegmentFile) -> None:
        self._disk.close(spare.fd)
        self._disk.unlink(spare.path)

    def _create(self, size: int) -> SegmentFile:
        path = self._folder / f"{next(self._numbers)}{SPARE}"
        fd = self._disk.create(path, size)
        try:
            self._disk.write(fd, header(self._boot), 0)
            if self._durable:
                self._disk.sync(fd)
            if self._first is not None:  # it is known already what it begins with
                spare, path = path, self._folder / f"{self._first:016x}{ACTIVE}"
                self._disk.rename(spare, path)  # now: no .seg may be without its header
                self._first = None
        except BaseException:
            self._disk.close(fd)
            raise
        return SegmentFile(fd, path, size)
