"""Launch of a host in a Dragon runtime: in this process's own, or in one that is started for it."""

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

from flowgentic_actors.actors.process_group import ProcessGroup, group_members, start_group
from flowgentic_actors.dragon.fixes import PRIMARY_VARIABLE, with_fixes
from flowgentic_actors.dragon.runtime_cleanup import (
    RUNTIME_FILE,
    SharedMemoryFile,
    end_runtime,
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
from flowgentic_actors.python import python_environ, told_of_children
from flowgentic_actors.storage.private_files import read_private

_POLL = 0.02


class _DragonLauncher(ProcessGroup):
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

    def __init__(self, process: subprocess.Popen[bytes], runtime_file: Path) -> None:
        super().__init__(process)
        self._runtime_file = runtime_file

    def let_go(self) -> None:
        self.look()
        ProcessGroup.kill(self)

    def kill(self) -> None:
        super().kill()
        with contextlib.suppress(OSError):  # its host never came up
            end_runtime(read_private(self._runtime_file).decode().rstrip())
        remove_unused(self._segments)


class InRuntime:
    """A native process of the runtime that this process belongs to, known by its pid.

    Args:
        pid_file: Where the process writes its pid.
    """

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def running(self) -> bool:
        """Whether the process is alive, or not known yet."""
        pid = self._pid()
        return pid is None or _alive(pid)

    def ending(self) -> str:
        """How the process ended, which Dragon does not tell."""
        return "ended"

    def look(self) -> None:
        """Do nothing: what Dragon keeps for it is the runtime's own, which lives on."""

    def let_go(self) -> None:
        """Do nothing: the process ends by itself."""

    def wait(self, timeout: float) -> bool:
        """Wait until the process is gone; False when it is not in time."""
        pid, deadline = self._pid(), time.monotonic() + timeout
        while pid is not None and _alive(pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def kill(self) -> None:
        """Kill the process."""
        if (pid := self._pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pid(self) -> int | None:
        try:
            return int(read_private(self._pid_file))
        except (OSError, ValueError):
            return None


def launch_host(
    command: list[str],
    *,
    folder: Path,
    log_file: Path,
    pid_file: Path,
    nodes: int,
    timeout: float,
) -> ProcessGroup | InRuntime:
    """Start the host. Blocks for as long as that takes, not until the host serves.

    Args:
        command: Its program and arguments.
        folder: The cluster's folder; Dragon writes files of its own there.
        log_file: Where its stdout and stderr go, appended.
        pid_file: Where the host writes its pid.
        nodes: Nodes that are wanted, 0 for all of the scheduler's job: with one, Dragon runs on
            this node alone.
        timeout: Seconds.

    Raises:
        DragonUnavailableError: If Dragon cannot run here.
        ClusterOpenError: If the host could not be started.
    """
    reason = why_no_dragon()
    if reason is not None:
        raise DragonUnavailableError(reason)
    if inside_dragon():
        _start_in_runtime(command, log_file, timeout)
        return InRuntime(pid_file)
    launcher = dragon_launcher()
    assert launcher is not None  # why_no_dragon has looked
    environ = with_dragon(with_fixes(python_environ()))
    # The launcher calls its own helper commands by name.
    environ["PATH"] = os.pathsep.join([str(Path(launcher).parent), environ.get("PATH", "")])
    if nodes == 1:
        command = told_of_children([launcher, "-s", *command])
        return _DragonLauncher(start_group(command, folder, log_file, environ))
    environ |= {
        PRIMARY_VARIABLE: socket.gethostname(),
        "SLURM_OVERLAP": "1",  # in a job step, its own steps may share that one's processors
        "SLURM_NO_KILL": "set",  # the loss of a node does not end the others' processes
    }
    command = told_of_children([launcher, *_on_nodes(job_hosts()), *command])
    everywhere = Path("/")  # the launcher goes to the same folder on each of them
    process = start_group(command, everywhere, log_file, environ)
    return _NodesLauncher(process, folder / RUNTIME_FILE)


def _on_nodes(hosts: tuple[str, ...]) -> list[str]:
    """The launcher's options for all nodes of the scheduler's job."""
    job = scheduler_job()
    if job is not None and job.scheduler == "slurm":
        return ["-w", "slurm", "-t", "tcp"]
    if job is not None and job.scheduler == "pbs" and shutil.which("mpiexec"):
        return ["-w", "pbs+pals", "-t", "tcp"]
    return ["-w", "ssh", "--hostlist", ",".join(hosts), "-t", "tcp"]


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
