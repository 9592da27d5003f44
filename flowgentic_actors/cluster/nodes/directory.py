"""Shard map and status of a cluster of several nodes, made from its placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
from msgspec import Raw

from flowgentic_actors.cluster.nodes.cluster_plan import ShardPlan
from flowgentic_actors.cluster.nodes.heartbeats import HeartbeatDesk
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus, actor_name
from flowgentic_actors.cluster.protocol.host import ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.status import ActorStatus, NodeStatus, actor_status
from flowgentic_actors.wire.addresses import TcpAddress

_encode = msgspec.msgpack.Encoder().encode


class ShardDirectory:
    """Tells where the shards are, and how they and the nodes are doing.

    Args:
        placement: What decides.
        desk: Tells which version of the plan is stored.
        machines: The machine of each node that there is or was.
        certificate: What the actors prove to other machines.

    Attributes:
        closing: Why there are no actors any more, empty while there are.
        closed: Whether the host ends as well.
    """

    def __init__(
        self,
        placement: Placement,
        desk: HeartbeatDesk,
        machines: Mapping[str, str],
        certificate: str,
    ) -> None:
        self._placement = placement
        self._desk = desk
        self._machines = machines
        self._certificate = certificate
        self._made: tuple[ShardMap, Raw] | None = None
        self.closing = ""
        self.closed = False

    def shard_map(self) -> ShardMap:
        """The shard map of the stored plan."""
        return self._current()[0]

    def encoded_shard_map(self) -> Raw:
        """The shard map, encoded once for all clients."""
        return self._current()[1]

    def _current(self) -> tuple[ShardMap, Raw]:
        version, table = self._desk.published, self._placement.plan.table
        if self._made is None or self._made[0].version != version:
            assert table is not None  # it is decided before the first plan is stored
            locations = tuple(self._location(plan) for plan in self._placement.plan.shards)
            made = ShardMap(version, table, locations, self._certificate, self.closing, self.closed)
            self._made = made, Raw(_encode(made))
        return self._made

    def _location(self, plan: ShardPlan) -> ShardLocation:
        member = self._placement.leader_status(plan.shard)
        if member is not None and not member.leads:
            member = None
        return ShardLocation(
            actor_name(plan.shard),
            self._machines.get(plan.leader, ""),
            member.path if member is not None else "",
            *_host_and_port(member),
            _why_lost(plan),
            plan.retired,
        )

    def actors(self) -> tuple[ActorStatus, ...]:
        """The status of the shards' actors, without shards that have ended for good."""
        table = self._placement.plan.table
        slots = Counter(table.shards if table is not None else ())
        return tuple(
            self._actor_status(plan, slots[plan.shard])
            for plan in self._placement.plan.shards
            if not plan.retired
        )

    def _actor_status(self, plan: ShardPlan, slots: int) -> ActorStatus:
        member = self._placement.leader_status(plan.shard)
        state = member.state if member is not None else "starting"
        return actor_status(
            plan.shard,
            "lost" if plan.lost else state,
            member,
            node=plan.leader or plan.lost,
            slots=slots,
            replica_node=plan.follower,
            replica_ready=plan.caught_up,
        )

    def nodes(self, heard: Mapping[str, float]) -> tuple[NodeStatus, ...]:
        """The status of all nodes, lost ones included.

        Args:
            heard: When each was heard last.
        """
        up, plan = self._placement.nodes, self._placement.plan
        return tuple(
            NodeStatus(
                name=node,
                state="lost" if node not in up else "spare" if node in plan.spare else "up",
                leads=sum(shard.leader == node for shard in plan.shards),
                follows=sum(shard.follower == node for shard in plan.shards),
                last_heard=heard.get(node),
            )
            for node in self._machines
        )


def _why_lost(plan: ShardPlan) -> str:
    if not plan.lost:
        return ""
    if plan.follower:
        return f"its nodes {plan.lost} and {plan.follower} are lost, and no other has a copy"
    return f"its node {plan.lost} is lost, and had the only copy"


def _host_and_port(member: ReplicaStatus | None) -> tuple[str, int]:
    if member is None or not isinstance(member.address, TcpAddress):
        return "", 0
    return member.address.host, member.address.port
