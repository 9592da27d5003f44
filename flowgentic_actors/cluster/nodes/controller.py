"""The host's side of a cluster of several nodes: admits, directs and releases them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.stats_query import query_stats
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.loop_condition import LoopCondition
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.directory import ShardDirectory
from flowgentic_actors.cluster.nodes.heartbeats import HeartbeatDesk
from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.leases import LEASE_SHARE, TICK, GrantedLeases
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.plan_publisher import PlanPublisher
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.nodes.replica_manager import ReplicaManager
from flowgentic_actors.cluster.nodes.resizing import Resizing
from flowgentic_actors.cluster.nodes.shard_specs import OpenMemory
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.host import (
    Acknowledged,
    EndNode,
    Heartbeat,
    HeartbeatReply,
    Rebalance,
    RebalanceReply,
    ShardMap,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.cluster.protocol.status import ActorStatus, NodeStatus
from flowgentic_actors.errors import (
    ActorFailedError,
    InvalidRequestError,
    RejectedError,
)
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.server_connection import Connection

_FILE_TIMEOUT: Final = 30.0
_LEAVING: Final = 2.0


class ClusterController:
    """Controls all nodes of one cluster, the host's own included.

    Args:
        spec: What the host was told.
        tasks: The task group that owns what goes on.
        nodes: The nodes that have joined, the host's own first.
        node_pool: The programs of the others.
        address: Where they find the host.
        supervisor: Of this node's actors.
        memory: What they keep.
        plan_file: Where the plan is stored.
        plan: What an earlier host has stored there, None for nothing.
        manifest: The memory's manifest.
        on_event: Told what happens.
    """

    several: Final = True

    def __init__(
        self,
        spec: HostSpec,
        tasks: TaskGroup,
        nodes: Sequence[str],
        *,
        node_pool: NodePool,
        address: TcpAddress,
        supervisor: Supervisor,
        memory: OpenMemory,
        plan_file: PlanFile,
        plan: ClusterPlan | None,
        manifest: bytes,
        on_event: EventSink,
    ) -> None:
        leases = GrantedLeases(spec.node_timeout * LEASE_SHARE, spec.node_timeout, TICK)
        self._spec = spec
        self._tasks = tasks
        self._supervisor = supervisor
        self._memory = memory
        self._manifest = manifest
        self._here = node_pool.here
        self._known_here = 0
        self._heard_at: dict[str, float] = {}  # each node last, seconds since the Unix epoch
        self._lines: dict[Connection, str] = {}  # that nodes ask over
        self._hung_up: set[str] = set()  # nodes whose program has ended
        self._id = secrets.token_hex(8)
        self._reports = LoopCondition()  # notified at each heartbeat, reply and loss
        self.address = address
        self.node_pool = node_pool
        self.on_event = on_event
        self.placement = placement = Placement(
            plan or ClusterPlan(version=0, shards=[]),
            self._here,
            replicas=spec.replicas,
            degrade=spec.degrade,
            recovers=spec.persist,
            leases=leases,
        )
        self._desk = HeartbeatDesk(placement, leases, self._here)
        self._desk.join(nodes)
        self._place(nodes, is_new=plan is None or spec.persist)
        self._directory = ShardDirectory(
            placement, self._desk, node_pool.machines, address.certificate
        )
        self._replica_manager = ReplicaManager(
            supervisor,
            tasks,
            memory,
            address.certificate,
        )
        note_table = memory.note_table if spec.persist else None
        self._publisher = PlanPublisher(
            placement, self._desk, plan_file, on_event=on_event, note_table=note_table
        )
        self._news = self._publisher.news
        self._resizing = Resizing(spec, tasks, self)

    # ------------------------------------------------------------------ opening

    def _place(self, nodes: Sequence[str], *, is_new: bool) -> None:
        """Place the shards, or go on with the plan that there is."""
        spec, plan, shards = self._spec, self.placement.plan, self._memory.shards
        table = even_table(shards, spec.namespace_depth)
        if is_new:
            if plan.table is not None:  # clients that used it, and still run, have to hear
                table = msgspec.structs.replace(table, version=plan.table.version + 1)
            plan.table = table
            self.placement.place([nodes[shard // spec.actors] for shard in range(shards)])
        else:
            plan.table = plan.table or table
            self.placement.fail_absent_nodes()

    async def start(self) -> None:
        """Have the nodes start the actors, and wait until all serve.

        Raises:
            ActorFailedError: If an actor does not come up.
        """
        await self._publisher.publish()
        await self.node_pool.hand_out(self.node_spec)
        self._tasks.start_soon(self._keep_time)
        self._tasks.start_soon(self._publisher.run)
        self._tasks.start_soon(self._keep_order_here)
        while not self._all_serve():
            await self.changed()

    def _all_serve(self) -> bool:
        """Whether every shard that is not lost has a leader, and its follower has caught up."""
        waits = False
        for plan in self.placement.plan.shards:
            member = self.placement.leader_status(plan.shard)
            if not plan.leader:
                continue
            if member is not None and member.state == "failed":
                raise ActorFailedError(f"{actor_name(plan.shard)} does not start: {member.reason}")
            waits = waits or member is None or not member.leads
            waits = waits or bool(plan.follower and not plan.caught_up)
        return not waits

    def node_spec(self, node: str) -> NodeSpec:
        """The settings of another node."""
        return NodeSpec(
            cluster=self._spec,
            folder=self.node_pool.folder(node),
            manifest=self._manifest,
            generation=self._memory.generation.name,
            identity=self.node_pool.identity,
            host=self.address,
            host_id=self._id,
            actor=self._memory.actor,
            lease=self._desk.lease,
        )

    # ------------------------------------------------------------------ more nodes, and fewer

    async def rebalance(self, command: Rebalance) -> RebalanceReply:
        """Spread the slots evenly over some nodes; see `Resizing.asked`."""
        if self._desk.end is not None:
            raise RejectedError("this cluster is not open yet, or closing: nothing is moved now")
        return await self._resizing.asked(command)

    def take_in(self, nodes: Sequence[str]) -> None:
        """Add nodes that have joined to the placement."""
        self._desk.join(nodes)
        self._publisher.request()

    async def changed(self) -> None:
        """Wait for a possible change of the placement, for a moment at most."""
        await self._news.wait(TICK)

    # ------------------------------------------------------------------ heartbeats

    async def heartbeat(self, connection: Connection, heartbeat: Heartbeat) -> HeartbeatReply:
        """Process a node's heartbeat, and reply once there is news for it, or after a while."""
        if heartbeat.host != self._id:
            # It is another host's, whose place this one has taken
            return HeartbeatReply(0.0, leave="keep")
        node = heartbeat.node
        if node not in self.node_pool.machines:
            raise InvalidRequestError(f"{node} is no node of this cluster")
        self._lines[connection] = node
        self._hung_up.discard(node)
        self._heard_at[node] = time.time()
        for event in self._desk.heard(heartbeat):
            self.on_event(*event)
        self._publisher.request()
        self._reports.notify()
        await self._news.wait_for(
            lambda: self._desk.has_news_for(heartbeat), self._spec.supervision.heartbeat_interval
        )
        reply = self._desk.reply(heartbeat, time.monotonic())
        self._reports.notify()
        return reply

    def disconnected(self, connection: Connection) -> None:
        """React to a node's closed connection: if its machine closed it, the agent has ended."""
        node = self._lines.pop(connection, None)
        if node is not None and not connection.timed_out:
            self._hung_up.add(node)

    async def _keep_time(self) -> None:
        """Tick the leases and the placement until cancelled, and restart agents that ended."""
        while True:
            await anyio.sleep(TICK)
            for node in self._desk.tick(time.monotonic()):
                self._news.notify()
                self._reports.notify()
                if node in self._hung_up and self._desk.end is None:
                    self._tasks.start_soon(self._restart_node, node)
            self._hear_own()
            if self._desk.must_publish:
                self._publisher.request()

    async def _restart_node(self, node: str) -> None:
        """Restart the agent of a node that is available and whose last agent has ended."""

        def is_wanted() -> bool:
            return self._desk.end is None and node not in self._lines.values()

        await self.node_pool.restart(node, self.node_spec, is_wanted)

    def request_publish(self) -> None:
        """Report this node's replicas to the placement, and publish its plan, at once."""
        self._hear_own()
        self._publisher.request()

    def _hear_own(self) -> None:
        self.placement.heard(self._here, self._replica_manager.replicas())

    async def _keep_order_here(self) -> None:
        """Carry out this node's own assignments."""
        while self._desk.end is None:
            assignments = self._desk.assignments_here(self._known_here)
            if assignments is None:
                await self._news.wait()
            else:
                await self._replica_manager.carry_out(assignments)
                self._known_here = assignments.version

    # ------------------------------------------------------------------ shard map and status

    async def shard_map(self, version: int, wait: float) -> Raw | Acknowledged:
        """The encoded shard map once it is newer than `version`; `Acknowledged` after a wait."""
        await self._news.wait_for(lambda: self._desk.published > version, wait)
        if self._desk.published <= version:
            return Acknowledged()
        return self._directory.encoded_shard_map()

    def current_shard_map(self) -> ShardMap:
        """The current shard map."""
        return self._directory.shard_map()

    async def query_stats(self, timeout: float) -> None:
        """Ask all actors for their counters, and wait for the answers; see `stats_query`."""
        desk = self._desk
        nodes, query = desk.others, desk.begin_query()
        self._news.notify()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(query_stats, self._supervisor.children, timeout)
            await self._reports.wait_for(lambda: desk.have_answered(nodes, query), timeout)
        self.request_publish()

    def actors(self) -> tuple[ActorStatus, ...]:
        """The status of the shards' actors."""
        return self._directory.actors()

    def nodes(self) -> tuple[NodeStatus, ...]:
        """The status of the nodes."""
        return self._directory.nodes({**self._heard_at, self._here: time.time()})

    def located(self, actor: str, detail: str) -> str:
        """The detail of an event of this node's actor, with the node and the actor's role."""
        return self._replica_manager.located(actor, detail, self._here)

    # ------------------------------------------------------------------ ending

    async def end(self, timeout: float, reason: str) -> dict[str, str]:
        """Drain and end all actors, on all nodes.

        Returns:
            What became of those that did not end in order, by name.
        """
        elsewhere: dict[str, str] = {}

        async def end_others() -> None:
            elsewhere.update(await self._end_others(timeout, reason))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_others)
            here = await self._supervisor.stop(timeout, reason)
        return self._replica_manager.unclean_leaders(here) | elsewhere

    async def _end_others(self, timeout: float, reason: str) -> dict[str, str]:
        desk = self._desk
        desk.end = EndNode(reason, timeout)
        self._news.notify()
        others = [node for node in self.placement.nodes if node != self._here]
        await self._reports.wait_for(
            lambda: not ({*others} & desk.others) - desk.ended.keys(), timeout
        )
        killed: dict[str, str] = {}
        for node in others:
            silent = "the node did not answer" if node in desk.others else "the node is lost"
            found = desk.ended.get(node, {"its actors": silent})
            killed |= {f"{name} on {node}": what for name, what in found.items()}
        return killed

    async def tell_end(self, reason: str, *, closed: bool = False) -> None:
        """Tell all clients that the actors have ended, and why.

        Args:
            reason: Why.
            closed: Whether this host is to end as well.
        """
        self._directory.closing, self._directory.closed = reason, closed
        self.placement.plan.version += 1
        self._publisher.request()
        await self._news.wait_for(lambda: not self._desk.must_publish, _LEAVING)

    async def leave(self, *, remove: bool) -> None:
        """Release the other nodes: their agents end."""
        self._desk.leave = "remove" if remove else "keep"
        self._news.notify()
        others = self._desk.others
        await self._reports.wait_for(lambda: others <= self._desk.left, _LEAVING)
        await self.node_pool.close()
