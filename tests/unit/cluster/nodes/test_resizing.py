"""Which nodes a resizing uses, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.leases import LEASE_SHARE, TICK, GrantedLeases
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.resizing import Resizing
from flowgentic_actors.cluster.protocol.host import Rebalance, RebalanceReply
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.errors import RejectedError
from tests.support.counter import PATIENCE
from tests.support.fake_nodes import several_nodes
from tests.support.placements import tell

pytestmark = pytest.mark.anyio


class Pool:
    """Nodes that join when they are asked to."""

    here = "a"

    def __init__(self) -> None:
        self.machines = dict.fromkeys("ab", "machine")
        self.there = ["b", "c", "d"]
        self.silent: set[str] = set()
        self.added: list[str] = []

    async def others(self, count: int) -> list[str]:
        return self.there

    async def add(
        self,
        nodes: Sequence[str],
        specs: Callable[[str], NodeSpec],
        on_joined: Callable[[Sequence[str]], None],
    ) -> list[str]:
        self.added = [node for node in nodes if node not in self.silent]
        self.machines |= dict.fromkeys(self.added, "machine")
        on_joined(self.added)
        return self.added


class Cluster:
    """A cluster of the nodes a and b, whose actors do at once what they are told."""

    def __init__(self, tasks: anyio.abc.TaskGroup, folder: Path, replicas: int = 1) -> None:
        leases = GrantedLeases(3.0 * LEASE_SHARE, 3.0, TICK)
        self.placement = Placement(
            ClusterPlan(version=0, shards=[], table=even_table(2, 2)),
            "a",
            replicas=replicas,
            degrade=True,
            recovers=False,
            leases=leases,
        )
        self.pool = Pool()
        self.node_pool = cast("NodePool", self.pool)
        self.events: list[tuple[str, str]] = []
        self.on_event: EventSink = lambda kind, _actor, detail: self.events.append((kind, detail))
        self.take_in("ab")
        self.placement.place("ab")
        self.resizing = Resizing(several_nodes(folder, replicas=replicas), tasks, self)

    def node_spec(self, node: str) -> NodeSpec:
        raise NotImplementedError

    def take_in(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self.placement.joined(node)

    def request_publish(self) -> None:
        pass

    async def changed(self) -> None:
        for node in self.placement.nodes:
            tell(self.placement, node)
        await asyncio.sleep(0)

    async def resize(self, nodes: int = 0, *without: str, **changes: Any) -> RebalanceReply:
        given: dict[str, Any] = {"number": 1, "rate": 1 << 20, "wait": PATIENCE} | changes
        return await self.resizing.asked(Rebalance(nodes=nodes, without=without, **given))


@pytest.fixture
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    async with anyio.create_task_group() as tasks:
        yield Cluster(tasks, folder)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("nodes", "without", "why"),
    [
        (9, (), "n_nodes=9, and there are 4: a, b, c, d"),
        (4, ("d",), "n_nodes=4, and there are 3: a, b, c"),
        (0, ("x",), "without: 'x' is none of the nodes: a, b, c, d"),
        (0, ("a",), "without: a is the host's node, whose end is the cluster's"),
    ],
)
async def test_what_is_not_possible_is_said_and_nothing_is_moved(
    cluster: Cluster, nodes: int, without: tuple[str, ...], why: str
) -> None:
    reply = await cluster.resize(nodes, *without)
    assert reply.done
    assert reply.error.startswith(why)
    assert cluster.events == [("rebalance_failed", reply.error)]
    assert cluster.pool.added == []


async def test_replicas_need_as_many_nodes(folder: Path) -> None:
    async with anyio.create_task_group() as tasks:
        reply = await Cluster(tasks, folder, replicas=2).resize(1)
    assert reply.error == "replicas=2 needs as many nodes, and a would be alone"


async def test_nodes_that_are_up_are_used_first_and_others_are_started(cluster: Cluster) -> None:
    reply = await cluster.resize(2)
    assert reply == RebalanceReply(True)
    assert cluster.pool.added == []
    assert cluster.events == [("rebalance_begun", "over a, b"), ("rebalanced", "over a, b")]


async def test_one_resizing_at_a_time_which_may_be_asked_about_again(cluster: Cluster) -> None:
    cluster.pool.silent = {"d"}
    first = await cluster.resize(4, wait=0.0)
    assert first == RebalanceReply(False)
    with pytest.raises(RejectedError, match="being rebalanced already"):
        await cluster.resize(2, number=2)
    with anyio.fail_after(PATIENCE):
        while ("rebalance_begun", "over a, b, c") not in cluster.events:
            await cluster.resize(4, wait=0.0)
            await cluster.changed()
    assert cluster.pool.added == ["c"]
    assert cluster.events == [("rebalance_begun", "over a, b, c")]  # once
