"""The nodes of a host's cluster, this one alone or several, as the host asks and directs them."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from anyio.abc import TaskGroup

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.actors.stats_query import query_stats
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.host.memory import FILE_TIMEOUT
from flowgentic_actors.cluster.nodes.controller import ClusterController
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.nodes.shard_specs import OpenMemory
from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.protocol.host import (
    Heartbeat,
    HeartbeatReply,
    Rebalance,
    RebalanceReply,
    ShardLocation,
    ShardMap,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec, actor_addresses
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.cluster.protocol.status import ActorStatus, NodeStatus, actor_status
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import InvalidRequestError
from flowgentic_actors.storage.private_files import read_private
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.server_connection import Connection

_NOT_SEVERAL = (
    "this cluster was opened on one node, and has nothing that others could join: open it with "
    "n_nodes=2 or more to add nodes to it, and to take them away, later"
)


class SingleNode:
    """The host's node alone.

    Args:
        spec: The host's.
        supervisor: Of the actors.
        tasks: The task group that owns their watching.
        specs: The actors, none before the memory is open.

    Attributes:
        names: Names of the nodes.
    """

    several: bool = False
    address: TcpAddress | None = None

    def __init__(
        self,
        spec: HostSpec,
        supervisor: Supervisor,
        tasks: TaskGroup,
        specs: Sequence[ChildSpec] = (),
    ) -> None:
        self._spec = spec
        self._supervisor = supervisor
        self._tasks = tasks
        self._specs = specs
        self.names = [socket.gethostname()]

    async def place(self, memory: OpenMemory) -> Topology:
        """The topology with the actors of a memory."""
        return SingleNode(self._spec, self._supervisor, self._tasks, memory.specs)

    async def start(self) -> None:
        """Start the actors."""
        await self._supervisor.start(self._tasks, [*self._specs])

    async def heartbeat(self, _connection: Connection, _heartbeat: Heartbeat) -> HeartbeatReply:
        """Refuse it."""
        raise InvalidRequestError("this host has no other nodes, or not yet")

    def disconnected(self, connection: Connection) -> None:
        """Do nothing: it is no node's."""

    async def rebalance(self, _command: Rebalance) -> RebalanceReply:
        """Refuse it."""
        raise InvalidRequestError(_NOT_SEVERAL)

    async def shard_map(self, _version: int, _wait: float) -> ShardMap:
        """The shard map, at once: it does not change."""
        return self.current_shard_map()

    def current_shard_map(self) -> ShardMap:
        """The shard map."""
        here, addresses = machine(), actor_addresses(self._spec)
        locations = (ShardLocation(name, here, path) for name, path in addresses.items())
        table = even_table(self._spec.actors, self._spec.namespace_depth)
        return ShardMap(1, table, tuple(locations))

    def request_publish(self) -> None:
        """Do nothing: no other node asks."""

    async def query_stats(self, timeout: float) -> None:
        """Ask the actors for their counters."""
        await query_stats(self._supervisor.children, timeout)

    def actors(self) -> tuple[ActorStatus, ...]:
        """The status of the actors."""
        slots = Counter(even_table(self._spec.actors, self._spec.namespace_depth).shards)
        return tuple(
            actor_status(shard, child.state, child, node=child.node, slots=slots[shard])
            for shard, child in enumerate(self._supervisor.children)
        )

    def nodes(self) -> tuple[NodeStatus, ...]:
        """The status of this node."""
        here, leads = socket.gethostname(), self._spec.actors
        return (NodeStatus(name=here, state="up", leads=leads, follows=0, last_heard=time.time()),)

    def located(self, _actor: str, detail: str) -> str:
        """The detail as it is."""
        return detail

    async def end(self, timeout: float, reason: str) -> dict[str, str]:
        """End all actors."""
        return await self._supervisor.stop(timeout, reason)

    async def tell_end(self, reason: str, *, closed: bool = False) -> None:
        """Do nothing: clients are told where the actors were."""

    async def leave(self, *, remove: bool) -> None:
        """Do nothing: there is no other node."""


class JoinedNodes(SingleNode):
    """Several nodes that have joined, before the shards are placed: actors are on none of them.

    Args:
        spec: The host's.
        supervisor: Of this node's actors.
        tasks: The task group that owns their watching.
        names: Names of the nodes, this one first.
        node_pool: The programs of the others.
        address: Where they find the host.
        on_event: Told what happens.
    """

    several = True

    def __init__(
        self,
        spec: HostSpec,
        supervisor: Supervisor,
        tasks: TaskGroup,
        *,
        names: list[str],
        node_pool: NodePool,
        address: TcpAddress,
        on_event: EventSink,
    ) -> None:
        super().__init__(spec, supervisor, tasks)
        self._node_pool = node_pool
        self._on_event = on_event
        self._remote = address
        self.names = names
        self.address = address

    async def place(self, memory: OpenMemory) -> Topology:
        """The topology with the shards of a memory on the nodes.

        Raises:
            FlowgenticError: If the shards cannot be placed.
        """
        folder = Path(self._spec.memory)
        plan_file = PlanFile(folder)
        return ClusterController(
            self._spec,
            self._tasks,
            self.names,
            node_pool=self._node_pool,
            address=self._remote,
            supervisor=self._supervisor,
            memory=memory,
            plan_file=plan_file,
            plan=await on_daemon_thread(FILE_TIMEOUT, plan_file.read),
            manifest=await on_daemon_thread(FILE_TIMEOUT, read_private, folder / MANIFEST),
            on_event=self._on_event,
        )

    async def leave(self, *, remove: bool) -> None:  # noqa: ARG002 - nothing is stored there yet
        """Release the other nodes."""
        await self._node_pool.close()


Topology: TypeAlias = SingleNode | ClusterController
"""The nodes of a cluster, as the host asks and directs them: what both classes can do."""
