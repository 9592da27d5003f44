"""Nodes without agents: a launcher and agents in this process, for tests of the host's side."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec

from flowgentic_actors.cluster.nodes.join_protocol import Join, NodeSpec, Ticket, join
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.secret import Secret, concealed
from flowgentic_actors.wire.certificates import new_identity
from tests.support.host_processes import host_spec

IDENTITY = new_identity()


def several_nodes(folder: Path, **changes: Any) -> HostSpec:
    """The settings of a host of three nodes with an actor each."""
    fields: dict[str, Any] = {"nodes": 3, "actors": 1, "identity": IDENTITY}
    return host_spec(folder, **fields | changes)


class FakeLauncher:
    """Starts agents that do nothing but join, each in a thread.

    Args:
        nodes: Names of the other nodes that there are.
    """

    def __init__(self, *nodes: str) -> None:
        self.here = "node-0"
        self.nodes = list(nodes)
        self.absent: dict[str, str] = {}
        """Nodes whose agents end before they join, and how."""
        self.launched: list[str] = []
        self.specs: dict[str, NodeSpec] = {}
        self.closed = False
        self._threads: list[threading.Thread] = []

    async def find(self, count: int) -> list[str]:
        return list(self.nodes)

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        self.launched.append(node)
        if node not in self.absent:
            given = msgspec.json.decode(ticket.reveal(), type=Ticket, dec_hook=concealed)
            thread = threading.Thread(target=self._join, args=[given])
            self._threads.append(thread)
            thread.start()

    def _join(self, ticket: Ticket) -> None:
        try:
            self.specs[ticket.node] = join(ticket, Join(ticket.node, f"machine of {ticket.node}"))
        except ClusterOpenError as error:
            self.absent[ticket.node] = str(error)

    def ended(self) -> dict[str, str]:
        return {node: how for node, how in self.absent.items() if node in self.launched}

    def folder(self, node: str) -> str:
        return ""

    def close(self) -> None:
        self.closed = True

    async def all_joined(self) -> None:
        """Wait until the agents that join have their settings."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
