"""Clusters whose nodes are told and heard without sockets."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.leases import DRIFT, GrantedLeases
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus
from flowgentic_actors.shard.assignment import Assignment

TIMEOUT, TICK = 3.0, 0.1
LEASE = TIMEOUT * (1 / (1 + DRIFT) - 0.1)
NODES = ("a", "b", "c", "d")


def placement(
    plan: ClusterPlan | None = None,
    nodes: Collection[str] = NODES,
    *,
    place: bool = True,
    replicas: int = 2,
    degrade: bool = True,
    recovers: bool = False,
    lease: float = LEASE,
) -> Placement:
    """One shard for each node, a cluster that has just been opened."""
    made = Placement(
        plan or ClusterPlan(version=0, shards=[]),
        "a",
        replicas=replicas,
        degrade=degrade,
        recovers=recovers,
        leases=GrantedLeases(lease, TIMEOUT, TICK),
    )
    for node in nodes:
        made.joined(node)
    if place:
        made.place(list(nodes))
    return made


def member(assignment: Assignment, node: str, **changes: object) -> ReplicaStatus:
    leads = assignment.role == "leader"
    made = ReplicaStatus(
        shard=assignment.shard,
        state="running",
        term=assignment.term,
        leads=leads,
        caught_up=False,
        resync_required=False,
        path=f"/{node}/{assignment.shard}",
        address=f"{node}:{assignment.shard}",
        pid=1,
        epoch=1,
        restarts=0,
        reason="",
        stats={},
    )
    return msgspec.structs.replace(made, **changes)


def tell(host: Placement, node: str, **changes: object) -> None:
    """A beat of a node that does what its orders say."""
    host.heard(
        node,
        [member(assignment, node, **changes) for assignment in host.assignments(node).per_shard],
    )


def kinds(host: Placement) -> list[str]:
    return [event.kind for event in host.take_events()]


def caught_up(nodes: Collection[str] = NODES) -> Placement:
    """A cluster in which every shard has two whole copies."""
    made = placement(nodes=nodes)
    for node in nodes:
        host_leads = {d.shard for d in made.assignments(node).per_shard if d.role == "leader"}
        made.heard(
            node,
            [
                member(assignment, node, caught_up=assignment.shard in host_leads)
                for assignment in made.assignments(node).per_shard
            ],
        )
    assert all(plan.caught_up for plan in made.plan.shards)
    made.take_events()
    return made
