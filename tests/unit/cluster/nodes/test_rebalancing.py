"""Spreading slots over nodes: the layout, what is ordered for a move, and a cluster that does it.

The cluster is a model: its shards are lists of writes, its nodes hear and tell late, or not at all.
Clients write all the time, and in the end whoever has a slot has what was acknowledged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.cluster.nodes import rebalancing
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.rebalancing import Layout, Rebalancing, lay_out
from flowgentic_actors.cluster.protocol.assignments import (
    Assignment,
    NodeAssignments,
    ReplicaStatus,
)
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.slots import SLOTS, SlotSet
from flowgentic_actors.errors import RejectedError
from flowgentic_actors.shard.migration.ownership import SlotOwnership
from flowgentic_actors.shard.progress import MigrationStatus
from tests.conftest import seeds
from tests.support.placements import kinds, member, placement, tell

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalancing, "_PAUSE", 0.0)
    monkeypatch.setattr(rebalancing, "_FAREWELL", 0.0)


# ---------------------------------------------------------------------- the layout


def plan_of(*places: tuple[str, str]) -> ClusterPlan:
    """A plan by leader and follower of each shard; without a leader, it has ended."""
    shards = [
        ShardPlan(shard=number, leader=leader, follower=follower, retired=not leader)
        for number, (leader, follower) in enumerate(places)
    ]
    return ClusterPlan(version=1, shards=shards)


def leaders(plan: ClusterPlan, layout: Layout) -> Counter[str]:
    kept = [plan.shards[shard].leader for shard in layout.keep]
    return Counter([*kept, *(leader for leader, _ in layout.make)])


def test_a_node_that_is_added_gets_shards_and_the_others_keep_theirs() -> None:
    plan = plan_of(("a", ""), ("b", ""))
    layout = lay_out(plan, ["a", "b", "c"], actors=1, replicas=1)
    assert layout == Layout([0, 1], [("c", "")], [])


def test_a_node_that_is_taken_away_loses_its_shards_and_those_with_a_copy_there_are_made_anew() -> (
    None
):
    plan = plan_of(("a", "b"), ("b", "c"), ("c", "a"))
    layout = lay_out(plan, ["a", "b"], actors=1, replicas=2)
    assert layout == Layout([0], [("b", "a")], [1, 2])


def test_a_node_that_came_back_gets_what_another_one_leads_for_it() -> None:
    plan = plan_of(("a", "b"), ("a", "b"))  # b was lost, and a took over
    layout = lay_out(plan, ["a", "b"], actors=1, replicas=2)
    assert layout == Layout([0], [("b", "a")], [1])


def test_nothing_changes_where_all_is_as_it_shall_be() -> None:
    plan = plan_of(("a", "b"), ("b", "a"), ("a", "b"), ("b", "a"))
    assert lay_out(plan, ["a", "b"], actors=2, replicas=2) == Layout([0, 1, 2, 3], [], [])


def test_a_shard_that_has_ended_stays_so() -> None:
    plan = plan_of(("a", ""), ("", ""))
    assert lay_out(plan, ["a", "b"], actors=1, replicas=1) == Layout([0], [("b", "")], [])


def test_a_node_alone_needs_no_second_copies() -> None:
    plan = plan_of(("a", "b"), ("b", "a"))
    assert lay_out(plan, ["a"], actors=1, replicas=2) == Layout([0], [], [1])


NAMES = "abcdefg"


@st.composite
def some_plans(draw: st.DrawFn) -> ClusterPlan:
    places = []
    for _ in range(draw(st.integers(0, 10))):
        leader = draw(st.sampled_from(["", *NAMES]))
        others = [name for name in NAMES if name != leader]
        follower = draw(st.sampled_from(["", *others])) if leader else ""
        places.append((leader, follower))
    return plan_of(*places)


@settings(max_examples=200, deadline=None)
@given(
    plan=some_plans(),
    nodes=st.permutations(NAMES),
    count=st.integers(1, len(NAMES)),
    actors=st.integers(1, 3),
    replicas=st.integers(1, 2),
)
def test_every_node_leads_as_many_and_as_many_as_can_stay(
    plan: ClusterPlan, nodes: list[str], count: int, actors: int, replicas: int
) -> None:
    nodes = nodes[:count]
    layout = lay_out(plan, nodes, actors=actors, replicas=replicas)
    two = replicas == 2 and count > 1

    assert leaders(plan, layout) == Counter(dict.fromkeys(nodes, actors))
    alive = {shard.shard for shard in plan.shards if shard.leader}
    assert {*layout.keep, *layout.end} == alive
    assert not set(layout.keep) & set(layout.end)
    for leader, follower in layout.make:
        assert (follower in nodes and follower != leader) if two else follower == ""
    good = Counter(
        shard.leader
        for shard in plan.shards
        if shard.leader in nodes and (not two or shard.follower in nodes)
    )
    assert len(layout.keep) == sum(min(actors, good[node]) for node in nodes)


def test_second_copies_are_spread_as_well() -> None:
    layout = lay_out(plan_of(), list("abcd"), actors=2, replicas=2)
    assert Counter(follower for _, follower in layout.make) == dict.fromkeys("abcd", 2)


# ---------------------------------------------------------------------- what is ordered


def opened(nodes: str = "abc", replicas: int = 1, shards: int = 0) -> Placement:
    """A cluster with a table, in which every leader serves and every copy is whole."""
    table = even_table(shards or len(nodes), 2)
    plan = ClusterPlan(version=0, shards=[], table=table)
    host = placement(plan, nodes, replicas=replicas)
    for _ in range(2):
        for node in nodes:
            told = [
                member(
                    assignment,
                    node,
                    caught_up=assignment.role == "leader" and bool(assignment.follower),
                )
                for assignment in host.assignments(node).per_shard
            ]
            host.heard(node, told)
    host.take_events()
    return host


def ownership(host: Placement, shard: int) -> SlotOwnership:
    plan = host.plan.shards[shard]
    found = [
        assignment.ownership
        for assignment in host.assignments(plan.leader).per_shard
        if assignment.shard == shard
    ]
    assert found[0] is not None
    return found[0]


SOME = range(5, 50)


def test_who_takes_slots_over_hears_from_whom_and_who_has_them_that_they_may_go() -> None:
    host = opened()
    before = {node: host.changed_for(node) for node in "abc"}
    assert ownership(host, 0).known == ownership(host, 1).known == 0
    third = ownership(host, 2)

    number = host.moves.begin(0, 1, SOME, 77)

    pull = ownership(host, 1).pull
    assert pull is not None
    assert (pull.move, pull.source, pull.name, pull.rate) == (number, "a:0", "shard-0", 77)
    assert list(SlotSet(pull.slots)) == list(SOME)
    assert ownership(host, 0).pull is None
    assert ownership(host, 0).known == ownership(host, 1).known == 1
    assert not ownership(host, 0).frozen
    assert ownership(host, 2) == third
    assert [host.changed_for(node) > before[node] for node in "abc"] == [True, True, False]


def test_who_has_the_slots_is_told_to_hold_them() -> None:
    host = opened()
    number = host.moves.begin(0, 1, SOME, 77)
    before = host.changed_for("a")

    host.moves.freeze(number)

    assert list(SlotSet(ownership(host, 0).frozen)) == list(SOME)
    assert ownership(host, 0).frozen_for == number
    assert not ownership(host, 1).frozen
    assert set(SOME) <= set(SlotSet(ownership(host, 0).owned))
    assert host.changed_for("a") > before


def test_a_source_that_serves_nowhere_is_not_asked_and_one_that_moved_is_found() -> None:
    host = opened()
    host.moves.begin(0, 1, SOME, 77)
    before = host.changed_for("b")

    tell(host, "a", leads=False, address=None)
    pull = ownership(host, 1).pull
    assert pull is not None
    assert pull.source is None
    tell(host, "a", address="elsewhere")
    pull = ownership(host, 1).pull
    assert pull is not None
    assert pull.source == "elsewhere"
    assert host.changed_for("b") > before


def test_slots_are_their_new_shards_by_the_next_table() -> None:
    host = opened()
    number = host.moves.begin(0, 1, SOME, 77)
    host.moves.freeze(number)
    before = {node: host.changed_for(node) for node in "abc"}

    host.moves.commit(number)

    first, second, third = (ownership(host, shard) for shard in range(3))
    assert host.plan.table is not None
    assert host.plan.table.version == 2
    assert (first.since, second.since, third.since) == (2, 2, 1)
    assert first.known == second.known == first.frozen_for == 0
    assert not first.frozen
    assert second.pull is None
    assert set(SOME) <= set(SlotSet(second.owned))
    assert not set(SOME) & set(SlotSet(first.owned))
    assert sum(len(SlotSet(c.owned)) for c in (first, second, third)) == SLOTS
    assert [host.changed_for(node) > before[node] for node in "abc"] == [True, True, False]
    assert kinds(host) == ["slots_moved"]
    assert host.moves.find(number) is None


def test_what_is_decided_is_not_given_up() -> None:
    host = opened(replicas=2)
    number = host.moves.begin(0, 1, SOME, 77)
    host.moves.commit(number)
    table = host.plan.table

    host.moves.give_up(number, "too late")
    host.lost("b", "power")
    host.lost("c", "power")

    assert host.plan.table == table
    assert host.plan.shards[1].leader == "c" or host.plan.shards[1].lost
    assert set(SOME) <= {s for s, shard in enumerate(host.plan.table.shards) if shard == 1}  # type: ignore[union-attr]


def test_slots_that_stay_stay() -> None:
    host = opened()
    before = [ownership(host, shard) for shard in range(3)]
    number = host.moves.begin(0, 1, SOME, 77)
    host.moves.freeze(number)

    host.moves.give_up(number, "so it is")
    host.moves.give_up(number, "twice")

    assert [ownership(host, shard) for shard in range(3)] == before
    assert kinds(host) == ["slots_stayed"]


def test_no_two_attempts_have_the_same_number() -> None:
    host = opened()
    numbers = []
    for _ in range(5):
        numbers.append(host.moves.begin(0, 1, SOME, 77))
        host.moves.freeze(numbers[-1])
        host.moves.give_up(numbers[-1], "again")
    assert len(set(numbers)) == 5
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("held", [False, True])
def test_a_move_is_given_up_when_one_of_the_two_is_arranged_anew(node: str, held: bool) -> None:
    """By the node whose second copy it is that was lost, too: it is another term."""
    host = opened(replicas=2)
    shard = "ab".index(node)
    number = host.moves.begin(0, 1, SOME, 77)
    if held:
        host.moves.freeze(number)
    follower = host.plan.shards[shard].follower
    term = host.plan.shards[shard].term

    host.lost(follower, "power")

    assert host.plan.shards[shard].term > term
    assert host.moves.find(number) is None
    assert not ownership(host, 0).frozen
    assert "slots_stayed" in kinds(host)


def test_a_move_goes_on_when_a_third_shard_is_arranged_anew() -> None:
    host = opened("abcde", replicas=2)  # e's shard has its second copy on a
    number = host.moves.begin(0, 2, SOME, 77)
    host.lost("e", "power")
    assert host.plan.shards[4].leader == "a"
    assert host.moves.find(number) is not None


def test_the_next_host_moves_nothing_that_was_on_its_way() -> None:
    host = opened()
    number = host.moves.begin(0, 1, SOME, 77)
    version = host.plan.version

    host.fail_absent_nodes()

    assert host.moves.find(number) is None
    assert host.plan.version > version
    assert ownership(host, 1).pull is None


def test_a_node_that_is_not_to_be_used_gets_no_copies_and_keeps_what_it_has() -> None:
    host = opened("abcd", replicas=2)
    before = [(plan.leader, plan.follower) for plan in host.plan.shards]

    host.set_eligible_nodes(["a", "b", "c"])
    assert host.plan.spare == ["d"]
    assert [(plan.leader, plan.follower) for plan in host.plan.shards] == before
    host.lost("b", "power")

    now = {plan.shard: plan for plan in host.plan.shards}
    assert now[0].follower == "c"  # it was b
    assert now[1].leader == "c"
    assert now[1].follower == "a"
    host.set_eligible_nodes(["a", "c", "d"])
    assert host.plan.spare == []


def test_a_lost_node_that_is_not_to_be_used_gets_nothing_when_it_is_back() -> None:
    host = opened("abc", replicas=2)
    host.lost("c", "power")
    host.set_eligible_nodes(["a", "b"], without=["c"])
    host.joined("c")
    assert host.plan.spare == ["c"]
    host.lost("b", "power")  # with a alone there would be no second copy
    assert {plan.follower for plan in host.plan.shards if plan.leader == "a"} == {"c"}


def test_the_hosts_own_node_is_always_used() -> None:
    host = opened()
    host.set_eligible_nodes(["b"])
    assert host.plan.spare == ["c"]


def test_a_new_shard_has_no_slots_and_one_that_ended_no_place() -> None:
    host = opened("ab", replicas=2)

    assert host.add_shards([("b", "a"), ("a", "")]) == [2, 3]
    assert [(p.leader, p.follower, p.term) for p in host.plan.shards[2:]] == [
        ("b", "a", 1),
        ("a", "", 1),
    ]
    assert len(SlotSet(ownership(host, 2).owned)) == 0
    host.retire(2)

    assert host.plan.shards[2].retired
    assert 2 not in {
        assignment.shard for node in "ab" for assignment in host.assignments(node).per_shard
    }
    host.lost("b", "power")
    host.joined("b")
    assert host.plan.shards[2].leader == host.plan.shards[2].follower == ""


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


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("actors", [1, 2])
async def test_nodes_are_added_and_taken_away(replicas: int, actors: int) -> None:
    world = World("ab", replicas=replicas, actors=actors)
    world.write(500)
    world.join("cd")
    await world.rebalance("abcd")
    world.check("abcd")
    await world.rebalance("acd")
    world.check("acd")
    await world.rebalance("ad")
    world.check("ad")
    if replicas == 1:
        await world.rebalance("a")
        world.check("a")
    version = world.host.plan.table.version  # type: ignore[union-attr]
    await world.rebalance("ad" if replicas == 2 else "a")
    assert world.host.plan.table.version == version  # type: ignore[union-attr]


async def test_a_node_that_came_back_gets_its_part_again() -> None:
    world = World("abc", replicas=2)
    world.write(500)
    world.lose("b")
    world.join("b")
    assert Counter(plan.leader for plan in world.host.plan.shards) != dict.fromkeys("abc", 1)
    await world.rebalance("abc")
    world.check("abc")


@pytest.mark.parametrize("seed", seeds(15, quick=3))
async def test_whatever_happens_nothing_acknowledged_is_lost(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalancing, "_HELD", 0.02)
    monkeypatch.setattr(rebalancing, "_SILENCE", 0.05)
    monkeypatch.setattr(rebalancing, "_ATTEMPTS", 1000)
    world = World("abcd", seed, replicas=2)
    world.write(300)
    world.pace = 0.3
    world.join("e")
    misfortunes = 12

    def happen() -> None:
        nonlocal misfortunes
        if not misfortunes or world.rng.random() > 0.05:
            return
        misfortunes -= 1
        led = sorted(shard for node, shard in world.leaders if node in world.up)
        match world.rng.randrange(5):
            case 0:
                world.restart(world.rng.choice(led))
            case 1:
                takes = [lead.take for lead in world.leaders.values() if lead.take]
                for take in takes:
                    take.failed = not take.done
            case 2:
                world.mute = set(world.rng.sample("abcde", 2))
            case 3:
                world.mute = set()
                world.stuck = set(world.rng.sample(led, 1))
            case 4 if len(world.up) == 5:
                world.lose("d")
            case _:
                world.mute, world.stuck = set(), set()
        if not misfortunes:
            world.mute, world.stuck = set(), set()

    world.on_step = happen
    await world.rebalance("abce" if seed % 2 else "abcde")
    world.on_step = lambda: None
    world.mute, world.stuck = set(), set()
    await world.rebalance("abce")
    world.check("abce")


async def test_a_take_that_fails_is_begun_anew() -> None:
    world = World("ab")
    world.write(300)
    world.join("c")
    failed = 0

    def fail() -> None:
        nonlocal failed
        for leader in world.leaders.values():
            if leader.take is not None and leader.take.near and not failed:
                leader.take.failed, failed = True, leader.take.move

    world.on_step = fail
    await world.rebalance("abc")
    assert failed
    assert world.events.count("slots_stayed") == 1
    world.check("abc")


async def test_a_target_that_is_started_anew_takes_all_anew() -> None:
    world = World("ab")
    world.write(300)
    world.join("c")
    restarted = 0

    def restart() -> None:
        nonlocal restarted
        for (_, shard), leader in list(world.leaders.items()):
            if leader.take is not None and leader.take.near and not restarted:
                restarted = leader.take.move
                world.restart(shard)

    world.on_step = restart
    await world.rebalance("abc")
    assert restarted
    assert world.events.count("slots_stayed") == 1
    world.check("abc")


@pytest.mark.parametrize("when", ["made", "taking"])
@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_new_node_that_is_lost_on_the_way_is_done_without(when: str, replicas: int) -> None:
    """It had nothing yet that is nowhere else."""
    world = World("abc", replicas=replicas)
    world.write(300)
    world.join("d")

    def lose() -> None:
        new = [plan for plan in world.host.plan.shards if plan.leader == "d"]
        takes = any(lead.take for (node, _), lead in world.leaders.items() if node == "d")
        if "d" in world.up and new and (takes or when == "made"):
            world.lose("d")

    world.on_step = lose
    await world.rebalance("abcd")
    assert "d" not in world.up
    world.check("abc")


async def test_nothing_moves_while_a_shard_with_slots_is_lost() -> None:
    world = World("abc")
    world.write(300)
    world.lose("b")
    version = world.host.plan.table.version  # type: ignore[union-attr]

    with pytest.raises(RejectedError, match=r"shard-1: lost with its node.*Bring the node back"):
        await world.rebalance("ac")

    assert world.host.plan.table.version == version  # type: ignore[union-attr]
    assert world.host.plan.moves == []
    world.join("b")
    await world.rebalance("ac")
    world.check("ac")


async def test_what_was_done_stays_done_when_a_source_is_lost_with_its_slots() -> None:
    world = World("ab")
    world.write(300)
    world.join("c")

    def lose() -> None:
        table = world.host.plan.table
        assert table is not None
        if (
            table.version == 2
            and "b" in world.up
            and any(m.source == 1 for m in world.host.plan.moves)
        ):
            world.lose("b")

    world.on_step = lose
    with pytest.raises(RejectedError, match="shard-1: lost with its node"):
        await world.rebalance("abc")

    assert world.host.plan.moves == []
    assert Counter(world.host.plan.table.shards)[2] > 0  # type: ignore[union-attr]
    world.on_step = lambda: None
    world.join("b")
    await world.rebalance("abc")
    world.check("abc")


async def test_an_actor_that_does_not_start_is_told_of() -> None:
    world = World("ab")
    world.join("c")
    real = world._member

    def broken(node: str, assignment: Assignment) -> ReplicaStatus:
        if node == "c":
            return member(assignment, node, state="failed", leads=False, reason="no memory")
        return real(node, assignment)

    world._member = broken  # type: ignore[method-assign]
    with pytest.raises(RejectedError, match="shard-2 does not start on c: no memory"):
        await world.rebalance("abc")


@pytest.mark.parametrize("held", [False, True])
async def test_silence_is_not_waited_for_for_ever(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalancing, "_SILENCE", 0.05)
    monkeypatch.setattr(rebalancing, "_HELD", 0.05)
    monkeypatch.setattr(rebalancing, "_ATTEMPTS", 3)
    world = World("ab")
    world.write(300)
    world.join("c")

    def fall_silent() -> None:
        move = next(iter(world.host.plan.moves), None)
        world.mute = {"c"} if move is not None and move.held >= held else set()

    world.on_step = fall_silent
    with pytest.raises(RejectedError, match=r"not all of them.*Try again"):
        await world.rebalance("abc")

    assert world.events.count("slots_stayed") == 3
    assert world.host.plan.moves == []
    world.on_step = lambda: None
    world.mute = set()
    await world.rebalance("abc")
    world.check("abc")


async def test_whoever_ends_the_work_leaves_slots_where_they_are() -> None:
    world = World("ab")
    world.write(300)
    world.join("c")
    with anyio.CancelScope() as scope:

        def cancel() -> None:
            if any(move.held for move in world.host.plan.moves):
                scope.cancel()

        world.on_step = cancel
        await world.rebalance("abc")
    assert scope.cancelled_caught
    assert world.host.plan.moves == []
    world.on_step = lambda: None
    world.step()
    assert world.write(100) == 100
    await world.rebalance("abc")
    world.check("abc")


async def test_a_source_that_holds_for_an_earlier_attempt_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on before it hears of the next one, and what it is told then is with nobody else."""
    monkeypatch.setattr(rebalancing, "_HELD", 0.1)
    world = World("ab")
    world.most = 10**6
    world.write(300)
    world.join("c")
    story: list[str] = []

    def happen() -> None:
        move = next(iter(world.host.plan.moves), None)
        if move is None or "over" in story:
            return
        source, target = world.leader(move.source), world.leaders.get(("c", move.target))
        node = world.host.plan.shards[move.source].leader
        assert source is not None
        if move.held and not story:
            # It holds the slots, hears nothing any more, and the other one takes nothing.
            world.stuck = {move.target}
            if source.held:
                story.append("held")
                world.mute = {node}
            return
        take = target.take if target is not None else None
        if story == ["held"] and take is not None and take.move == move.number and not move.held:
            world.stuck = set()
            if take.near:  # and before the host hears of it, the source hears that it may go on
                assert not take.done
                world.mute = set()
                world.heartbeat(node)
                assert not source.held
                assert world.write(20, list(SlotSet(move.slots))) == 20
                story.append("over")

    world.on_step = happen
    await world.rebalance("abc")
    assert story == ["held", "over"]
    world.check("abc")


def nodes_of_slots(world: World) -> list[str]:
    table = world.host.plan.table
    assert table is not None
    return [world.host.plan.shards[shard].leader for shard in table.shards]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("size", [4, 12, 25])
async def test_one_nodes_change_takes_few_slots_from_the_other_nodes(
    replicas: int, size: int
) -> None:
    """1.2 / N of the slots; also where the second copies that a node had go elsewhere."""
    nodes = "abcdefghijklmnopqrstuvwxyz"[: size + 1]
    world = World(nodes[:-1], replicas=replicas)
    before = nodes_of_slots(world)
    world.join(nodes[-1])
    await world.rebalance(nodes)
    more = nodes_of_slots(world)
    assert {there for was, there in zip(before, more, strict=True) if was != there} == {nodes[-1]}
    assert sum(was != there for was, there in zip(before, more, strict=True)) <= 4915 / (size + 1)

    gone = nodes[1]
    await world.rebalance(nodes.replace(gone, ""))
    less = nodes_of_slots(world)
    assert {was for was, there in zip(more, less, strict=True) if was != there} == {gone}
    assert sum(was != there for was, there in zip(more, less, strict=True)) <= 4915 / (size + 1)
    assert gone not in less
    held = Counter(less).values()
    assert max(held) - min(held) <= 1
