"""The launcher of agents on the other nodes of a Dragon runtime."""

from __future__ import annotations

import socket
from typing import Final

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.dragon.spawner import dragon_nodes, start_dragon_process
from flowgentic_actors.secret import Secret

_FIND_TIMEOUT: Final = 30.0


class DragonNodeLauncher:
    """Starts agents on the other nodes of this process's Dragon runtime; see `NodeLauncher`.

    Args:
        command: The agent's program and arguments.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command

    async def find(self, count: int) -> tuple[str, list[str]]:  # noqa: ARG002 - they are given
        """Find the runtime's nodes."""
        here, nodes = await on_daemon_thread(_FIND_TIMEOUT, dragon_nodes)
        return socket.gethostname(), [node for node in nodes if node != here]

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        """Start a native process on the node."""
        await on_daemon_thread(
            timeout,
            start_dragon_process,
            self._command,
            None,
            uses_dragon=True,
            node=node,
            told=ticket,
        )

    def ended(self) -> dict[str, str]:
        """Always empty: Dragon is not asked about processes that may have been killed."""
        return {}

    def folder(self, node: str) -> str:  # noqa: ARG002 - the same on all
        """Always empty, for the usual folder: the node is a machine of its own."""
        return ""

    def close(self) -> None:
        """Do nothing: the runtime ends the processes that it started."""
