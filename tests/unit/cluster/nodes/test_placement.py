"""Who holds which copy of which shard: rules, one by one."""

from __future__ import annotations

import msgspec
import pytest

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.shard.assignment import Assignment
from tests.support.placements import NODES, TICK, caught_up, kinds, member, placement, tell


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
