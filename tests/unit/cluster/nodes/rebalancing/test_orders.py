"""What nodes are told for a move of slots."""

from __future__ import annotations

import pytest

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.slots import SLOTS, SlotSet
from tests.support.placements import kinds, member, placement, tell
from tests.support.rebalanced_cluster import ownership

pytestmark = pytest.mark.anyio


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
