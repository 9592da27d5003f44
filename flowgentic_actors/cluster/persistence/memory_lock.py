"""The memory lock: one cluster at a time may have a memory's folder open.

    holder.lock    locked by the host as long as it lives, where the file system has locks
    holder.json    who that is; the host touches it every few seconds

The kernel lets go of a dead holder's lock. Some file systems that nodes share have no locks, or
have them on each node for itself; so a process that finds the lock free looks at the file as well:

- A holder on this machine, since it was started, is dead when its lock is free, or without locks
  when no process has its pid and start time.
- Any other is dead when it did not touch the file for `SILENCE` seconds. The age is the difference
  of two times that the file server gave, so the clocks of the nodes do not matter.

A holder that finds another one's name in the file has been given up for dead, and must end.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.errors import PersistError, PersistHeldError
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.log_recovery import boot_id
from flowgentic_actors.storage.private_files import (
    open_private,
    overwrite,
    read_private,
    write_private,
)

HOLDER_LOCK: Final = "holder.lock"
HOLDER_FILE: Final = "holder.json"

HEARTBEAT: Final = 5.0
"""Seconds between two touches of the holder's file."""

SILENCE: Final = 45.0
"""Seconds without one after which a holder on another machine counts as dead."""

_SETTLE: Final = 1.0  # without locks: time in which two that took a folder at once are told apart
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


class LockOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds a memory's lock.

    Attributes:
        name: Name of the cluster.
        host: Host name.
        pid: Process of the cluster's host.
        started: That process's start time, in the kernel's words.
        boot: Tells this start of that machine from all others.
        pids: The namespace that the pid belongs to.
        job: The scheduler's job, or empty.
        since: When it took hold, seconds since the Unix epoch.
        token: Tells this hold from all others.
        ending: Whether it is about to let go.
    """

    name: str
    host: str
    pid: int
    started: str
    boot: str
    pids: str
    job: str
    since: float
    token: str
    ending: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        job = f", job {self.job}" if self.job else ""
        ending = ", which is ending" if self.ending else ""
        return (
            f"cluster {self.name!r} (host {self.host}, pid {self.pid}{job}, since {since}){ending}"
        )


class MemoryLock:
    """The lock of one memory's folder, as one process takes it.

    Args:
        folder: The folder; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / HOLDER_LOCK)
        self._holder: LockOwner | None = None
        self._locks = False
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise if another cluster holds the folder; changes nothing.

        Raises:
            PersistHeldError: If a live cluster has it open.
        """
        try:
            self._take_lock()
        finally:
            self._lock.release()

    def take(self, name: str, job: str, on_lost: Callable[[], None]) -> None:
        """Take the lock, until `release` or the end of this process.

        Args:
            name: Name of the cluster.
            job: The scheduler's job, or empty.
            on_lost: Called on a thread when another one has taken the folder.

        Raises:
            PersistHeldError: If a live cluster has it open.
        """
        locks = self._locks = self._take_lock()
        self._holder = LockOwner(
            name=name,
            host=os.uname().nodename,
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            boot=_machine(),
            pids=_pid_namespace(),
            job=job,
            since=time.time(),
            token=secrets.token_hex(8),
        )
        try:
            self._write(self._holder)
            if not locks:
                time.sleep(_SETTLE)
                self._expect_own()
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(
            target=self._beat, args=(on_lost,), name="holder", daemon=True
        )
        self._thread.start()

    def announce_end(self) -> None:
        """Note in the lock's file that it is released soon; does not block."""
        if self._holder is not None:
            self._holder = msgspec.structs.replace(self._holder, ending=True)
            self._wake.set()

    def release(self) -> None:
        """Release the lock, if it is held."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(HEARTBEAT)
            self._thread = None
            if self._is_own(read_lock_owner(self._folder)):
                (self._folder / HOLDER_FILE).unlink(missing_ok=True)
        self._lock.release()

    def forget(self) -> None:
        """Close a forked child's copy; the parent keeps the lock."""
        self._ended = True
        self._thread = None
        self._lock.forget()

    def _take_lock(self) -> bool:
        """Take the file lock, if the file system has locks; raises when the folder is held."""
        locks = True
        try:
            if not self._lock.acquire():
                raise _held(self._folder, read_lock_owner(self._folder))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise PersistError(f"cannot open {self._folder}: {error}") from error
            locks = False
        try:
            self._expect_none(locks=locks)
        except BaseException:
            self._lock.release()
            raise
        return locks

    def _expect_none(self, *, locks: bool) -> None:
        holder = read_lock_owner(self._folder)
        if holder is None:
            return
        if holder.boot == _machine() and (locks or holder.pids == _pid_namespace()):
            if not locks and holder.started == _start_time(holder.pid):
                raise _held(self._folder, holder)
            return
        age = _age(self._folder)
        if age < SILENCE:
            raise PersistHeldError(
                f"{_held(self._folder, holder)}. Its last sign of life came {age:.0f} s ago; if it "
                f"is dead, this can be opened in {SILENCE - age:.0f} s",
                dead_in=SILENCE - age,
            )

    def _beat(self, on_lost: Callable[[], None]) -> None:
        told = self._holder
        while True:
            self._wake.wait(HEARTBEAT)
            self._wake.clear()
            if self._ended:
                return
            try:
                self._expect_own()
                if self._holder is not told and self._holder is not None:
                    told = self._holder
                    self._write(told)
                os.utime(self._folder / HOLDER_FILE)
            except PersistHeldError as error:
                logger.critical("given up for dead, and replaced: %s", error)
                on_lost()
                return
            except (OSError, PersistError) as error:
                logger.warning("cannot touch the holder's file in %s: %s", self._folder, error)

    def _write(self, holder: LockOwner) -> None:
        # A name of its own: without locks another one may be writing at the same moment.
        path, encoded = self._folder / HOLDER_FILE, msgspec.json.encode(holder)
        unfinished = self._folder / f"{HOLDER_FILE}.{holder.token}"
        try:
            write_private(unfinished, encoded)
            unfinished.replace(path)
        except OSError as error:
            unfinished.with_name(f"{unfinished.name}.new").unlink(missing_ok=True)
            if error.errno != errno.ENOSPC or not (self._locks and path.exists()):
                raise
            overwrite(path, encoded)  # in the place of one that has died, and is as long

    def _is_own(self, holder: LockOwner | None) -> bool:
        return (
            holder is not None and self._holder is not None and holder.token == self._holder.token
        )

    def _expect_own(self) -> None:
        holder = read_lock_owner(self._folder)
        if holder is not None and not self._is_own(holder):
            raise _held(self._folder, holder)


def read_lock_owner(folder: Path) -> LockOwner | None:
    """Read the last owner of a lock; None when it was released in order, or never held.

    Raises:
        PersistError: If the file cannot be read.
    """
    path = folder / HOLDER_FILE
    try:
        return msgspec.json.decode(read_private(path), type=LockOwner)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PersistError(f"cannot read {path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PersistError(
            f"{path} is damaged: {error}. Remove it if no cluster has this folder open"
        ) from error


def is_held(folder: Path) -> bool:
    """Whether a live cluster seems to hold a folder; nothing is changed or locked.

    Raises:
        PersistError: If the holder's file cannot be read.
    """
    holder = read_lock_owner(folder)
    if holder is None:
        return False
    if holder.boot == _machine() and holder.pids == _pid_namespace():
        return holder.started == _start_time(holder.pid)
    try:
        return time.time() - (folder / HOLDER_FILE).stat().st_mtime < SILENCE
    except OSError:
        return False


def _held(folder: Path, holder: LockOwner | None) -> PersistHeldError:
    by = holder or "another cluster, which is just opening or closing it"
    return PersistHeldError(
        f"{folder} is open in {by}: close that cluster, or use another persist_path=",
        dead_in=0.0 if holder is None or holder.ending else None,
    )


def _age(folder: Path) -> float:
    """Seconds since the lock's file was touched, by the file server's clock."""
    try:
        os.utime(folder / HOLDER_LOCK)
        now = (folder / HOLDER_LOCK).stat().st_mtime
        file = open_private(folder / HOLDER_FILE, os.O_RDONLY)  # this asks the server again
        try:
            return max(0.0, now - os.fstat(file).st_mtime)
        finally:
            os.close(file)
    except FileNotFoundError:
        return SILENCE  # let go just now
    except OSError as error:
        raise PersistError(f"cannot look at the holder's file in {folder}: {error}") from error


def _machine() -> str:
    """An id of this machine's current boot."""
    boot = boot_id()
    return boot.hex() if any(boot) else os.uname().nodename


def _start_time(pid: int) -> str:
    """The kernel's start time of a process; empty when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _exists(pid)
    return "" if stat[0] in ("Z", "X") else stat[19]


def _exists(pid: int) -> str:
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
