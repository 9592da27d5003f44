"""Launch of the host's process: plain, under `dragon -s`, or in a running Dragon runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Protocol

from flowgentic_actors.cluster.persistence.cluster_folders import PID_FILE, RUNTIME_FILE
from flowgentic_actors.dragon.fixes import PRIMARY_VARIABLE, with_fixes
from flowgentic_actors.dragon.runtime_cleanup import (
    SharedMemoryFile,
    end_runtime,
    group_members,
    remove_unused,
    shared_memory_of,
)
from flowgentic_actors.dragon.spawner import start_dragon_process
from flowgentic_actors.environment import (
    dragon_launcher,
    inside_dragon,
    job_hosts,
    scheduler_job,
    why_no_dragon,
    with_dragon,
)
from flowgentic_actors.errors import ClusterOpenError, DragonUnavailableError
from flowgentic_actors.python import python_command, python_environ, told_of_children
from flowgentic_actors.storage.private_files import open_log, read_private

HOST_MODULE = "flowgentic_actors.cluster.host.host"
LOG_FILE = "host.log"
_POLL = 0.02
_EXIT_TIMEOUT = 10.0  # from SIGKILL to a confirmed exit


class HostProcess(Protocol):
    """A host's process that was started."""

    def running(self) -> bool:
        """Whether the host, with its launcher or runtime, may still come up or be up."""

    def look(self) -> None:
        """Note what the host uses now, to remove it if the host is killed."""

    def let_go(self) -> None:
        """Note that the host has ended its work, and ends by itself from now on."""

    def ending(self) -> str:
        """How the host ended, as a predicate for messages."""

    def wait(self, timeout: float) -> bool:
        """Wait until the host and its launcher are gone; False when they are not in time."""

    def kill(self) -> None:
        """Kill what is left of the host, and remove the files and shared memory it leaves."""


class _Launched:
    """A child process, the host or a Dragon launcher, with a process group of its own.

    It is not reaped before `kill`: as long as its pid is taken, so is the number of its group.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def running(self) -> bool:
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
        with contextlib.suppress(AttributeError, ChildProcessError):
            if (found := self._exit()) is not None:
                exited = found.si_code == os.CLD_EXITED
                how = "ended with exit code" if exited else "was killed by signal"
                return f"{how} {found.si_status}"
        return "ended"

    def look(self) -> None:
        pass

    def let_go(self) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def kill(self) -> None:
        if self._process.returncode is not None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS
            os.killpg(group, signal.SIGKILL)
        deadline = time.monotonic() + _EXIT_TIMEOUT
        while set(group_members(group)) - {group} and time.monotonic() < deadline:
            time.sleep(_POLL)
        self._process.wait()


class _DragonLauncher(_Launched):
    """`dragon -s`: a launcher with its services, the host and the actors in one process group.

    When one is killed, the runtime's shared memory stays behind, which only we then remove.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process)
        self._segments: set[SharedMemoryFile] = set()

    def look(self) -> None:
        self._segments |= shared_memory_of(group_members(self._process.pid))

    def kill(self) -> None:
        if self._process.returncode is None:
            self.look()
        super().kill()
        remove_unused(self._segments)
        self._segments.clear()


class _NodesLauncher(_DragonLauncher):
    """`dragon` on several nodes, whose processes each of them ends by itself.

    The launcher is killed before that: it would take their ends for a breakdown, and have
    everything of this user's removed on all nodes. It never ends by itself once a node was lost.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        super().__init__(process)
        self._folder = folder

    def let_go(self) -> None:
        self.look()
        _Launched.kill(self)

    def kill(self) -> None:
        super().kill()
        with contextlib.suppress(OSError):  # its host never came up
            end_runtime(read_private(self._folder / RUNTIME_FILE).decode().rstrip())
        remove_unused(self._segments)


class _InRuntime:
    """A native process of the runtime that this process belongs to, known by its pid."""

    def __init__(self, folder: Path) -> None:
        self._pid_file = folder / PID_FILE

    def running(self) -> bool:
        pid = self._pid()
        return pid is None or _alive(pid)

    def ending(self) -> str:
        return "ended"

    def look(self) -> None:
        pass  # what Dragon keeps for it is the runtime's own, which lives on

    def let_go(self) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        pid, deadline = self._pid(), time.monotonic() + timeout
        while pid is not None and _alive(pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def kill(self) -> None:
        if (pid := self._pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pid(self) -> int | None:
        try:
            return int(read_private(self._pid_file))
        except (OSError, ValueError):
            return None


def launch_host(
    spawner: str, folder: Path, spec_file: Path, timeout: float, *, nodes: int = 1
) -> HostProcess:
    """Start the host. Blocks for as long as that takes, not until the host serves.

    Args:
        spawner: `subprocess` or `dragon`.
        folder: The cluster's folder; logs go there, and Dragon writes files of its own there.
        spec_file: The host's spec.
        timeout: Seconds.
        nodes: Nodes that are wanted, 0 for all of the scheduler's job: with one, Dragon runs on
            this node alone.

    Raises:
        DragonUnavailableError: If Dragon is asked for and cannot run here.
        ClusterOpenError: If the host could not be started.
    """
    command = python_command(HOST_MODULE, str(spec_file))
    log_file = folder / LOG_FILE
    if spawner == "subprocess":
        return _Launched(_popen(command, folder, log_file, python_environ()))
    reason = why_no_dragon()
    if reason is not None:
        raise DragonUnavailableError(reason)
    if inside_dragon():
        _start_in_runtime(command, log_file, timeout)
        return _InRuntime(folder)
    launcher = dragon_launcher()
    assert launcher is not None  # why_no_dragon has looked
    environ = with_dragon(with_fixes(python_environ()))
    # The launcher calls its own helper commands by name.
    environ["PATH"] = os.pathsep.join([str(Path(launcher).parent), environ.get("PATH", "")])
    where, cwd = ["-s"], folder
    if nodes != 1:
        cwd = Path("/")  # the launcher goes to the same folder on each of them
        where = _on_nodes(job_hosts())
        environ |= {
            PRIMARY_VARIABLE: socket.gethostname(),
            "SLURM_OVERLAP": "1",  # in a job step, its own steps may share that one's processors
            "SLURM_NO_KILL": "set",  # the loss of a node does not end the others' processes
        }
    command = told_of_children([launcher, *where, *command])
    process = _popen(command, cwd, log_file, environ)
    return _DragonLauncher(process) if nodes == 1 else _NodesLauncher(process, folder)


def _on_nodes(hosts: tuple[str, ...]) -> list[str]:
    """The launcher's options for all nodes of the scheduler's job."""
    job = scheduler_job()
    if job is not None and job.scheduler == "slurm":
        return ["-w", "slurm", "-t", "tcp"]
    if job is not None and job.scheduler == "pbs" and shutil.which("mpiexec"):
        return ["-w", "pbs+pals", "-t", "tcp"]
    return ["-w", "ssh", "--hostlist", ",".join(hosts), "-t", "tcp"]


def _popen(
    command: list[str], cwd: Path, log_file: Path, environ: dict[str, str]
) -> subprocess.Popen[bytes]:
    try:
        with open_log(log_file) as log:
            return subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                umask=0o077,  # of Dragon's processes, too
                env=environ,
                # Out of reach of Ctrl-C. A new session would hang Dragon's launcher.
                process_group=0,
            )
    except OSError as error:
        raise ClusterOpenError(f"cannot start {command[0]}: {error}") from error


def _start_in_runtime(command: list[str], log_file: Path, timeout: float) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            start_dragon_process(command, log_file, uses_dragon=True, environ=python_environ())
        except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
            errors.append(error)

    # A Dragon call can hang, and ignores its own timeouts: the thread is then left behind.
    thread = threading.Thread(target=start, name="flowgentic:start-host", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ClusterOpenError(
            f"the Dragon runtime did not start the host within {timeout:g} s "
            "(setting: open_timeout)"
        )
    if errors:
        raise ClusterOpenError(f"the Dragon runtime did not start the host: {errors[0]}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")  # a dead process that its parent has not reaped yet
