"""Nodes that come and go while the cluster runs: what moves, for how long, and who answers."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

from flowgentic_actors.engine.slots import SLOTS
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.conditions import Conditions
from tests.simulation.losses import Spread, spread

Change: TypeAlias = Literal["one more", "one less", "one less, and one lost", "after a cut"]

CHANGES: Final[tuple[Change, ...]] = (
    "one more",
    "one less",
    "one less, and one lost",
    "after a cut",
)

_STEP = 0.1
_PATIENCE = 3600.0


class Resized(Struct, frozen=True, kw_only=True):
    """What a change of the nodes led to.

    Attributes:
        nodes: Nodes before.
        change: What it was.
        copied: Slots that were copied to another shard.
        left: Slots that another node answers for in the end.
        needed: Slots that had to get to another node in any case.
        begun_anew: Moves that were given up, because of what happened meanwhile.
        seconds: Until all was in its place, with two copies of everything.
        silences: Seconds for which nobody answered for a slot.
        two_answered: Moments in which two shards could have answered for one slot.
        unstored: Slots for which somebody answered who did not have their data.
        most_led: Shards that the busiest node led in the end.
        busy: Share of that time in which the host's loop was busy.
    """

    nodes: int
    change: str
    copied: int
    left: int
    needed: int
    begun_anew: int
    seconds: float
    silences: Spread
    two_answered: int
    unstored: int
    most_led: int
    busy: float


def resized(
    nodes: int, change: Change, seed: int, *, conditions: Conditions | None = None
) -> Resized:
    """Change the nodes of a cluster.

    Raises:
        TimeoutError: If that does not come to an end.
    """
    cluster = SimulatedCluster(nodes, seed, conditions)
    cluster.open(120.0)
    cluster.run(3.0)
    wanted, without, needed = _prepare(cluster, change)
    before, seen = _homes(cluster), len(cluster.events)
    start, worked = cluster.agenda.now, cluster.worked
    course = cluster.rebalance(wanted, without)
    loses = change == "one less, and one lost"
    while not (course.done and cluster.complete):
        if loses and cluster.placement.plan.moves:
            loses = False
            cluster.power_off([_concerned(cluster)])
        cluster.run(_STEP)
        if cluster.agenda.now > start + _PATIENCE:
            raise TimeoutError(f"{change}: not done after {_PATIENCE:g} simulated seconds")
    seconds = cluster.agenda.now - start
    busy = (cluster.worked - worked) / seconds
    cluster.run(5.0)  # whoever still answers wrongly is found
    after = _homes(cluster)
    events = [event for _, event in cluster.events[seen:]]
    led = [plan.leader for plan in cluster.placement.plan.shards if not plan.retired]
    return Resized(
        nodes=nodes,
        change=change,
        copied=sum(int(e.detail.split()[0]) for e in events if e.kind == "slots_moved"),
        left=sum(one != other for one, other in zip(before, after, strict=True)),
        needed=needed,
        begun_anew=sum(event.kind == "slots_stayed" for event in events),
        seconds=seconds,
        silences=spread(cluster.silences),
        two_answered=len(cluster.two_answered),
        unstored=len(cluster.unstored),
        most_led=max(map(led.count, set(led))),
        busy=busy,
    )


def _prepare(cluster: SimulatedCluster, change: Change) -> tuple[list[str], list[str], int]:
    """Have the change happen.

    Returns:
        The nodes to use, those to do without, and how many slots have to get to another node.
    """
    if change == "one more":
        cluster.join()
        nodes = cluster.placement.nodes
        return nodes, [], SLOTS // len(nodes)
    if change == "after a cut":
        names = sorted(set(cluster.nodes) - {cluster.host})
        cut = set(cluster.chance.random.sample(names, 3 * len(cluster.nodes) // 10))
        cluster.network.cut |= cut
        cluster.run(10.0)
        cluster.restore(cut)
        while not cut <= set(cluster.placement.nodes):
            cluster.run(_STEP)
        cluster.settle(120.0)
        nodes = cluster.placement.nodes
        nothing = set(nodes) - set(_homes(cluster))
        return nodes, [], len(nothing) * SLOTS // len(nodes)
    gone = cluster.chance.random.choice(sorted(set(cluster.nodes) - {cluster.host}))
    return [n for n in cluster.placement.nodes if n != gone], [gone], _homes(cluster).count(gone)


def _homes(cluster: SimulatedCluster) -> list[str]:
    """The node that answers for each slot."""
    plan = cluster.placement.plan
    assert plan.table is not None
    return [plan.shards[shard].leader for shard in plan.table.shards]


def _concerned(cluster: SimulatedCluster) -> str:
    """A node that has part in what moves now, and is neither the host's nor without a copy."""
    plan = cluster.placement.plan
    concerned = [plan.shards[n] for move in plan.moves for n in (move.target, move.source)]
    return next(shard.leader for shard in concerned if shard.leader != cluster.host)
