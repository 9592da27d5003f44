"""Cleanup after a killed Dragon runtime: processes of its group, and shared memory.

Dragon has no command that cleans up after one runtime (`dragon-cleanup` removes everything of the
user), so the owner notes which segments its own runtime has mapped, and removes those. A runtime of
several nodes leaves processes on all of them, when its launcher is killed as well as when a node is
lost, whose launcher then never ends: so each node ends its own part of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.actors.process_group import PROC, all_pids

RUNTIME_VARIABLE: Final = "DRAGON_RT_UID"
"""In the environment of every process of a Dragon runtime, but for its launcher's."""

RUNTIME_FILE: Final = "runtime.id"
"""In a cluster's folder: the value of that variable, of a runtime that was started for it."""

_GONE: Final = 5.0  # from SIGKILL to the end
_POLL: Final = 0.01
_SHM = "/dev/shm/"  # noqa: S108 - looked at, not written to


class SharedMemoryFile(NamedTuple):
    """A file of shared memory, with the inode, as a later one may have the same name."""

    path: str
    inode: int


def shared_memory_of(pids: Iterable[int]) -> set[SharedMemoryFile]:
    """The shared memory that processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it is gone, or another user's
            for line in (PROC / str(pid) / "maps").read_text().splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith(_SHM):
                    found.add(SharedMemoryFile(fields[5], int(fields[4])))
    return found


def remove_unused(segments: Iterable[SharedMemoryFile]) -> None:
    """Remove segments that no process has mapped any more."""
    if left := set(segments):
        _remove(left - shared_memory_of(all_pids()))


def end_runtime(runtime: str) -> None:
    """End the part of a Dragon runtime on this node, except this process. Blocks.

    Args:
        runtime: Value of `RUNTIME_VARIABLE` in it.
    """
    wanted = f"{RUNTIME_VARIABLE}={runtime}".encode()
    segments: set[SharedMemoryFile] = set()
    deadline = time.monotonic() + _GONE
    while time.monotonic() < deadline:
        pids = [pid for pid in all_pids() if pid != os.getpid() and _has(pid, wanted)]
        if not pids:
            break
        segments |= shared_memory_of(pids)
        for pid in pids:
            with contextlib.suppress(OSError):  # it is gone
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)
    segments |= shared_memory_of([os.getpid()])
    _remove(segments - shared_memory_of(pid for pid in all_pids() if pid != os.getpid()))


def _remove(segments: set[SharedMemoryFile]) -> None:
    for path, inode in segments:
        with contextlib.suppress(OSError):  # removed already
            if Path(path).stat().st_ino == inode:
                os.unlink(path)  # noqa: PTH108 - beside its stat


def _has(pid: int, variable: bytes) -> bool:
    """Whether a live process was started with a given environment variable."""
    try:
        environ = (PROC / str(pid) / "environ").read_bytes()  # empty for one that is dead
    except OSError:
        return False
    return variable in environ.split(b"\0")
