"""Shard map and status of a cluster of several nodes, made from its placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flowgentic_actors.cluster.nodes.cluster_plan import ShardPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus, actor_name
from flowgentic_actors.cluster.protocol.host import ShardLocation
from flowgentic_actors.cluster.protocol.status import ActorStatus, NodeStatus, known_stats
from flowgentic_actors.wire.addresses import TcpAddress


def locations_of(placement: Placement, machines: Mapping[str, str]) -> tuple[ShardLocation, ...]:
    """The location of each shard.

    Args:
        placement: What decides.
        machines: The machine of each node.
    """
    places = []
    for plan in placement.plan.shards:
        member = placement.leader_status(plan.shard)
        there = member is not None and member.leads
        places.append(
            ShardLocation(
                actor_name(plan.shard),
                machines.get(plan.leader, ""),
                member.path if member is not None and there else "",
                *_host_and_port(member if there else None),
                _why_lost(plan),
                plan.retired,
            )
        )
    return tuple(places)


def actors_of(placement: Placement) -> tuple[ActorStatus, ...]:
    """The status of the shards' actors, without shards that have ended for good."""
    table = placement.plan.table
    slots = Counter(table.shards if table is not None else ())
    return tuple(
        _actor_status(plan, placement.leader_status(plan.shard), slots[plan.shard])
        for plan in placement.plan.shards
        if not plan.retired
    )


def nodes_of(
    placement: Placement, machines: Mapping[str, str], heard: Mapping[str, float]
) -> tuple[NodeStatus, ...]:
    """The status of all nodes, lost ones included.

    Args:
        placement: What decides.
        machines: The machine of each node.
        heard: When each was heard last.
    """
    up, plan = placement.nodes, placement.plan
    return tuple(
        NodeStatus(
            name=node,
            state="lost" if node not in up else "spare" if node in plan.spare else "up",
            leads=sum(shard.leader == node for shard in plan.shards),
            follows=sum(shard.follower == node for shard in plan.shards),
            last_heard=heard.get(node),
        )
        for node in machines
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


def _actor_status(plan: ShardPlan, member: ReplicaStatus | None, slots: int) -> ActorStatus:
    state = "lost" if plan.lost else member.state if member is not None else "starting"
    return ActorStatus(
        name=actor_name(plan.shard),
        shard=plan.shard,
        node=plan.leader or plan.lost,
        pid=member.pid or None if member is not None else None,
        epoch=member.epoch if member is not None else 0,
        state=state,
        restarts=member.restarts if member is not None else 0,
        reason=member.reason if member is not None else "",
        as_of=member.as_of if member is not None else None,
        last_heard=member.last_heard if member is not None else None,
        slots=slots,
        replica_node=plan.follower,
        replica_ready=plan.caught_up,
        **known_stats(member.stats if member is not None else {}),
    )
