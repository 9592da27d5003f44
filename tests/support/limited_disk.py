"""A disk in this process that is soon full."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from flowgentic_actors.storage.disk import RealDisk

SEGMENT = 64 << 10


class SmallDisk(RealDisk):
    """A disk of a few segments."""

    room = 4 * SEGMENT

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}

    def create(self, path: Path, size: int) -> int:
        self._check(path.parent, size)
        return super().create(path, size)

    def allocate(self, fd: int, size: int) -> None:
        super().allocate(fd, size)

    def _check(self, folder: Path, size: int) -> None:
        used = 0
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another thread renamed or removed it
                used += path.stat().st_size
        if used + size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
