"""A read-only view of a shard's folder at one moment."""

from __future__ import annotations

import errno
import os
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flowgentic_actors.errors import JournalError
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.private_files import open_private

_JOURNAL: Final = (".seg", ".sealed", ".spare", ".set", ".end")
_ATTEMPTS: Final = 200
_PAUSE: Final = 0.01
_NOWHERE: Final = -1


class ReadOnlyDisk(RealDisk):
    """A `flowgentic_actors.storage.disk.Disk` that leaves changes of files undone.

    Every file of the journal is opened at once, so all later reading sees the same files, whatever
    a live actor or its compaction renames and removes meanwhile. A log that is recovered through a
    view yields what it would yield on the folder itself.

    Args:
        folder: The shard's folder.

    Raises:
        JournalError: If the folder changes faster than it can be opened.
        OSError: If it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, int] = {}
        for _ in range(_ATTEMPTS):
            if self._open_all(folder):
                return
            time.sleep(_PAUSE)
        raise JournalError(f"the files in {folder} change faster than they can be opened")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(self.size(fd) for fd in self._files.values())

    def release(self) -> None:
        """Close every file."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def _open_all(self, folder: Path) -> bool:
        try:
            for name in super().names(folder):
                if name.endswith(_JOURNAL):
                    self._files[name] = _open(folder / name)
        except FileNotFoundError:  # renamed or removed since it was listed
            self.release()
            if not folder.is_dir():
                raise
            return False
        except BaseException:
            self.release()
            raise
        return True

    # ------------------------------------------------------------------ Disk

    def create(self, path: Path, size: int) -> int:  # noqa: ARG002
        """Return a descriptor for a file that is not made."""
        return _NOWHERE

    def open(self, path: Path) -> int:
        """Return the descriptor that is open already."""
        return self._files[path.name]

    def close(self, fd: int) -> None:
        """Leave the file open: there may be another pass."""

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Do nothing: the disk is read-only."""

    def allocate(self, fd: int, size: int) -> None:
        """Do nothing: the disk is read-only."""

    def truncate(self, fd: int, size: int) -> None:
        """Do nothing: the disk is read-only."""

    def sync(self, fd: int) -> None:
        """Do nothing: the disk is read-only."""

    def sync_folder(self, folder: Path) -> None:
        """Do nothing: the disk is read-only."""

    def rename(self, source: Path, target: Path) -> None:
        """Do nothing: the disk is read-only."""

    def unlink(self, path: Path) -> None:
        """Do nothing: the disk is read-only."""

    def names(self, folder: Path) -> list[str]:  # noqa: ARG002 - it is the view's one folder
        """List the names as they were at that moment."""
        return sorted(self._files)


def _open(path: Path) -> int:
    try:
        return open_private(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # the soft limit is often 1,024
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return open_private(path, os.O_RDONLY)
