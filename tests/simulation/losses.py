"""Nodes that lose power, and nodes that are cut off: who knows when, and what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from tests.simulation.cluster import Client, SimulatedCluster, TellPolicy
from tests.simulation.conditions import Conditions

_PATIENCE = 30.0
_STEP = 0.1


class Spread(Struct, frozen=True):
    """How figures are spread.

    Attributes:
        count: How many there are.
        p50: Half of them are not above it.
        p99: Of a hundred, ninety-nine are not above it.
        most: The largest.
    """

    count: int
    p50: float
    p99: float
    most: float


def spread(figures: Sequence[float]) -> Spread:
    """How figures are spread; all 0 when there are none."""
    if not figures:
        return Spread(0, 0.0, 0.0, 0.0)
    ordered = sorted(figures)
    last = len(ordered) - 1
    return Spread(len(ordered), ordered[last // 2], ordered[round(last * 0.99)], ordered[-1])


class PowerLosses(Struct, frozen=True, kw_only=True):
    """What losses of power led to.

    Attributes:
        at_once: Nodes lost at the same time.
        detected: Seconds until the host counted a node as lost.
        leading: Seconds until the host knew that another node leads its shard.
        clients: Seconds until a client knew, of every client and shard.
        last_client: Seconds until the last client knew, of every loss.
        lost_shards: Shards both of whose nodes were among the lost.
        others_lost: Nodes that were counted as lost and had lost nothing.
        two_answered: Moments in which two nodes could have answered for one shard.
        busy: Share of time in which the host's loop was busy.
        samples: What `clients` is made of.
    """

    at_once: int
    detected: Spread
    leading: Spread
    clients: Spread
    last_client: Spread
    lost_shards: int
    others_lost: int
    two_answered: int
    busy: float
    samples: tuple[float, ...]


def power_losses(
    nodes: int,
    at_once: int,
    times: int,
    seed: int,
    policy: TellPolicy,
    *,
    clients: int | None = None,
    conditions: Conditions | None = None,
) -> PowerLosses:
    """Have nodes lose power, several times over, in one cluster."""
    cluster = SimulatedCluster(nodes, seed, conditions, policy)
    cluster.open(120.0)
    cluster.attach(nodes if clients is None else clients)
    cluster.run(3.0)
    detected: list[float] = []
    leading: list[float] = []
    knew: list[float] = []
    last: list[float] = []
    dead: set[str] = set()
    lost_shards = 0
    began, worked = cluster.agenda.now, cluster.worked
    for _ in range(times):
        alive = sorted(set(cluster.nodes) - dead - {cluster.host})
        gone = cluster.chance.random.sample(alive, at_once)
        dead |= set(gone)
        plans = cluster.placement.plan.shards
        led = {plan.shard: plan.follower for plan in plans if plan.leader in gone}
        watched = {shard for shard, follower in led.items() if follower not in dead}
        lost_shards += len(led) - len(watched)
        cluster.watched = frozenset(watched)
        cluster.run(cluster.chance.random.uniform(0, 0.5))
        start, seen = cluster.agenda.now, len(cluster.events)
        cluster.power_off(gone)
        found = _Found(cluster, watched, dead)
        cluster.on_places = found.look
        while not found.all_know and cluster.agenda.now < start + _PATIENCE:
            cluster.run(_STEP)
            found.look_at_host()
        for when, event in cluster.events[seen:]:
            if event.kind == "node_lost" and event.detail.partition(":")[0] in gone:
                detected.append(when - start)
        leading += [when - start for when in found.leading.values()]
        knew += [when - start for when in found.clients.values()]
        last += [max(found.clients.values()) - start] if found.clients else []
        for _ in range(300):
            if all(plan.caught_up or plan.lost for plan in plans):
                break
            cluster.run(_STEP)
    counted = [e.detail.partition(":")[0] for _, e in cluster.events if e.kind == "node_lost"]
    return PowerLosses(
        at_once=at_once,
        detected=spread(detected),
        leading=spread(leading),
        clients=spread(knew),
        last_client=spread(last),
        lost_shards=lost_shards,
        others_lost=len([name for name in counted if name not in dead]),
        two_answered=len(cluster.two_answered),
        busy=(cluster.worked - worked) / (cluster.agenda.now - began),
        samples=tuple(sorted(knew)),
    )


class _Found:
    """Who knows of the new leaders, and since when."""

    def __init__(self, cluster: SimulatedCluster, watched: set[int], dead: set[str]) -> None:
        self._cluster = cluster
        self._watched = watched
        self._dead = dead
        self.leading: dict[int, float] = {}
        self.clients: dict[tuple[int, int], float] = {}

    @property
    def all_know(self) -> bool:
        clients = len(self._cluster.clients)
        led = len(self.leading) == len(self._watched)
        return led and len(self.clients) >= len(self._watched) * clients

    def look(self, client: Client) -> None:
        """A client was told."""
        for shard, leader in client.leaders.items():
            key = (client.number, shard)
            if shard not in self._watched or not leader or leader in self._dead:
                continue  # it was asked about an earlier loss, or does not know yet
            if key not in self.clients:
                self.clients[key] = self._cluster.agenda.now
                self.leading.setdefault(shard, self._cluster.agenda.now)

    def look_at_host(self) -> None:
        """Without clients, the host's word counts."""
        for shard in self._watched - set(self.leading):
            placement = self._cluster.placement
            member = placement.leader_status(shard)
            if placement.plan.shards[shard].leader in self._dead or member is None:
                continue
            if member.leads:
                self.leading[shard] = self._cluster.agenda.now


class Cut(Struct, frozen=True, kw_only=True):
    """What became of a cluster some of whose nodes were cut off.

    Attributes:
        nodes: Nodes in all.
        cut: Nodes that were cut off, from all others.
        seconds: For how long.
        unreachable: Shards that nobody could reach in the end of that time.
        two_answered: Moments in which two nodes could have answered for one shard.
        lost: Shards that were still lost after all had come back.
        others_lost: Nodes that were counted as lost and had not been cut off.
        back: Seconds from the healing until the last node was back.
        whole: Seconds from the healing until every shard had two whole copies.
        most_led: Shards that the busiest node led in the end.
        lead_nothing: Nodes that led nothing in the end.
        curve: Shards with two copies, with one, and with none that is reached, over time.
    """

    nodes: int
    cut: int
    seconds: float
    unreachable: int
    two_answered: int
    lost: int
    others_lost: int
    back: float
    whole: float
    most_led: int
    lead_nothing: int
    curve: tuple[tuple[float, int, int, int], ...]


def cut_off(
    nodes: int,
    cut: int,
    seconds: float,
    seed: int,
    policy: TellPolicy,
    *,
    clients: int = 0,
    conditions: Conditions | None = None,
) -> Cut:
    """Cut nodes off, and heal the network after a while."""
    cluster = SimulatedCluster(nodes, seed, conditions, policy)
    cluster.open(120.0)
    cluster.attach(clients)
    cluster.run(3.0)
    start = cluster.agenda.now
    names = set(cluster.chance.random.sample(sorted(set(cluster.nodes) - {cluster.host}), cut))
    plans = cluster.placement.plan.shards
    curve = []
    cluster.network.cut |= names
    healed = start + seconds
    back = whole = 0.0
    unreachable = 0
    while cluster.agenda.now < healed + 120.0:
        if cluster.network.cut and cluster.agenda.now >= healed:
            cluster.restore(names)
        two = sum(bool(plan.caught_up and plan.leader) for plan in plans)
        none = sum(not plan.leader for plan in plans)
        curve.append((cluster.agenda.now - start, two, nodes - two - none, none))
        if cluster.agenda.now < healed:
            unreachable = none
        elif not back and len(cluster.placement.nodes) == nodes:
            back = cluster.agenda.now - healed
        if cluster.agenda.now > healed and cluster.complete and back:
            whole = cluster.agenda.now - healed
            break
        cluster.run(_STEP)
    led = Counter(plan.leader for plan in plans)
    counted = {e.detail.partition(":")[0] for _, e in cluster.events if e.kind == "node_lost"}
    return Cut(
        nodes=nodes,
        cut=cut,
        seconds=seconds,
        unreachable=unreachable,
        two_answered=len(cluster.two_answered),
        lost=sum(not plan.leader for plan in plans),
        others_lost=len(counted - names),
        back=back,
        whole=whole,
        most_led=max(led.values()),
        lead_nothing=nodes - len(set(led) - {""}),
        curve=tuple(curve),
    )
