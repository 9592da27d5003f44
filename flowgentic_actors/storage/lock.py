"""A file lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from flowgentic_actors.storage.private_files import open_private


class FileLock:
    """An exclusive advisory lock; it belongs to this object, not to the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; False when it is held elsewhere and `wait` is not set."""
        descriptor = open_private(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # a file system without locks
            os.close(descriptor)
            raise
        self._fd = descriptor
        return True

    def release(self) -> None:
        """Release the lock, if it is held here."""
        if self._fd is not None:
            # Said, not only closed: a process that is being started has a copy until it runs.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close a forked child's copy; the parent keeps the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
