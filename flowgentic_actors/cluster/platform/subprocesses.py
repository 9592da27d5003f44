"""The platform of plain child processes on this machine."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.process_group import ProcessGroup, start_group
from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.cluster.process_logs import log_tail, with_last_line
from flowgentic_actors.python import python_environ
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import TierSettings
from flowgentic_actors.storage.private_files import open_log

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig

_PATIENCE: Final = 3.0  # with one that was told to leave


class SubprocessPlatform:
    """Plain child processes on this machine, groups of which stand for nodes; see `Platform`."""

    name = "subprocess"
    host_program = "the cluster's host"
    gives_up = False
    falls_back = False

    def why_not(self) -> str | None:
        """Always None."""
        return None

    def nodes(self, asked: int | None) -> int:
        """As many as asked for, or one."""
        return asked or 1

    def owns_runtime(self) -> bool:
        """Always False: there is none."""
        return False

    def tier(self, config: MemoryConfig) -> TierSettings | None:  # noqa: ARG002 - there is none
        """Always None."""
        return None

    def launch_host(
        self,
        command: list[str],
        *,
        folder: Path,
        log_file: Path,
        pid_file: Path,  # noqa: ARG002 - its parent knows the pid
        nodes: int,  # noqa: ARG002 - the host starts them
        timeout: float,  # noqa: ARG002 - it takes no time
    ) -> ProcessGroup:
        """Start the host as a child process."""
        return ProcessGroup(start_group(command, folder, log_file, python_environ()))

    def spawner(self, *, uses_tier: bool, on_hung: Callable[[str], None]) -> Spawner:  # noqa: ARG002 - there is no runtime
        """The spawner of child processes."""
        return SubprocessSpawner()

    def node_launcher(self, command: list[str], folder: Path) -> LocalNodeLauncher:
        """The launcher of child processes that stand for nodes."""
        return LocalNodeLauncher(command, folder)

    def address(self, network: str | None) -> str:  # noqa: ARG002 - all nodes are this machine
        """Always this machine's own."""
        return "127.0.0.1"

    def note_runtime(self, folder: Path) -> None:
        """Do nothing."""

    def end_runtime(self) -> None:
        """Do nothing."""

    def end_tiers(self, folder: Path) -> None:
        """Do nothing."""


class LocalNodeLauncher:
    """Starts child processes on this machine that stand for nodes; see `NodeLauncher`.

    Args:
        command: The agent's program and arguments.
        folder: The cluster's folder, below which each of them has one.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._count = 1
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    async def find(self, count: int) -> tuple[str, list[str]]:
        """Number the host's part and the others."""
        self._count = max(self._count, count)
        return "node-0", [f"node-{number}" for number in range(1, self._count)]

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        """Start a child process."""
        self._children[node] = await on_daemon_thread(timeout, self._start, node, ticket)

    def ended(self) -> dict[str, str]:
        """The child processes that have ended."""
        return {
            node: with_last_line(
                f"ended with exit code {child.returncode}", log_tail(self._log_file(node))
            )
            for node, child in [*self._children.items()]  # the event loop may add one meanwhile
            if child.poll() is not None
        }

    def folder(self, node: str) -> str:
        """A folder below the cluster's own."""
        return str(self._folder / "nodes" / node)

    def close(self) -> None:
        """Wait for the child processes within a bound, then kill them."""
        for child in self._children.values():
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _log_file(self, node: str) -> Path:
        return self._folder / f"{node}.log"

    def _start(self, node: str, ticket: Secret[str]) -> subprocess.Popen[bytes]:
        with open_log(self._log_file(node)) as log:
            child = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:  # it has ended: see `ended`
            child.stdin.write(ticket.reveal().encode())  # there is room for it
        return child
