"""The host's side of a cluster of several nodes: admits, directs and releases them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.child import ChildSpec
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.directory import actors_of, locations_of, nodes_of
from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.leases import DRIFT, GrantedLeases
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.nodes.rebalancing import Rebalancing
from flowgentic_actors.cluster.nodes.replica_manager import ReplicaManager
from flowgentic_actors.cluster.nodes.resizing import Resizing
from flowgentic_actors.cluster.nodes.stats_queries import NodeStatsQueries
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
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.cluster.protocol.status import ActorStatus, NodeStatus
from flowgentic_actors.errors import (
    ActorFailedError,
    InvalidRequestError,
    RejectedError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.identity import Identity
from flowgentic_actors.wire.server import Connection

_TICK: Final = 0.1
_DISK_PAUSE: Final = 1.0  # before what could not be written is written once more
_LOOPBACK: Final = "127.0.0.0/8"  # of processes that stand for nodes
_FILE_TIMEOUT: Final = 30.0
_LEAVING: Final = 2.0
_SHARED_GRACE: Final = 25.0
"""A node without its host lets go of journals at `persist_path` before the next cluster takes hold
of them, which is when their holder has been silent for `memory_lock.SILENCE`."""

_LEASE_SHARE: Final = 1 / (1 + DRIFT) - 0.1  # of node_timeout: over for sure when that is

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


class ClusterController:
    """Controls all nodes of one cluster, the host's own included.

    Args:
        spec: What the host was told.
        node_pool: The programs of the other nodes.
        identity: What the host proves.
        ip: IP address of this node.
        supervisor: Of this node's actors.
        on_event: Told what happens.
    """

    def __init__(
        self,
        spec: HostSpec,
        *,
        node_pool: NodePool,
        identity: Identity,
        ip: str,
        supervisor: Supervisor,
        on_event: Callable[[EventKind, str, str], None],
    ) -> None:
        self._spec = spec
        self._node_pool = node_pool
        self._identity = identity
        self._ip = ip
        self._supervisor = supervisor
        self._on_event = on_event
        self._here = node_pool.here
        self._machines = node_pool.machines
        self._placement: Placement | None = None
        self._replica_manager: ReplicaManager | None = None
        self._plan_file: PlanFile | None = None
        self._published = 0  # version of the plan that is on the disk
        self._known_here = 0
        self._news = asyncio.Event()
        self._lines: dict[Connection, str] = {}  # that nodes ask over
        self._hung_up: set[str] = set()  # nodes whose program has ended
        self._restarts: dict[str, RestartPolicy] = {}
        self._starting = asyncio.Lock()
        self._spec_of: Callable[[str], NodeSpec] | None = None
        self._stir = asyncio.Event()
        self._events_to: dict[str, int] = {}
        self._end: EndNode | None = None
        self._leave: Literal["keep", "remove"] | None = None
        self._killed: dict[str, dict[str, str]] = {}  # of each node that has ended
        self._left: set[str] = set()
        self._on_table: Callable[[int, SlotTable], None] | None = None
        self._noted: SlotTable | None = None  # in the manifest
        self._told_of_disk = False
        self._resizing: Resizing | None = None
        self._places: ShardMap | None = None
        self._closing, self._closed = "", False
        self._encoded = Raw(b"")
        self._encoded_of: ShardMap | None = None
        self._stats_queries = NodeStatsQueries(self._tell_news)
        self._lease = spec.node_timeout * _LEASE_SHARE
        self._leases = GrantedLeases(self._lease, spec.node_timeout, _TICK)
        self._id = secrets.token_hex(8)
        self._awaited: set[str] = set()  # nodes that have their spec, and have not been heard yet

    # ------------------------------------------------------------------ opening

    async def open(
        self,
        tasks: TaskGroup,
        nodes: list[str],
        table: SlotTable,
        *,
        host: TcpAddress,
        generation: str,
        manifest: bytes,
        factory: str,
        arguments: dict[str, str],
        child_spec: Callable[[int], ChildSpec],
        on_table: Callable[[int, SlotTable], None],
    ) -> None:
        """Place the shards, have the nodes start the actors, and wait until all serve.

        Args:
            tasks: The task group that owns what goes on.
            nodes: What `NodePool.gather` gave.
            table: Where each key lives, if no earlier host decided it.
            host: Where the nodes find the host.
            generation: Folder below the memory's in which each shard has one.
            manifest: The memory's manifest.
            factory: Makes an actor.
            arguments: Its arguments, but for folders.
            child_spec: Makes the spec of a shard's actor on this node.
            on_table: Writes down how many shards there are, and which has which slots. Blocks.

        Raises:
            FlowgenticError: If the shards cannot be placed, or an actor does not come up.
        """
        spec = self._spec
        self._on_table = on_table
        plan_file = self._plan_file = PlanFile(Path(spec.memory))
        before = await on_daemon_thread(_FILE_TIMEOUT, plan_file.read)
        placement = self._placement = Placement(
            before or ClusterPlan(version=0, shards=[]),
            self._here,
            replicas=spec.replicas,
            degrade=spec.degrade,
            recovers=spec.persist,
            leases=self._leases,
        )
        for node in nodes:
            placement.joined(node)
        self._awaited = set(nodes) - {self._here}
        plan = placement.plan
        if before is None or spec.persist:
            shards = len(table.owners)
            if plan.table is not None:  # clients that used it, and still run, have to hear
                table = msgspec.structs.replace(table, version=plan.table.version + 1)
            plan.table = table
            placement.place([nodes[shard // spec.actors] for shard in range(shards)])
        else:
            plan.table = plan.table or table
            placement.fail_absent_nodes()
        self._noted = plan.table
        self._replica_manager = ReplicaManager(
            self._supervisor,
            tasks,
            child_spec,
            host=self._ip,
            certificate=self._identity.certificate,
            replicated=spec.replicas > 1,
        )
        await self._publish()

        def spec_of(node: str) -> NodeSpec:
            return NodeSpec(
                name=spec.name,
                folder=self._node_pool.folder(node),
                scratch=spec.scratch,
                memory=spec.memory if spec.persist else "",
                manifest=manifest,
                generation=generation,
                secret=spec.secret,
                identity=self._identity,
                host=host,
                host_id=self._id,
                network=spec.network if spec.spawner == "dragon" else _LOOPBACK,
                spawner=spec.spawner,
                uses_dragon=spec.tier_bytes > 0,
                owns_runtime=spec.owns_runtime,
                factory=factory,
                arguments=arguments,
                replicated=spec.replicas > 1,
                supervision=self._supervisor.settings,
                lease=self._lease,
                rejoin_grace=(
                    min(spec.rejoin_grace, _SHARED_GRACE) if spec.persist else spec.rejoin_grace
                ),
                open_timeout=spec.start_timeout,
                orphans=spec.orphans,
                max_message_bytes=spec.max_message_bytes,
            )

        self._spec_of = spec_of
        self._resizing = Resizing(
            tasks,
            placement,
            self._node_pool,
            specs=spec_of,
            rebalancing=lambda rate: Rebalancing(
                placement,
                actors=spec.actors,
                replicas=spec.replicas,
                rate=rate,
                start_timeout=spec.start_timeout,
                changed=self._changed,
                stir=self._stir.set,
            ),
            changed=self._changed,
            stir=self._stir.set,
            joined=self._take_in,
            on_event=self._on_event,
            replicas=spec.replicas,
            start_timeout=spec.start_timeout,
        )
        await self._node_pool.hand_out(spec_of)
        tasks.start_soon(self._keep_time, tasks)
        tasks.start_soon(self._keep_publishing)
        tasks.start_soon(self._keep_order_here)
        await self._all_serve()

    async def _all_serve(self) -> None:
        """Wait until every shard that is not lost has a leader, and its follower has caught up."""
        placement = self._placement
        assert placement is not None
        while True:
            waits = False
            for plan in placement.plan.shards:
                member = placement.leader_status(plan.shard)
                if not plan.leader:
                    continue
                if member is not None and member.state == "failed":
                    raise ActorFailedError(
                        f"{actor_name(plan.shard)} does not start: {member.reason}"
                    )
                waits = waits or member is None or not member.leads
                waits = waits or bool(plan.follower and not plan.caught_up)
            if not waits:
                return
            await self._changed()

    async def _changed(self) -> None:
        """Wait for a possible change of the placement, for a moment at most."""
        with anyio.move_on_after(_TICK):
            await self._news.wait()

    # ------------------------------------------------------------------ more nodes, and fewer

    async def rebalance(self, command: Rebalance) -> RebalanceReply:
        """Spread the slots evenly over some nodes; see `Resizing.asked`."""
        if self._resizing is None or self._end is not None:
            raise RejectedError("this cluster is not open yet, or closing: nothing is moved now")
        return await self._resizing.asked(command)

    def _take_in(self, nodes: Sequence[str]) -> None:
        """Add nodes that have joined to the placement."""
        assert self._placement is not None
        for node in nodes:
            self._placement.joined(node)
        self._awaited |= set(nodes)
        self._stir.set()

    # ------------------------------------------------------------------ heartbeats

    async def heartbeat(self, connection: Connection, heartbeat: Heartbeat) -> HeartbeatReply:
        """Process a node's heartbeat, and reply once there is news for it, or after a while."""
        if heartbeat.host != self._id:
            # It is another host's, whose place this one has taken
            return HeartbeatReply(0.0, leave="keep")
        node, placement = heartbeat.node, self._placement
        if placement is None or node not in self._machines:
            raise InvalidRequestError(f"{node} is no node of this cluster")
        self._lines[connection] = node
        self._hung_up.discard(node)
        self._awaited.discard(node)
        heard = self._events_to.get(node, 0)
        for number, (kind, actor, detail) in enumerate(heartbeat.events, heartbeat.events_from):
            if number >= heard:
                self._on_event(kind, actor, detail)
        self._events_to[node] = max(heard, heartbeat.events_from + len(heartbeat.events))
        placement.heard(node, heartbeat.replicas)
        self._stats_queries.heard(node, heartbeat.answered)
        self._stir.set()
        if heartbeat.ended is not None:
            self._killed[node] = heartbeat.ended
            self._tell_news()
        with anyio.move_on_after(self._spec.heartbeat_interval):
            while not self._has_news_for(heartbeat):
                await self._news.wait()
        return self._grant(heartbeat)

    def _has_news_for(self, heartbeat: Heartbeat) -> bool:
        if self._leave is not None or (self._end is not None and heartbeat.ended is None):
            return True
        if heartbeat.asked < self._stats_queries.number:
            return True
        node, placement = heartbeat.node, self._placement
        assert placement is not None
        return (
            self._end is None and heartbeat.known < placement.changed_for(node) <= self._published
        )

    def _grant(self, heartbeat: Heartbeat) -> HeartbeatReply:
        """The reply to a heartbeat: a lease and assignments, as far as the plan is stored."""
        node, placement = heartbeat.node, self._placement
        assert placement is not None
        events_to = self._events_to[node]
        if self._leave is not None:
            self._left.add(node)
            self._tell_news()
            return HeartbeatReply(0.0, leave=self._leave, events_to=events_to)
        end = self._end if heartbeat.ended is None else None
        assignments = None
        if placement.changed_for(node) <= self._published:
            if heartbeat.known < placement.changed_for(node):
                assignments = placement.assignments(node)
            placement.granted(node, time.monotonic())
            return HeartbeatReply(
                self._lease, assignments, end, None, events_to, self._stats_queries.number
            )
        return HeartbeatReply(0.0, None, end, None, events_to, self._stats_queries.number)

    def disconnected(self, connection: Connection) -> None:
        """React to a node's closed connection: if its machine closed it, the agent has ended."""
        node = self._lines.pop(connection, None)
        if node is not None and not connection.timed_out:
            self._hung_up.add(node)

    async def _keep_time(self, tasks: TaskGroup) -> None:
        """Tick the leases and the placement until cancelled, and restart agents that ended."""
        placement = self._placement
        assert placement is not None
        while True:
            await anyio.sleep(_TICK)
            for node in self._awaited:
                self._leases.heard(node)  # it is on its way
            before = placement.nodes
            placement.tick(time.monotonic())
            for node in set(before) - set(placement.nodes):
                self._tell_news()
                if node in self._hung_up and self._end is None:
                    tasks.start_soon(self._restart_node, node)
            if self._replica_manager is not None:
                placement.heard(self._here, self._replica_manager.replicas())
            if placement.plan.version != self._published:
                self._stir.set()

    async def _restart_node(self, node: str) -> None:
        """Restart the agent of a node that is available and whose last agent has ended."""
        assert self._spec_of is not None
        now = time.monotonic()
        spec = self._spec
        policy = self._restarts.setdefault(
            node, RestartPolicy(spec.restart_intensity, spec.restart_period)
        )
        delay = policy.next_delay(now, 0.0)
        if delay is None:
            self._on_event(EventKind.NODE_GIVEN_UP, "", f"the program of {node} keeps ending")
            return
        await anyio.sleep(delay)
        async with self._starting:
            if self._end is not None or node in self._lines.values():
                return
            deadline = time.monotonic() + spec.start_timeout
            try:
                joined = await self._node_pool.restart(node, self._spec_of, deadline)
            except OSError as error:  # such as no open file being left
                self._on_event(
                    EventKind.NODE_MISSING, "", f"{node} cannot be started again: {error}"
                )
                return
            if not joined:
                self._on_event(EventKind.NODE_MISSING, "", f"{node} did not join again")

    def request_publish(self) -> None:
        """Report this node's replicas to the placement, and publish its plan, at once."""
        if self._placement is not None and self._replica_manager is not None:
            self._placement.heard(self._here, self._replica_manager.replicas())
        self._stir.set()

    async def _keep_publishing(self) -> None:
        """Store each changed plan, then act on it, until cancelled."""
        while True:
            await self._stir.wait()
            self._stir.clear()
            try:
                await self._publish()
            except (OSError, TimeoutError) as error:
                # No node acts on a plan that is not stored; another host would not have more room.
                logger.warning("what was decided cannot be written down: %s", error)
                if not self._told_of_disk:
                    self._on_event(EventKind.PLAN_NOT_WRITTEN, "", f"{error} (setting: scratch)")
                self._told_of_disk = True
                await anyio.sleep(_DISK_PAUSE)
                self._stir.set()
            else:
                self._told_of_disk = False
                self._tell_news()

    async def _keep_order_here(self) -> None:
        """Carry out this node's own assignments."""
        placement, members = self._placement, self._replica_manager
        assert placement is not None
        assert members is not None
        while self._end is None:
            # What is not on the disk is not acted upon.
            if self._known_here < self._published == placement.plan.version:
                assignments = placement.assignments(self._here)
                await members.carry_out(assignments)
                self._known_here = assignments.version
            else:
                await self._news.wait()

    async def _publish(self) -> None:
        placement = self._placement
        assert placement is not None
        for event in placement.take_events():
            self._on_event(*event)
        if placement.plan.version != self._published:
            version, table = placement.plan.version, placement.plan.table
            encoded = msgspec.json.encode(placement.plan)
            assert self._plan_file is not None
            assert self._on_table is not None
            if self._spec.persist and table is not None and table != self._noted:
                shards = len(placement.plan.shards)
                await on_daemon_thread(_FILE_TIMEOUT, self._on_table, shards, table)
                self._noted = table
            await on_daemon_thread(_FILE_TIMEOUT, self._plan_file.write, encoded)
            self._published = version

    def _tell_news(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ shard map and status

    async def shard_map(self, version: int, wait: float) -> Raw | Acknowledged:
        """The encoded shard map once it is newer than `version`; `Acknowledged` after a wait."""
        with anyio.move_on_after(wait):
            while self._published <= version:
                await self._news.wait()
        if self._published <= version:
            return Acknowledged()
        places = self.current_shard_map()
        if self._encoded_of is not places:  # once for all who ask
            self._encoded, self._encoded_of = Raw(_encode(places)), places
        return self._encoded

    def current_shard_map(self) -> ShardMap:
        """The current shard map."""
        if self._places is None or self._places.version != self._published:
            self._places = self._make_places()
        return self._places

    def _make_places(self) -> ShardMap:
        assert self._placement is not None
        places = locations_of(self._placement, self._machines)
        table = self._placement.plan.table
        assert table is not None
        certificate = self._identity.certificate
        return ShardMap(self._published, table, places, certificate, self._closing, self._closed)

    async def hear(self, timeout: float) -> None:
        """Have the other nodes ask their actors how they are doing; see `stats_query.hear`."""
        if self._placement is not None:
            await self._stats_queries.ask(set(self._placement.nodes) - {self._here}, timeout)

    def actors(self) -> tuple[ActorStatus, ...]:
        """The status of the shards' actors."""
        return actors_of(self._placement) if self._placement is not None else ()

    def nodes(self) -> tuple[NodeStatus, ...]:
        """The status of the nodes."""
        placement = self._placement
        if placement is None:
            return ()
        heard = {**self._stats_queries.heard_at, self._here: time.time()}
        return nodes_of(placement, self._machines, heard)

    # ------------------------------------------------------------------ ending

    async def end(self, timeout: float, reason: str) -> dict[str, str]:
        """Have the other nodes drain and end their actors.

        Returns:
            What became of those that did not, by name.
        """
        placement = self._placement
        if placement is None:
            return {}
        self._end = EndNode(reason, timeout)
        self._tell_news()
        others = [node for node in placement.nodes if node != self._here]
        with anyio.move_on_after(timeout):
            while set(others) & set(placement.nodes) - set(self._killed):
                await self._news.wait()
        killed: dict[str, str] = {}
        for node in others:
            silent = "the node did not answer" if node in placement.nodes else "the node is lost"
            found = self._killed.get(node, {"its actors": silent})
            killed |= {f"{name} on {node}": what for name, what in found.items()}
        return killed

    async def tell_end(self, reason: str, *, closed: bool = False) -> None:
        """Tell all clients that the actors have ended, and why.

        Args:
            reason: Why.
            closed: Whether this host is to end as well.
        """
        placement = self._placement
        if placement is None:
            return
        self._closing, self._closed = reason, closed
        placement.plan.version += 1
        self._stir.set()
        with anyio.move_on_after(_LEAVING):
            while self._published < placement.plan.version:
                await self._news.wait()

    def located(self, actor: str, detail: str) -> str:
        """The detail of an event of this node's actor, with the node and the actor's role."""
        if self._replica_manager is None:
            return detail
        return self._replica_manager.located(actor, detail, self._here)

    def unclean_leaders(self, ended: Mapping[str, str]) -> dict[str, str]:
        """This node's unclean shutdowns, excluding follower replicas."""
        return (
            self._replica_manager.unclean_leaders(ended)
            if self._replica_manager is not None
            else dict(ended)
        )

    async def leave(self, *, remove: bool) -> None:
        """Release the other nodes: their agents end."""
        placement = self._placement
        self._leave = "remove" if remove else "keep"
        self._tell_news()
        if placement is not None:
            others = {node for node in placement.nodes if node != self._here}
            with anyio.move_on_after(_LEAVING):
                while others - self._left:
                    await self._news.wait()
        await self._node_pool.close()
