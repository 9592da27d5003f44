"""Spawners: start of actors' processes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.python import python_command
from flowgentic_actors.storage.private_files import open_log

ACTOR_MODULE = "flowgentic_actors.actors.process"


class Spawned(Protocol):
    """A process that was started."""

    pid: int | None
    """Its pid, where the spawner knows it; otherwise its first message tells."""

    def reap(self) -> int | None:
        """Reap the process; its exit code (negative: the signal), where that is known."""


class Spawner(Protocol):
    """Starts processes."""

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        """Start an actor's process.

        Args:
            spec_file: The file that describes the actor.
            log_file: Where its stdout and stderr go, appended.
            timeout: Seconds.

        Raises:
            TimeoutError: If starting it took longer.
            OSError: If it could not be started.
        """


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid: int | None = process.pid

    def reap(self) -> int | None:
        return self._process.poll()


class SubprocessSpawner:
    """Starts plain child processes on this node.

    Args:
        environ: Their environment; this process's own if None.
    """

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        self._environ = environ

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        """Start a child process; see `Spawner.spawn`."""
        return await on_daemon_thread(timeout, self._start, spec_file, log_file)

    def _start(self, spec_file: Path, log_file: Path) -> _Child:
        with open_log(log_file) as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                python_command(ACTOR_MODULE, str(spec_file)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                process_group=0,  # Ctrl-C goes to the user's process group, not to the memory
            )
        return _Child(process)
