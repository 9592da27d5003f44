"""A cluster whose nodes move slots, without sockets and in a time of its own.

It is a model: its shards are lists of writes, its nodes hear and tell late, or not at all. Clients
write all the time, and in the end whoever has a slot has what was acknowledged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.rebalancing import Rebalancing
from flowgentic_actors.cluster.protocol.assignments import (
    NodeAssignments,
    ReplicaStatus,
)
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.slots import SLOTS, SlotSet
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.migration.ownership import SlotOwnership
from flowgentic_actors.shard.progress import MigrationStatus
from tests.support.placements import member, placement

# ---------------------------------------------------------------------- what is ordered


def ownership(host: Placement, shard: int) -> SlotOwnership:
    plan = host.plan.shards[shard]
    found = [
        assignment.ownership
        for assignment in host.assignments(plan.leader).per_shard
        if assignment.shard == shard
    ]
    assert found[0] is not None
    return found[0]


# ---------------------------------------------------------------------- a cluster that does it


@dataclass
class FakeShard:
    """What is stored of a shard, wherever its copies are."""

    journal: list[tuple[int, int]] = field(default_factory=list)  # (slot, write)
    has: dict[int, set[int]] = field(default_factory=dict)  # writes by slot

    def write(self, slot: int, number: int) -> None:
        self.journal.append((slot, number))
        self.has.setdefault(slot, set()).add(number)

    def forget_all_but(self, slots: Collection[int]) -> None:
        for slot in set(self.has) - set(slots):
            del self.has[slot]


@dataclass
class Take:
    move: int
    position: int = 0
    steps: int = 0
    near: bool = False
    done: bool = False
    failed: bool = False


class Leader:
    """The process that leads a shard."""

    def __init__(self, shard: FakeShard, epoch: int) -> None:
        self.shard = shard
        self.epoch = epoch
        self.ownership: SlotOwnership | None = None
        self.owned, self.held = SlotSet(), SlotSet()
        self.hold = 0, 0
        self.take: Take | None = None
        self.stale = 0

    def told(self, ownership: SlotOwnership) -> None:
        before, self.ownership = self.ownership, ownership
        pull = ownership.pull
        if before == ownership:
            return
        if before is None:
            self.stale = pull.move if pull else 0
        self.owned, self.held = SlotSet(ownership.owned), SlotSet(ownership.frozen)
        if ownership.frozen_for != self.hold[0]:
            self.hold = ownership.frozen_for, len(self.shard.journal)
        if pull is None:
            self.shard.forget_all_but(list(self.owned))
        elif pull.move != self.stale and (self.take is None or self.take.move != pull.move):
            self.take = Take(pull.move)
            self.shard.forget_all_but(list(self.owned))

    def answers(self, slot: int) -> bool:
        return slot in self.owned and slot not in self.held

    def step(self, source: Leader | None, most: int) -> None:
        """Take some entries over."""
        take, ownership = self.take, self.ownership
        if take is None or ownership is None or ownership.pull is None or source is None:
            return
        if take.done or take.failed or ownership.pull.move != take.move:
            return
        slots = SlotSet(ownership.pull.slots)
        end = min(len(source.shard.journal), take.position + most)
        for slot, number in source.shard.journal[take.position : end]:
            if slot in slots and number in source.shard.has.get(slot, ()):
                self.shard.write(slot, number)
        take.position, take.steps = end, take.steps + 1
        take.near = take.near or len(source.shard.journal) - end < 10
        if source.hold[0] == take.move and end >= source.hold[1]:
            take.done = True

    @property
    def migration(self) -> MigrationStatus | None:
        take = self.take
        if take is None:
            return None
        return MigrationStatus(take.move, take.steps, take.near, take.done, bool(take.failed))


class World:
    """A host, nodes, and clients.

    Attributes:
        mute: Nodes that neither hear nor tell, and serve all the same.
        stuck: Shards that take nothing over.
        on_step: Called before each step.
    """

    def __init__(
        self,
        nodes: str,
        seed: int = 0,
        *,
        replicas: int = 1,
        actors: int = 1,
        recovers: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.replicas, self.actors = replicas, actors
        count = len(nodes) * actors
        plan = ClusterPlan(version=0, shards=[], table=even_table(count, 2))
        self.host = placement(plan, nodes, replicas=replicas, place=False, recovers=recovers)
        self.host.place([nodes[shard // actors] for shard in range(count)])
        self.shards: dict[int, FakeShard] = {}
        self.up = set(nodes)
        self.assignments: dict[str, NodeAssignments] = {}
        self.leaders: dict[tuple[str, int], Leader] = {}
        self.epochs: Counter[int] = Counter()
        self.acknowledged: dict[int, set[int]] = {}
        self.written = 0
        self.steps = 0
        self.mute: set[str] = set()
        self.stuck: set[int] = set()
        self.pace = 1.0  # how often a node is heard
        self.most = 50
        self.on_step: Callable[[], None] = lambda: None
        self.events: list[str] = []
        while not all(self._serves(plan) for plan in self.host.plan.shards):
            self.step()

    def _serves(self, plan: ShardPlan) -> bool:
        found = self.host.leader_status(plan.shard)
        return found is not None and found.leads and (plan.caught_up or not plan.follower)

    def join(self, nodes: str) -> None:
        self.up |= set(nodes)
        for node in nodes:
            self.host.joined(node)

    def lose(self, node: str) -> None:
        self.up.discard(node)
        self.assignments.pop(node, None)
        for key in [key for key in self.leaders if key[0] == node]:
            del self.leaders[key]
        self.host.lost(node, "power")

    def leader(self, shard: int) -> Leader | None:
        """Who answers for a shard."""
        return self.leaders.get((self.host.plan.shards[shard].leader, shard))

    def restart(self, shard: int) -> None:
        """The process of its leader ends; another one is told the same."""
        leader = self.host.plan.shards[shard].leader
        old = self.leaders[leader, shard]
        new = self.leaders[leader, shard] = self._make(shard)
        assert old.ownership is not None
        new.told(old.ownership)

    def _make(self, shard: int) -> Leader:
        self.epochs[shard] += 1
        return Leader(self.shards.setdefault(shard, FakeShard()), self.epochs[shard])

    # ------------------------------------------------------------------ what goes on

    async def changed(self) -> None:
        self.step()
        await anyio.lowlevel.checkpoint()

    def step(self) -> None:
        self.steps += 1
        self.on_step()
        for node in sorted(self.up - self.mute):
            if self.rng.random() < self.pace:
                self.heartbeat(node)
        for (_, shard), leader in self.leaders.items():
            if leader.ownership is not None and leader.ownership.pull and shard not in self.stuck:
                number = int(leader.ownership.pull.name.removeprefix("shard-"))
                leader.step(self.leader(number), self.rng.randrange(1, self.most))
        self.write(5)
        self.events += [event.kind for event in self.host.take_events()]

    def heartbeat(self, node: str) -> None:
        """A node tells how it is, and does what it is told."""
        assignments = self.assignments.get(node, NodeAssignments(0, ()))
        self.host.heard(
            node, [self._member(node, assignment) for assignment in assignments.per_shard]
        )
        if self.host.changed_for(node) <= assignments.version:
            return
        assignments = self.assignments[node] = self.host.assignments(node)
        wanted = {
            (node, assignment.shard)
            for assignment in assignments.per_shard
            if assignment.role == "leader"
        }
        for key in [key for key in self.leaders if key[0] == node and key not in wanted]:
            del self.leaders[key]
        for assignment in assignments.per_shard:
            if assignment.role == "leader":
                leader = self.leaders.get((node, assignment.shard))
                if leader is None:
                    leader = self.leaders[node, assignment.shard] = self._make(assignment.shard)
                assert assignment.ownership is not None
                leader.told(assignment.ownership)

    def _member(self, node: str, assignment: Assignment) -> ReplicaStatus:
        leader = self.leaders.get((node, assignment.shard))
        if assignment.role == "follower" or leader is None:
            return member(assignment, node)
        caught_up = assignment.follower in self.up
        told = {"migration": leader.migration, "epoch": leader.epoch}
        return member(assignment, node, caught_up=caught_up, **told)

    def write(self, count: int, slots: Sequence[int] = range(SLOTS)) -> int:
        """Clients write what somebody answers; how many writes were acknowledged."""
        done = 0
        for _ in range(count):
            self.written += 1
            slot = self.rng.choice(slots)
            takers = [
                leader
                for (node, shard), leader in self.leaders.items()
                if leader.answers(slot) and node in self.up
                if self.host.plan.shards[shard].leader == node
            ]
            assert len(takers) <= 1
            for leader in takers:
                leader.shard.write(slot, self.written)
                self.acknowledged.setdefault(slot, set()).add(self.written)
                done += 1
        return done

    # ------------------------------------------------------------------ what is wanted

    async def rebalance(self, nodes: str) -> None:
        self.host.set_eligible_nodes(nodes)
        try:
            with anyio.fail_after(60):
                await self.rebalancing().run(list(nodes))
        finally:
            self.events += [event.kind for event in self.host.take_events()]

    def rebalancing(self) -> Rebalancing:
        return Rebalancing(
            self.host,
            actors=self.actors,
            replicas=self.replicas,
            rate=1,
            start_timeout=20.0,
            changed=self.changed,
            stir=lambda: None,
        )

    def check(self, nodes: str) -> None:
        """Slots are spread evenly, every shard that has any has its copies, nothing was lost."""
        for _ in range(5):
            self.pace = 1.0
            self.mute = set()
            self.step()
        table, plans = self.host.plan.table, self.host.plan.shards
        assert table is not None
        assert self.host.plan.moves == []
        owners = [plans[shard] for shard in table.owners]
        assert Counter(p.leader for p in owners) == dict.fromkeys(nodes, self.actors)
        counts = Counter(table.shards).values()
        assert max(counts) - min(counts) <= 1
        for plan in owners:
            if self.replicas == 2:
                assert plan.follower in nodes
                assert plan.follower != plan.leader
        assert all(p.retired for p in plans if p.shard not in table.owners)
        self.check_writes()

    def check_writes(self) -> None:
        table = self.host.plan.table
        assert table is not None
        for slot, writes in self.acknowledged.items():
            missing = writes - self.shards[table.shards[slot]].has.get(slot, set())
            assert not missing, f"slot {slot} is without {missing}"
        for (_, number), leader in self.leaders.items():
            assert set(leader.shard.has) <= {s for s, o in enumerate(table.shards) if o == number}
