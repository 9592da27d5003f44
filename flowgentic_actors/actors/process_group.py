"""The process of a cluster's host, and the group of all that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.storage.private_files import open_log

PROC: Final = Path("/proc")
_POLL: Final = 0.02
_EXIT_TIMEOUT: Final = 10.0  # from SIGKILL to a confirmed exit


class HostProcess(ABC):
    """A process that was started for a cluster's host; the process itself, or its launcher."""

    @abstractmethod
    def running(self) -> bool:
        """Whether the host, with its launcher or runtime, may still come up or be up."""

    def look(self) -> None:  # noqa: B027 - not every host has something to note
        """Note what the host uses now, to remove it if the host is killed."""

    def let_go(self) -> None:  # noqa: B027 - the same
        """Note that the host has ended its work, and ends by itself from now on."""

    def ending(self) -> str:
        """How the host ended, as a predicate for messages."""
        return "ended"

    def wait(self, timeout: float) -> bool:
        """Wait until the host and its launcher are gone; False when they are not in time."""
        deadline = time.monotonic() + timeout
        while self.running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    @abstractmethod
    def kill(self) -> None:
        """Kill what is left of the host, and remove the files and shared memory it leaves."""


class ProcessGroup(HostProcess):
    """A child process with a process group of its own.

    It is not reaped before `kill`: as long as its pid is taken, so is the number of its group.

    Args:
        command: Program and arguments.
        folder: Its working directory.
        log_file: Where its stdout and stderr go, appended.
        environ: Its environment.

    Raises:
        ClusterOpenError: If it could not be started.
    """

    def __init__(
        self, command: list[str], folder: Path, log_file: Path, environ: dict[str, str]
    ) -> None:
        try:
            with open_log(log_file) as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    umask=0o077,  # of the processes that it starts, too
                    env=environ,
                    # Out of reach of Ctrl-C. A new session would hang Dragon's launcher.
                    process_group=0,
                )
        except OSError as error:
            raise ClusterOpenError(f"cannot start {command[0]}: {error}") from error

    def running(self) -> bool:
        """Whether the process is alive."""
        if self._process.returncode is not None:
            return False
        try:
            return self._exit() is None
        except AttributeError:  # not on this platform
            return self._process.poll() is None
        except ChildProcessError:  # this program ignores SIGCHLD: the kernel reaps
            return False

    def _exit(self) -> os.waitid_result | None:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags)

    def ending(self) -> str:
        """How the process ended."""
        with contextlib.suppress(AttributeError, ChildProcessError):
            if (found := self._exit()) is not None:
                exited = found.si_code == os.CLD_EXITED
                how = "ended with exit code" if exited else "was killed by signal"
                return f"{how} {found.si_status}"
        return "ended"

    def kill(self) -> None:
        """Kill all processes of the group, and reap the first one."""
        if self._process.returncode is not None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS
            os.killpg(group, signal.SIGKILL)
        deadline = time.monotonic() + _EXIT_TIMEOUT
        while set(group_members(group)) - {group} and time.monotonic() < deadline:
            time.sleep(_POLL)
        self._process.wait()


def group_members(group: int) -> list[int]:
    """The live processes of a process group; none where there is no `/proc`."""
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError, IndexError, ValueError):  # it is gone
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in ("Z", "X"):
                found.append(pid)
    return found


def all_pids() -> list[int]:
    """The pids of all processes; none where there is no `/proc`."""
    if not PROC.is_dir():
        return []
    return [int(entry) for entry in os.listdir(PROC) if entry.isdecimal()]  # noqa: PTH208
