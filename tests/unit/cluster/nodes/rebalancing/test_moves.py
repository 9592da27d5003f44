"""A cluster that moves slots from node to node, whatever else happens."""

from __future__ import annotations

from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from flowgentic_actors.cluster.nodes import rebalancing
from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus
from flowgentic_actors.engine.slots import SlotSet
from flowgentic_actors.errors import RejectedError
from flowgentic_actors.shard.assignment import Assignment
from tests.conftest import seeds
from tests.support.placements import member
from tests.support.rebalanced_cluster import World

pytestmark = pytest.mark.anyio


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
