"""The platform of a cluster: how its processes are started, and what they can use.

`Platform` is the one of plain child processes on this machine. Another value of the setting
`spawner` is a class that overrides what it does in another way.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.process_group import HostProcess, ProcessGroup
from flowgentic_actors.actors.process_logs import log_tail, with_last_line
from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.python import python_environ
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import TierSettings
from flowgentic_actors.storage.private_files import open_log

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig

_PATIENCE: Final = 3.0  # with an agent that was told to leave


class Platform:
    """Plain child processes on this machine, groups of which stand for nodes.

    Everything but `spawner` and `node_launcher` may block.

    Attributes:
        name: The value of the setting `spawner`.
        host_program: What is started as the host's process, for messages.
        gives_up: Whether that program may end before the host runs, and succeed the next time.
        falls_back: Whether a local cluster may take the place of one that does not open.
    """

    name = "subprocess"
    host_program = "the cluster's host"
    gives_up = False
    falls_back = False

    def why_not(self) -> str | None:
        """The reason why no cluster can be opened, with what to do about it; None if one can."""
        return None

    def nodes(self, asked: int | None) -> int:
        """The number of nodes to use, 0 for all that there are; `asked` is what the user wants."""
        return asked or 1

    def owns_runtime(self) -> bool:
        """Whether a runtime is started for the host of a cluster, and ends with it."""
        return False

    def tier(self, config: MemoryConfig) -> TierSettings | None:  # noqa: ARG002 - there is none
        """The settings of the actors' memory tiers, None for none.

        Raises:
            ClusterOpenError: If there is not enough room for what is asked for.
        """
        return None

    def launch_host(
        self,
        command: list[str],
        folder: Path,
        log_file: Path,
        pid_file: Path,  # noqa: ARG002 - its parent knows the pid
        *,
        nodes: int,  # noqa: ARG002 - the host starts them
        timeout: float,  # noqa: ARG002 - it takes no time
    ) -> HostProcess:
        """Start the host. Blocks for as long as that takes, not until the host serves.

        Args:
            command: Program and arguments.
            folder: The cluster's folder.
            log_file: Where its stdout and stderr go, appended.
            pid_file: Where the host writes its pid.
            nodes: The number of nodes to use, as `nodes` gave it.
            timeout: Seconds.

        Raises:
            ClusterOpenError: If it could not be started.
        """
        return ProcessGroup(command, folder, log_file, python_environ())

    def spawner(self, *, uses_tier: bool, on_event: EventSink) -> Spawner:  # noqa: ARG002
        """The spawner of the actors on this process's node.

        Args:
            uses_tier: Whether they have memory tiers.
            on_event: Called when actors go on without the runtime.
        """
        return SubprocessSpawner()

    def node_launcher(self, command: list[str], folder: Path) -> NodeLauncher:
        """The launcher of agents on nodes: of `command`, for the cluster with a folder."""
        return LocalNodeLauncher(command, folder)

    def address(self, network: str | None) -> str:  # noqa: ARG002 - all nodes are this machine
        """The IP address at which other nodes reach this one; `network` as in `MemoryConfig`."""
        return "127.0.0.1"

    def note_runtime(self, folder: Path) -> None:
        """Note in the cluster's folder which runtime this host is in, which ends with it."""

    def end_runtime(self) -> None:
        """End this node's part of the runtime that this process is in, except this process."""

    def end_tiers(self, folder: Path) -> None:
        """End the memory tiers of actors that have ended, of a cluster with this folder."""


class NodeLauncher(Protocol):
    """Starts agents on nodes."""

    @property
    def here(self) -> str:
        """The name of this node."""

    async def find(self, count: int) -> list[str]:
        """Find the other available nodes.

        Args:
            count: Nodes that there shall be in all, where they can be made at will.
        """

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        """Start the agent of a node.

        Args:
            node: One of those that were found.
            ticket: A line that the agent finds on its standard input.
            timeout: Seconds.

        Raises:
            OSError, TimeoutError, ActorStartError: If it could not be started.
        """

    def ended(self) -> dict[str, str]:
        """The agents that are known to have ended, and how, by node. Blocks."""

    def folder(self, node: str) -> str:
        """The folder for a node's files, empty for the usual one."""

    def close(self) -> None:
        """Kill the agents that do not end by themselves, where that is possible from here."""


class LocalNodeLauncher:
    """Starts child processes on this machine that stand for nodes; see `NodeLauncher`.

    Args:
        command: The agent's program and arguments.
        folder: The cluster's folder, below which each of them has one.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self.here = "node-0"
        self._command = command
        self._folder = folder
        self._count = 1
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    async def find(self, count: int) -> list[str]:
        """Number the others."""
        self._count = max(self._count, count)
        return [f"node-{number}" for number in range(1, self._count)]

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
