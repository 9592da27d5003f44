"""The record of a supervisor's admitted processes, for the next supervisor.

One line for each process, there before it may open anything. A process is named by pid and start
time, so a pid that another process has got since is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.storage.private_files import overwrite, read_private

RECORD_FILE: Final = "processes.jsonl"

_POLL = 0.01
_noting = threading.Lock()


class ProcessEntry(msgspec.Struct, frozen=True):
    """The entry of one process.

    Attributes:
        name: Of the actor.
        epoch: Of the incarnation.
        pid: Of the process.
        started: When it was started, in the kernel's ticks; 0 where the kernel does not tell.
    """

    name: str
    epoch: int
    pid: int
    started: int

    def alive(self) -> bool:
        """Whether exactly this process still runs; False for a zombie."""
        return is_alive(self.pid, self.started)


class ProcessRecord:
    """The record of the processes of one supervisor and its predecessors.

    Args:
        folder: The supervisor's private folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD_FILE

    def note(self, name: str, epoch: int, pid: int) -> None:
        """Add a living process. Blocks for a moment."""
        line = msgspec.json.encode(ProcessEntry(name, epoch, pid, started_at(pid)))
        with _noting:
            overwrite(self._path, b"".join(before + b"\n" for before in (*self._lines(), line)))

    def entries(self) -> list[ProcessEntry]:
        """All recorded processes, in order."""
        found = []
        for line in self._lines():
            with contextlib.suppress(msgspec.DecodeError):  # a last line that was cut by a kill
                found.append(msgspec.json.decode(line, type=ProcessEntry))
        return found

    def _lines(self) -> list[bytes]:
        try:
            return read_private(self._path).rstrip(b" ").splitlines()
        except FileNotFoundError:
            return []

    def epochs(self) -> dict[str, int]:
        """The highest epoch of each actor so far."""
        return {entry.name: entry.epoch for entry in self.entries()}


def end_all(entries: Iterable[ProcessEntry], grace: float, timeout: float) -> list[ProcessEntry]:
    """Wait for processes to end by themselves, then kill the rest. Blocks.

    Args:
        entries: The processes.
        grace: Seconds that they get to end by themselves.
        timeout: Seconds from SIGKILL to a confirmed exit.

    Returns:
        Those that are not gone even then.
    """
    left = _wait(list(entries), grace)
    for entry in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    return _wait(left, timeout)


def _wait(entries: list[ProcessEntry], timeout: float) -> list[ProcessEntry]:
    deadline = time.monotonic() + timeout
    while (entries := [entry for entry in entries if entry.alive()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(_POLL)
    return entries


def started_at(pid: int) -> int:
    """The start time of a process in the kernel's ticks; 0 where that is unknown."""
    return _look_at(pid)[0] or 0


def is_alive(pid: int, started: int) -> bool:
    """Whether the process with that start time still runs; False for a zombie."""
    found, dead = _look_at(pid)
    return found == started and not dead


def _look_at(pid: int) -> tuple[int | None, bool]:
    """The start time of a process, None without one, and whether it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]), fields[0] in ("Z", "X")
    except FileNotFoundError:
        pass
    except ProcessLookupError:  # it went while it was read
        return None, True
    if Path("/proc/self/stat").exists():
        return None, True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return None, True
    return 0, False
