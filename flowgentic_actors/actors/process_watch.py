"""Watching processes that are not children, by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

_POLL = 0.05


class ProcessWatch:
    """Watches one process by pidfd, which cannot be fooled by a reused pid.

    Make it while the process is known to live (an open connection from it). Where the platform
    has no pidfd, the pid is polled.

    Args:
        pid: The process.
        reap: Takes its exit code if it is a child of this process: until then it has a pid.
    """

    def __init__(self, pid: int, reap: Callable[[], object] = lambda: None) -> None:
        self.pid = pid
        self._reap = reap
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.gone.set()
        except (AttributeError, OSError):
            self._poll()
        else:
            self._loop.add_reader(self._fd, self._ended)

    def kill(self) -> None:
        """Send SIGKILL, unless the process is gone already."""
        if self.gone.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            if self._fd is not None:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _ended(self) -> None:
        self.gone.set()
        self.close()

    def _poll(self) -> None:
        self._reap()
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):  # PermissionError: another user has that pid
            self.gone.set()
        else:
            self._timer = self._loop.call_later(_POLL, self._poll)
