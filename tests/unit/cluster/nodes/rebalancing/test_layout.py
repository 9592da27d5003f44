"""Where the slots of a cluster are to be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.rebalancing import Layout, lay_out

pytestmark = pytest.mark.anyio


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
