"""Launchers of the agents on other nodes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Final, Protocol

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.cluster.nodes.join_protocol import Ticket
from flowgentic_actors.cluster.process_logs import log_tail, with_last_line
from flowgentic_actors.dragon.spawner import dragon_nodes, start_dragon_process
from flowgentic_actors.python import python_command
from flowgentic_actors.storage.private_files import open_log

AGENT_MODULE: Final = "flowgentic_actors.cluster.nodes.agent"

_FIND_TIMEOUT: Final = 30.0
_PATIENCE: Final = 3.0  # with one that was told to leave


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

    async def launch(self, node: str, ticket: Ticket, timeout: float) -> None:
        """Start the agent of a node.

        Args:
            node: One of those that were found.
            ticket: What it joins with.
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


class DragonNodeLauncher:
    """Starts agents on the other nodes of this process's Dragon runtime."""

    def __init__(self) -> None:
        self.here = socket.gethostname()

    async def find(self, count: int) -> list[str]:  # noqa: ARG002 - they are given
        """Find the runtime's other nodes; see `NodeLauncher.find`."""
        here, nodes = await on_daemon_thread(_FIND_TIMEOUT, dragon_nodes)
        return [node for node in nodes if node != here]

    async def launch(self, node: str, ticket: Ticket, timeout: float) -> None:
        """Start a native process on the node; see `NodeLauncher.launch`."""
        await on_daemon_thread(
            timeout,
            start_dragon_process,
            python_command(AGENT_MODULE),
            None,
            uses_dragon=True,
            node=node,
            told=ticket.write(),
        )

    def ended(self) -> dict[str, str]:
        """Always empty: Dragon is not asked about processes that may have been killed."""
        return {}

    def folder(self, node: str) -> str:  # noqa: ARG002 - the same on all
        """Always empty, for the usual folder: the node is a machine of its own."""
        return ""

    def close(self) -> None:
        """Do nothing: the runtime ends the processes that it started."""


class LocalNodeLauncher:
    """Starts child processes on this machine that stand for nodes: for trials and tests.

    Args:
        folder: The cluster's folder, below which each of them has one.
    """

    def __init__(self, folder: Path) -> None:
        self.here = "node-0"
        self._folder = folder
        self._count = 1
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    async def find(self, count: int) -> list[str]:
        """Number the others; see `NodeLauncher.find`."""
        self._count = max(self._count, count)
        return [f"node-{number}" for number in range(1, self._count)]

    async def launch(self, node: str, ticket: Ticket, timeout: float) -> None:
        """Start a child process; see `NodeLauncher.launch`."""
        self._children[node] = await on_daemon_thread(timeout, self._start, ticket)

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

    def _start(self, ticket: Ticket) -> subprocess.Popen[bytes]:
        with open_log(self._log_file(ticket.node)) as log:
            child = subprocess.Popen(  # noqa: S603 - our own program
                python_command(AGENT_MODULE),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:  # it has ended: see `ended`
            child.stdin.write(ticket.write().reveal().encode())  # there is room for it
        return child
