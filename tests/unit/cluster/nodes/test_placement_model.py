"""Who holds which copy of which shard: any order of events, against a model.

The model is a cluster in which whatever is sent is delayed, lost, sent twice and overtaken, nodes
are silent and come back, clocks drift apart by up to 4 %, and the host is suspended or replaced. In
it the copies hold real writes, so what users rely on can be looked at: two nodes never answer for
one shard, and whoever answers has what was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.leases import HeldLease
from flowgentic_actors.cluster.protocol.assignments import (
    NodeAssignments,
    ReplicaStatus,
)
from flowgentic_actors.shard.assignment import Assignment
from tests.conftest import amounts
from tests.support.placements import LEASE, NODES, TICK, TIMEOUT, member, placement


@dataclass
class Copy:
    """What a node has of a shard; part and term as of its orders."""

    writes: set[int] = field(default_factory=set)
    whole: bool = True
    term: int = 0
    caught_up: bool = False
    resync_required: bool = False


class Node:
    """Does what an agent does; `cluster/nodes/agent.py`."""

    def __init__(self, name: str, lease: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.seconds = lease
        self.clock = clock
        self.copies: dict[int, Copy] = {}
        self.question = 0
        self.begin()

    def begin(self) -> None:
        """Be a new process on what is stored here."""
        self.lease = HeldLease(self.seconds)
        self.assignments = NodeAssignments(0, ())
        self.duties: dict[int, Assignment] = {}
        self.failed: set[int] = set()
        self.question += 1
        for copy in self.copies.values():
            copy.term, copy.caught_up, copy.resync_required = 0, False, False

    def carry_out(self, assignments: NodeAssignments) -> None:
        wanted = {assignment.shard: assignment for assignment in assignments.per_shard}
        for shard in set(self.copies) - set(wanted):
            del self.copies[shard]
        self.failed &= {s for s, d in wanted.items() if d.role == "leader"}
        for shard, assignment in wanted.items():
            before = self.duties.get(shard)
            if before is not None and before.role == "leader" and assignment.role == "follower":
                del self.copies[shard]
            copy = self.copies.setdefault(shard, Copy(whole=assignment.role == "leader"))
            if assignment.role == "leader":
                if copy.term != assignment.term or (before and before.role == "follower"):
                    copy.term, copy.caught_up, copy.resync_required = assignment.term, False, False
                if assignment.follower_in_sync and not (copy.caught_up or copy.resync_required):
                    copy.caught_up = True
        self.assignments, self.duties = assignments, wanted

    def members(self) -> list[ReplicaStatus]:
        found = []
        for shard, assignment in self.duties.items():
            copy, leads = (
                self.copies[shard],
                assignment.role == "leader" and shard not in self.failed,
            )
            found.append(
                member(
                    assignment,
                    self.name,
                    state="running" if shard not in self.failed else "failed",
                    leads=leads,
                    caught_up=leads and copy.caught_up,
                    resync_required=leads and copy.resync_required,
                )
            )
        return found

    def leads(self, shard: int) -> bool:
        assignment = self.duties.get(shard)
        return assignment is not None and assignment.role == "leader" and shard not in self.failed

    def answers(self, shard: int) -> bool:
        return self.leads(shard) and self.lease.is_valid(self.clock())


@dataclass
class Beat:
    node: str
    question: int
    asked_at: float
    known: int
    members: list[ReplicaStatus]


@dataclass
class Answer:
    node: str
    question: int
    asked_at: float
    assignments: NodeAssignments | None
    lease: bool


@st.composite
def some_nodes(draw: st.DrawFn) -> frozenset[str]:
    return frozenset(draw(st.sets(st.sampled_from(NODES[1:]), max_size=3)))


class Cluster(RuleBasedStateMachine):
    """Hosts, nodes, and a network in which anything may happen to what is on its way."""

    lease = LEASE

    @initialize(rates=st.lists(st.sampled_from((0.98, 1.0, 1.02)), min_size=4, max_size=4))
    def open(self, rates: list[float]) -> None:
        self.now = 1000.0
        self.rates = dict(zip(NODES, rates, strict=True))
        self.written = 0
        self.acknowledged: dict[int, set[int]] = {shard: set() for shard in range(len(NODES))}
        self.nodes = {name: Node(name, self.lease, self._clock_of(name)) for name in NODES}
        self.beats: list[Beat] = []
        self.polls: list[Beat] = []
        self.answers: list[Answer] = []
        self.arrangements: dict[int, tuple[int, str, str]] = {}
        self.version = 0
        self.file = b""
        self.host = placement(lease=self.lease)
        self.publish()
        self.all_goes_well_but(1.0, frozenset())

    def _clock_of(self, name: str) -> Callable[[], float]:
        return lambda: self.now * self.rates[name]

    def clock(self) -> float:
        return self.nodes["a"].clock()

    # -------------------------------------------------------------- one thing at a time

    def _others(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name != "a"]

    @rule(name=st.sampled_from(NODES[1:]))
    def ask(self, name: str) -> None:
        node = self.nodes[name]
        node.question += 1  # whatever is answered to an earlier one is not listened to
        self.beats.append(
            Beat(name, node.question, node.clock(), node.assignments.version, node.members())
        )

    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        if self.beats:
            self._arrive(data.draw(st.integers(0, len(self.beats) - 1)), again=again)

    def _arrive(self, which: int, *, again: bool = False) -> None:
        heartbeat = self.beats[which] if again else self.beats.pop(which)
        self.host.heard(heartbeat.node, heartbeat.members)
        self.polls.append(heartbeat)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.polls:
            self._answer(data.draw(st.integers(0, len(self.polls) - 1)))

    def _answer(self, which: int) -> None:
        """As `ClusterController._grant` does."""
        heartbeat = self.polls.pop(which)
        assignments, lease = None, False
        if self.version == self.host.plan.version:
            if heartbeat.known < self.version:
                assignments = self.host.assignments(heartbeat.node)
            self.host.granted(heartbeat.node, self.clock())
            lease = True
        self.answers.append(
            Answer(heartbeat.node, heartbeat.question, heartbeat.asked_at, assignments, lease)
        )

    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        if self.answers:
            self._hear(data.draw(st.integers(0, len(self.answers) - 1)))

    def _hear(self, which: int) -> None:
        answer = self.answers.pop(which)
        node = self.nodes[answer.node]
        if answer.question != node.question:
            return
        node.question += 1
        if answer.assignments is not None:
            node.carry_out(answer.assignments)
        if answer.lease:
            node.lease.granted(answer.asked_at)

    @rule(data=st.data())
    def lose_a_message(self, data: st.DataObject) -> None:
        for queue in (self.beats, self.answers):
            if queue:
                queue.pop(data.draw(st.integers(0, len(queue) - 1)))

    @rule()
    def publish(self) -> None:
        self.file = msgspec.json.encode(self.host.plan)
        self.version = self.host.plan.version
        self.nodes["a"].carry_out(self.host.assignments("a"))
        self.nodes["a"].lease.until = float("inf")
        self.host.heard("a", self.nodes["a"].members())

    @rule(seconds=st.floats(0.01, 4.0), host_sees_it=st.booleans())
    def time_passes(self, seconds: float, host_sees_it: bool) -> None:
        end = self.now + seconds
        while host_sees_it and self.now + TICK < end:
            self.now += TICK
            self.host.tick(self.clock())
            self.check()
        self.now = end
        self.host.tick(self.clock())

    # -------------------------------------------------------------- copies

    def _follower_of(self, shard: int, leader: Node) -> Copy | None:
        """The copy that the leader's term is followed by."""
        name = leader.duties[shard].follower
        node = self.nodes.get(name)
        assignment = node.duties.get(shard) if node else None
        if node is None or assignment is None or assignment.role != "follower":
            return None
        return node.copies[shard] if assignment.term == leader.duties[shard].term else None

    @rule(shard=st.sampled_from(range(len(NODES))))
    def catch_up(self, shard: int) -> None:
        for leader in self.nodes.values():
            if leader.leads(shard) and (copy := self._follower_of(shard, leader)):
                copy.writes, copy.whole = set(leader.copies[shard].writes), True
                copy.term = leader.duties[shard].term
                leader.copies[shard].caught_up = True

    @rule(shard=st.sampled_from(range(len(NODES))))
    def start_over(self, shard: int) -> None:
        """The follower is too far behind; what it has, it keeps until the next term begins."""
        for leader in self.nodes.values():
            if leader.leads(shard) and leader.copies[shard].caught_up:
                leader.copies[shard].caught_up = False
                leader.copies[shard].resync_required = True

    @rule(shard=st.sampled_from(range(len(NODES))), reachable=st.booleans())
    def write(self, shard: int, reachable: bool) -> None:
        self.written += 1
        for leader in self.nodes.values():
            if not leader.answers(shard):
                continue
            own = leader.copies[shard]
            own.writes.add(self.written)
            if own.caught_up or own.resync_required:
                copy = self._follower_of(shard, leader)
                if not reachable or copy is None or not copy.whole or own.resync_required:
                    continue
                if copy.term != leader.duties[shard].term:
                    continue
                copy.writes |= own.writes
            self.acknowledged[shard].add(self.written)

    @rule(shard=st.sampled_from(range(len(NODES))))
    def an_actor_fails(self, shard: int) -> None:
        for leader in self.nodes.values():
            if leader.leads(shard) and leader.name != "a" and leader.copies[shard].caught_up:
                leader.failed.add(shard)

    # -------------------------------------------------------------- longer stories

    @rule(seconds=st.floats(0.5, 9.0), silent=some_nodes())
    def all_goes_well_but(self, seconds: float, silent: frozenset[str]) -> None:
        """Time in which some nodes are cut off, and nothing else happens."""
        end = self.now + seconds
        while self.now < end:
            for node in self._others():
                if node.name not in silent:
                    self.ask(node.name)
                    self._arrive(len(self.beats) - 1)
            self.publish()
            while self.polls:
                self._answer(0)
            for which in reversed(range(len(self.answers))):
                if self.answers[which].node not in silent:
                    self._hear(which)
            for shard in range(len(NODES)):
                leaders = [node for node in self.nodes.values() if node.leads(shard)]
                pairs = {n for a in leaders for n in (a.name, a.duties[shard].follower)}
                if not pairs & silent:
                    self.catch_up(shard)
                self.write(shard, reachable=not pairs & silent)
            self.check()
            self.now += TICK * 3
            self.host.tick(self.clock())
            self.check()

    @rule(there=some_nodes(), waits=st.floats(1.1, 20.0))
    def another_host_takes_over(self, there: frozenset[str], waits: float) -> None:
        """All programs end with theirs; what is stored stays, on nodes that may not come."""
        self.now += waits * self.lease
        for node in self.nodes.values():
            node.begin()
        self.beats, self.polls, self.answers = [], [], []
        plan = msgspec.json.decode(self.file, type=ClusterPlan)
        before = {one.shard: one.term for one in plan.shards}
        self.arrangements = {one.shard: (one.term, one.leader, one.follower) for one in plan.shards}
        self.host = placement(plan, ["a", *sorted(there)], place=False, lease=self.lease)
        self.host.fail_absent_nodes()
        assert all(one.term >= before[one.shard] for one in self.host.plan.shards)
        self.version = 0
        self.publish()

    # -------------------------------------------------------------- what must always be so

    @invariant()
    def check(self) -> None:
        for plan in self.host.plan.shards:
            shard = plan.shard
            answering = [node for node in self.nodes.values() if node.answers(shard)]
            assert len(answering) <= 1, f"{[node.name for node in answering]} answer for {shard}"
            for node in answering:
                missing = self.acknowledged[shard] - node.copies[shard].writes
                assert not missing, f"{node.name} answers for {shard} without {missing}"
            assert not plan.leader or plan.leader != plan.follower
            assert bool(plan.leader) != bool(plan.lost)
            assert plan.leader in {"", *self.host.nodes}
            term, leader, follower = self.arrangements.get(shard, (0, "", ""))
            if (leader, follower) != (plan.leader, plan.follower):
                assert plan.term > term
            assert plan.term >= term
            self.arrangements[shard] = (plan.term, plan.leader, plan.follower)

    def teardown(self) -> None:
        """When all come back, everything is there again: nothing was given away or forgotten."""
        self.another_host_takes_over(frozenset(NODES[1:]), 1.1)
        self.all_goes_well_but(3.0, frozenset())
        for shard, acknowledged in self.acknowledged.items():
            plan = self.host.plan.shards[shard]
            assert plan.leader, f"shard {shard} was not found again"
            assert acknowledged <= self.nodes[plan.leader].copies[shard].writes
            assert self.nodes[plan.leader].answers(shard)
            assert plan.caught_up


class LongLeases(Cluster):
    """Leases that outlast the silence: only they keep a follower waiting for its leader's end."""

    lease = TIMEOUT * 1.5


@pytest.mark.parametrize("examples", amounts(15, 60))
@pytest.mark.parametrize("machine", [Cluster, LongLeases])
def test_two_nodes_never_answer_and_nothing_acknowledged_is_given_away(
    machine: type[Cluster], examples: int
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
