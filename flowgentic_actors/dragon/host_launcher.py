"""Launch of a host in a Dragon runtime: in this process's own, or in one that is started for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

from flowgentic_actors.actors.process_group import (
    HostProcess,
    ProcessGroup,
    group_members,
)
from flowgentic_actors.actors.process_record import is_alive, started_at
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


class _DragonLauncher(ProcessGroup):
    """`dragon -s`: a launcher with its services, the host and the actors in one process group.

    When one is killed, the runtime's shared memory stays behind, which only we then remove.

    Args:
        options: Where the runtime is to be.
        command: The host's program and arguments.
        folder: The launcher's working directory.
        log_file: Where all output goes.
        **environ: Further variables of its environment.
    """

    def __init__(
        self, options: list[str], command: list[str], folder: Path, log_file: Path, **environ: str
    ) -> None:
        launcher = dragon_launcher()
        assert launcher is not None  # why_no_dragon has looked
        environ = {**with_dragon(with_fixes(python_environ())), **environ}
        # The launcher calls its own helper commands by name.
        environ["PATH"] = os.pathsep.join([str(Path(launcher).parent), environ.get("PATH", "")])
        command = told_of_children([launcher, *options, *command])
        super().__init__(command, folder, log_file, environ)
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

    def __init__(self, command: list[str], folder: Path, log_file: Path) -> None:
        super().__init__(
            _on_nodes(job_hosts()),
            command,
            Path("/"),  # the launcher goes to the same folder on each of them
            log_file,
            SLURM_OVERLAP="1",  # in a job step, its own steps may share that one's processors
            SLURM_NO_KILL="set",  # the loss of a node does not end the others' processes
            **{PRIMARY_VARIABLE: socket.gethostname()},
        )
        self._runtime_file = folder / RUNTIME_FILE

    def let_go(self) -> None:
        self.look()
        ProcessGroup.kill(self)

    def kill(self) -> None:
        super().kill()
        with contextlib.suppress(OSError):  # its host never came up
            end_runtime(read_private(self._runtime_file).decode().rstrip())
        remove_unused(self._segments)


class _InRuntime(HostProcess):
    """A native process of the runtime that this process belongs to, known by its pid.

    What Dragon keeps for it is the runtime's own, which lives on.

    Args:
        pid_file: Where the process writes its pid.
    """

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def running(self) -> bool:
        pid = self._pid()
        return pid is None or is_alive(pid, started_at(pid))

    def wait(self, timeout: float) -> bool:
        return self._pid() is None or super().wait(timeout)

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
    command: list[str],
    folder: Path,
    log_file: Path,
    pid_file: Path,
    *,
    nodes: int,
    timeout: float,
) -> HostProcess:
    """Start the host in a Dragon runtime; see `Platform.launch_host`.

    With one node, a runtime that is started for it is on this node alone.

    Raises:
        DragonUnavailableError: If Dragon cannot run here.
        ClusterOpenError: If the host could not be started.
    """
    reason = why_no_dragon()
    if reason is not None:
        raise DragonUnavailableError(reason)
    if inside_dragon():
        _start_in_runtime(command, log_file, timeout)
        return _InRuntime(pid_file)
    if nodes == 1:
        return start_runtime(command, folder, log_file)
    return _NodesLauncher(command, folder, log_file)


def start_runtime(command: list[str], folder: Path, log_file: Path) -> HostProcess:
    """Start a Dragon runtime on this node alone, and a program in it; see `launch_host`."""
    return _DragonLauncher(["-s"], command, folder, log_file)


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
