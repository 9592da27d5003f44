"""The processes and shared memory of a DDict, found and ended without asking Dragon.

A DDict's processes are started in a folder of their own, which is their working directory for
life. So the kernel says which they are, from their first instruction on, whichever died meanwhile;
no list has to be kept, and a pid that was reused is not mistaken. The folder's name is in the names
of the DDict's shared memory.

Everything here blocks for a while; call it on a thread.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from flowgentic_actors.actors.process_group import all_pids
from flowgentic_actors.storage.private_files import make_folders, open_private

logger = logging.getLogger(__name__)

SHM: Final = Path("/dev/shm")  # noqa: S108 - where Dragon's pools are
NAME_LENGTH: Final = 10
"""Dragon uses that many characters of a DDict's name for its shared memory."""

_PREFIX: Final = "fg"
_SINGLE = 2  # an orchestrator and a group manager, then managers
_NOTICE = 0.2  # seconds that Dragon has to notice the end of a process before that of the next
_PATIENCE = 2.0  # seconds that Dragon has to remove a dead process's shared memory


def make_folder(parent: Path) -> Path:
    """Make the folder of a new DDict; its name is the DDict's."""
    name = _PREFIX + os.urandom(NAME_LENGTH // 2 - 1).hex()
    folder = parent / name
    make_folders(folder)
    return folder


def started_at(pid: int) -> str:
    """The start time of a process in the kernel's ticks; with the pid, it identifies it."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return stat.rpartition(b")")[2].split()[19].decode()


def open_processes(folder: Path) -> list[int]:
    """Open pidfds of all live processes that work in a folder, except this one, oldest first.

    Close them.
    """
    paths = {str(folder.resolve()), f"{folder.resolve()} (deleted)"}
    found = []
    for pid in all_pids():
        # Opened before it is looked at: what it names cannot become another process.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue  # it has ended
        try:
            matches = str(Path(f"/proc/{pid}/cwd").readlink()) in paths and pid != os.getpid()
            age = int(started_at(pid)), pid
        except (OSError, IndexError):  # it has ended, or is another user's
            matches = False
        if matches:
            found.append((age, pidfd))
        else:
            os.close(pidfd)
    return [pidfd for _, pidfd in sorted(found)]


def wake(pidfds: list[int]) -> None:
    """Continue stopped processes, so that none ends while it holds a lock."""
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)


def end_ddict(folder: Path, timeout: float = 10.0) -> bool:
    """End a DDict: its processes, its shared memory and its folder.

    Args:
        folder: Its folder.
        timeout: Seconds.

    Returns:
        Whether everything of it is gone.
    """
    end = time.monotonic() + timeout
    # Before and after: none can be started in a folder that is gone, and while it is there
    # another process can finish this.
    ended = _end_processes(folder, end)
    shutil.rmtree(folder, ignore_errors=True)
    if not (_end_processes(folder, end) and ended):
        make_folders(folder)
        return False
    patience = min(end, time.monotonic() + _PATIENCE)
    while (files := _pool_files(folder.name)) and time.monotonic() < patience:
        time.sleep(0.02)
    for file in files:  # the Dragon service that would have removed them is dead, too
        file.unlink(missing_ok=True)
    return True


def end_leftovers(folder: Path, timeout: float = 10.0) -> int:
    """End every DDict that was made below a folder and still exists, by any process.

    For the next incarnation of an actor before it makes its own, and for the host at the end.

    Args:
        folder: The folder that the `DDictShard`s were given.
        timeout: Seconds for each.

    Returns:
        How many there were.
    """
    found = [f for f in folder.glob(f"{_PREFIX}*") if f.is_dir()] if folder.is_dir() else []
    for left in found:
        if not end_ddict(left, timeout):
            logger.error("the processes of the DDict in %s do not end", left)
    return len(found)


def open_pools(name: str) -> list[int]:
    """Open the shared memory that holds a DDict's values; the caller closes the descriptors."""
    found = []
    for file in _pool_files(name):
        if not file.name.endswith("D"):
            continue  # the heap's own records
        with contextlib.suppress(FileNotFoundError):
            found.append(open_private(file, os.O_RDWR))
    return found


def empty(pools: list[int]) -> None:
    """Release the memory of pools that `end_ddict` has ended.

    A client may keep a pool mapped, for ever where its thread hangs in Dragon: the name is gone
    then and the memory is not. A pool with holes in place of its pages has none.
    """
    for pool in pools:
        size = os.fstat(pool).st_size
        if size:
            with contextlib.suppress(OSError), mmap.mmap(pool, size) as pages:
                pages.madvise(mmap.MADV_REMOVE)


def _end_processes(folder: Path, end: float) -> bool:
    # Orchestrator, group manager, managers: that is how old they are. The youngest go first.
    # Dragon tells a group manager about the end of its managers, and the whole runtime breaks down
    # when it is not there any more to be told.
    while pidfds := open_processes(folder):
        last = pidfds[_SINGLE:] or pidfds[-1:]
        wake(pidfds)
        time.sleep(_NOTICE)
        try:
            for pidfd in last:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            for pidfd in last:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(max(0.0, end - time.monotonic()) * 1000)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        if time.monotonic() > end:
            return False
    return True


def _pool_files(name: str) -> list[Path]:
    """The pool files of this user: others could make files of the same names."""
    found = []
    for file in SHM.glob(f"*{name}_*"):
        with contextlib.suppress(FileNotFoundError):
            if file.lstat().st_uid == os.geteuid():
                found.append(file)
    return found
