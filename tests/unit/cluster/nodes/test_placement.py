"""Who holds which copy of which shard: rules one by one, then all of them against a model.

The model is a cluster in which whatever is sent is delayed, lost, sent twice and overtaken, nodes
are silent and come back, clocks drift apart by up to 4 %, and the host is suspended or replaced. In
it the copies hold real writes, so what users rely on can be looked at: two nodes never answer for
one shard, and whoever answers has what was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.leases import HeldLease
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import (
    Assignment,
    NodeAssignments,
    ReplicaStatus,
)
from tests.conftest import amounts
from tests.support.placements import LEASE, NODES, TICK, TIMEOUT, kinds, member, placement, tell


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


def followed(host: Placement, shard: int, **changes: object) -> None:
    """The follower of a shard tells how it is."""
    node = host.plan.shards[shard].follower
    duties = host.assignments(node).per_shard
    host.heard(node, [member(d, node, **(changes if d.shard == shard else {})) for d in duties])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": "failed", "reason": "no disk"}, "no disk"),
        ({"unanswered": 15}, "it does not reach a"),
    ],
)
def test_a_node_that_cannot_follow_is_replaced_by_another_one(
    changes: dict[str, object], why: str
) -> None:
    host = caught_up()
    for node in NODES:
        tell(host, node)
    old = host.plan.shards[0].follower
    followed(host, 0, **changes)
    plan = host.plan.shards[0]
    assert plan.leader == "a"
    assert plan.follower not in ("a", old, "")
    assert not plan.caught_up  # nobody is promoted before it has everything
    assert [event for event in host.take_events() if why in event.detail and old in event.detail]

    second = plan.follower
    followed(host, 0, **changes)
    third = host.plan.shards[0].follower
    assert {third, second, old} == {"b", "c", "d"}
    followed(host, 0, **changes)
    assert host.plan.shards[0].follower == third  # there is nobody else
    host.lost("b", "power")
    host.joined("b")
    if third != "b":
        followed(host, 0, **changes)
        assert host.plan.shards[0].follower == "b"  # one that was away is another one


def test_a_node_that_could_not_follow_tries_once_more_when_there_is_no_other() -> None:
    host = caught_up("ab")
    term = host.plan.shards[0].term
    terms = []
    for second in range(150):
        host.tick(float(second))
        followed(host, 0, state="failed", reason="no space", term=term)
        terms.append(host.plan.shards[0].term)
    plan = host.plan.shards[0]
    assert (plan.follower, plan.caught_up) == ("b", False)
    assert (terms[50], terms[70], terms[-1]) == (
        term,
        term + 1,
        term + 1,
    )  # which works
    events = [event for event in host.take_events() if event.kind == "replica_begun"]
    assert [event.detail for event in events] == ["on b, once more"]


def test_a_follower_whose_leader_is_not_there_yet_waits() -> None:
    host = caught_up()
    old = host.plan.shards[0].follower
    tell(host, "a", leads=False)
    followed(host, 0, unanswered=30)
    assert host.plan.shards[0].follower == old


def grant_all(host: Placement) -> None:
    for node in host.nodes:
        host.granted(node, 0.0)


# ---------------------------------------------------------------------- places


def test_every_shard_of_a_new_cluster_has_two_nodes() -> None:
    host = placement()

    assert [plan.leader for plan in host.plan.shards] == list(NODES)
    assert [plan.follower for plan in host.plan.shards] == ["b", "c", "d", "a"]
    assert not any(plan.caught_up for plan in host.plan.shards)


def test_one_copy_is_one_copy() -> None:
    host = placement(replicas=1)

    assert {plan.follower for plan in host.plan.shards} == {""}
    host.lost("b", "power")
    assert host.plan.shards[1].lost == "b"


def test_a_node_alone_has_no_follower_until_there_is_another() -> None:
    host = placement(nodes=["a"])
    assert host.plan.shards[0].follower == ""

    host.joined("b")

    assert host.plan.shards[0].follower == "b"


def test_orders_are_those_of_the_plan() -> None:
    host = placement()
    tell(host, "b")

    duties = {assignment.shard: assignment for assignment in host.assignments("b").per_shard}

    assert set(duties) == {0, 1}
    assert duties[1] == Assignment(
        1, "leader", 2, None, "c", allow_single_copy=True, follower_in_sync=False
    )
    assert duties[0].role == "follower"
    assert duties[0].leader is None  # a has not told where it serves
    follower = next(d for d in host.assignments("c").per_shard if d.role == "follower")
    assert follower.leader == "b:1"


def test_without_degrading_no_leader_goes_on_alone() -> None:
    host = placement(degrade=False)
    assert not any(
        assignment.allow_single_copy
        for assignment in host.assignments("b").per_shard
        if assignment.role == "leader"
    )


def test_shards_that_are_placed_anew_keep_their_terms_growing() -> None:
    host = caught_up()
    before = [plan.term for plan in host.plan.shards]

    host.place(list(reversed(NODES)))

    assert all(plan.term > term for plan, term in zip(host.plan.shards, before, strict=True))


# ---------------------------------------------------------------------- what is told


def test_a_follower_has_caught_up_when_its_leader_of_this_term_says_so() -> None:
    host = placement()
    duties = host.assignments("b").per_shard

    host.heard("b", [member(assignment, "b", caught_up=True, term=1) for assignment in duties])
    of_another_term = host.plan.shards[1].caught_up
    host.heard(
        "c",
        [member(assignment, "c", caught_up=True) for assignment in host.assignments("c").per_shard],
    )
    of_its_follower = host.plan.shards[1].caught_up
    host.heard("b", [member(assignment, "b", caught_up=True) for assignment in duties])

    assert (of_another_term, of_its_follower) == (False, False)
    assert host.plan.shards[1].caught_up
    assert next(d for d in host.assignments("b").per_shard if d.role == "leader").follower_in_sync


def test_nonsense_is_not_taken_in() -> None:
    host = placement()
    stray = member(Assignment(99, "leader", 2), "b", caught_up=True)

    host.heard("b", [stray])

    assert host.leader_status(99 % 4) is None


def test_a_follower_that_starts_over_does_so_in_a_term_of_its_own() -> None:
    host = caught_up()
    old = [
        member(assignment, "b", caught_up=True) for assignment in host.assignments("b").per_shard
    ]
    term = host.plan.shards[1].term

    tell(host, "b", resync_required=True)
    assert host.plan.shards[1].term == term + 1
    assert not host.plan.shards[1].caught_up
    assert host.plan.shards[1].follower == "c"
    host.heard("b", old)  # sent before, arrived later

    assert not host.plan.shards[1].caught_up


def test_a_leader_that_says_both_is_believed_the_worse() -> None:
    host = caught_up()
    both = [
        member(assignment, "b", caught_up=True, resync_required=True)
        for assignment in host.assignments("b").per_shard
        if assignment.role == "leader"
    ]
    host.heard("b", both)
    version, term = host.plan.version, host.plan.shards[1].term

    for _ in range(5):
        host.heard("b", both)

    assert not host.plan.shards[1].caught_up
    assert host.plan.shards[1].term == term
    assert host.plan.version == version


def test_a_leader_that_failed_for_good_is_replaced_if_its_follower_has_caught_up() -> None:
    host = caught_up()
    duties = [
        assignment for assignment in host.assignments("b").per_shard if assignment.role == "leader"
    ]

    host.heard("b", [member(assignment, "b", state="failed", leads=False) for assignment in duties])

    assert host.plan.shards[1].leader == "c"
    assert "shard_promoted" in kinds(host)


def test_a_leader_that_failed_keeps_its_shard_while_there_is_no_other_copy() -> None:
    host = placement()
    duties = [
        assignment for assignment in host.assignments("b").per_shard if assignment.role == "leader"
    ]

    host.heard("b", [member(assignment, "b", state="failed", leads=False) for assignment in duties])

    assert host.plan.shards[1].leader == "b"


def test_a_changed_address_is_news_and_the_same_is_not() -> None:
    host = caught_up()
    version = host.plan.version
    tell(host, "b", caught_up=True)
    assert host.plan.version == version

    tell(host, "b", caught_up=True, address="b:other")

    assert host.plan.version == version + 1
    assert host.changed_for("c") == version + 1  # who follows b
    assert host.changed_for("d") <= version


def test_a_node_s_orders_are_the_same_from_their_version_on() -> None:
    host = caught_up()
    before = {node: (host.changed_for(node), host.assignments(node).per_shard) for node in NODES}

    host.lost("c", "power")

    for node in ("a", "b", "d"):
        changed, duties = before[node]
        assert (host.assignments(node).per_shard == duties) == (host.changed_for(node) == changed)


# ---------------------------------------------------------------------- losses


def test_a_follower_that_has_caught_up_takes_the_place_of_its_leader() -> None:
    host = caught_up()
    term = host.plan.shards[1].term

    host.lost("b", "power")

    plan = host.plan.shards[1]
    assert (plan.leader, plan.caught_up, plan.lost) == ("c", False, "")
    assert plan.follower in {"a", "d"}
    assert plan.term > term
    assert kinds(host)[0] == "node_lost"


def test_a_follower_that_has_not_caught_up_takes_nobody_s_place() -> None:
    host = placement()

    host.lost("b", "power")

    assert (host.plan.shards[1].leader, host.plan.shards[1].lost) == ("", "b")
    assert host.assignments("c").per_shard[0].shard != 1
    assert "shard_lost" in kinds(host)


def test_a_lost_shard_is_found_with_its_node() -> None:
    host = placement()
    host.lost("b", "power")
    term = host.plan.shards[1].term

    host.heard("b", [])

    plan = host.plan.shards[1]
    assert (plan.leader, plan.lost) == ("b", "")
    assert plan.term > term
    assert {"node_returned", "shard_found"} <= set(kinds(host))


def test_a_returned_node_does_not_get_back_what_another_one_has_now() -> None:
    host = caught_up()
    host.lost("b", "power")
    grant_all(host)

    host.heard("b", [])

    assert host.plan.shards[1].leader == "c"
    assert all(assignment.role == "follower" for assignment in host.assignments("b").per_shard)


def test_with_a_shared_folder_another_node_opens_the_shard() -> None:
    host = placement(recovers=True)

    host.lost("b", "power")

    assert host.plan.shards[1].leader in {"a", "c", "d"}
    assert "shard_moved" in kinds(host)


def test_the_same_loss_twice_is_one_loss() -> None:
    host = caught_up()
    host.lost("b", "power")
    version = host.plan.version

    host.lost("b", "power")

    assert host.plan.version == version


def test_of_two_nodes_lost_at_once_none_takes_the_other_s_place() -> None:
    host = caught_up()
    for now in range(2):
        host.tick(now * TICK)
    for n in range(40):
        host.heard("d", [])
        host.tick(n * TICK)

    assert set(host.nodes) == {"a", "d"}
    plan = host.plan.shards[1]  # of b and c
    assert (plan.leader, plan.lost, plan.follower, plan.caught_up) == ("", "b", "c", True)


def test_either_of_two_lost_copies_brings_the_shard_back() -> None:
    for first, second in (("b", "c"), ("c", "b")):
        host = caught_up()
        host.lost("b", "power")
        host.lost("c", "power")  # promoted meanwhile, but nobody told it

        host.heard(first, [])

        plan = host.plan.shards[1]
        assert (plan.leader, plan.lost) == (first, "")
        host.granted(first, 0.0)
        host.heard(second, [])
        assert host.plan.shards[1].leader == first


def test_a_follower_that_was_lost_first_still_counts_if_the_leader_never_knew() -> None:
    host = caught_up()
    host.lost("c", "power")  # it follows b
    host.lost("b", "power")

    host.heard("c", [])

    assert host.plan.shards[1].leader == "c"


def test_an_older_copy_does_not_count_once_the_leader_was_told() -> None:
    host = caught_up()
    host.lost("c", "power")
    host.granted("b", 0.0)  # and may acknowledge alone from now on
    host.lost("b", "power")

    host.heard("c", [])

    assert (host.plan.shards[1].leader, host.plan.shards[1].lost) == ("", "b")


def test_copies_go_where_the_fewest_are() -> None:
    nodes = [f"n{n}" for n in range(10)]
    host = caught_up(["a", *nodes])
    host.lost("n3", "power")

    held = {node: len(host.assignments(node).per_shard) for node in host.nodes}

    assert sum(held.values()) == 22
    assert max(held.values()) <= 3


# ---------------------------------------------------------------------- time, other hosts


def test_the_host_s_own_node_is_never_lost() -> None:
    host = placement()
    for n in range(100):
        host.tick(n * TICK)

    assert host.nodes == ["a"]


def test_a_host_that_was_suspended_for_an_hour_has_lost_nobody() -> None:
    host = caught_up()
    host.tick(0.0)
    for node in NODES:
        host.heard(node, [])
    for hour in range(1, 10):
        host.tick(hour * 3600.0)

    assert set(host.nodes) == set(NODES)


def test_the_plan_survives_the_host() -> None:
    before = caught_up()
    before.lost("b", "power")
    encoded = msgspec.json.encode(before.plan)

    host = placement(msgspec.json.decode(encoded, type=ClusterPlan), ["a", "c"], place=False)
    host.fail_absent_nodes()

    old = {plan.shard: plan for plan in before.plan.shards}
    assert host.plan.version > before.plan.version
    for plan in host.plan.shards:
        assert plan.leader in {"a", "c"} or plan.lost
        assert plan.term >= old[plan.shard].term
    assert host.plan.shards[3].leader == "a"  # it followed d, and had caught up


def test_a_plan_that_nothing_is_missing_of_stays_as_it_is() -> None:
    before = caught_up()
    encoded = msgspec.json.encode(before.plan)

    host = placement(msgspec.json.decode(encoded, type=ClusterPlan), place=False)
    host.fail_absent_nodes()

    assert msgspec.json.encode(host.plan) == encoded
    assert all(
        assignment.follower_in_sync
        for assignment in host.assignments("b").per_shard
        if assignment.role == "leader"
    )


def test_nodes_that_come_one_by_one_do_not_get_all_followers_at_first() -> None:
    nodes = ["a", *(f"n{n}" for n in range(9))]
    plan = ClusterPlan(
        version=3, shards=[ShardPlan(shard=n, leader=node) for n, node in enumerate(nodes)]
    )

    host = placement(plan, nodes, place=False)
    host.fail_absent_nodes()

    assert [len(host.assignments(node).per_shard) for node in nodes] == [2] * 10


def test_a_shard_that_both_nodes_were_lost_with_is_still_lost_for_the_next_host() -> None:
    before = caught_up()
    before.lost("b", "power")
    before.lost("c", "power")
    plan = msgspec.json.decode(msgspec.json.encode(before.plan), type=ClusterPlan)

    host = placement(plan, ["a", "d"], place=False)
    host.fail_absent_nodes()
    assert host.plan.shards[1].lost
    host.joined("b")

    assert host.plan.shards[1].leader == "b"


# ---------------------------------------------------------------------- all of it, and a model


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
