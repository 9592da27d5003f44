"""Figures of the kernel about this machine and its processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_SHM: Final = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_SYNCS: Final = 20


def cpus() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def sync_time(folder: Path) -> float:
    """The median seconds of writing 4 KiB to a file and syncing it. Blocks."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_SYNCS):
            start = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return sorted(times)[_SYNCS // 2]


def written_by(pid: int) -> int:
    """The bytes that a process has written so far, without sockets. Blocks."""
    for line in (_PROC / str(pid) / "io").read_text().splitlines():
        name, _, count = line.partition(": ")
        if name == "wchar":
            return int(count)
    raise OSError(f"/proc/{pid}/io tells no wchar")


def resident(pids: Iterable[int]) -> int:
    """The resident bytes of processes, without mappings of `/dev/shm`. Blocks.

    `shared_memory` counts that once.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it is gone
            for line in (_PROC / str(pid) / "status").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("RssAnon", "RssFile"):
                    total += int(rest.split()[0]) * 1024
    return total


def shared_memory() -> int:
    """The bytes in use in `/dev/shm`. Blocks."""
    try:
        found = os.statvfs(_SHM)
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def processor_time(pids: Iterable[int]) -> float:
    """The seconds of processor time that processes have used so far. Blocks."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it is gone
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
