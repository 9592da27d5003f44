"""The host directs nodes by heartbeats, and by what is on its disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.child import Child
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.controller import ClusterController
from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.nodes.shard_specs import OpenMemory
from flowgentic_actors.cluster.protocol.host import (
    Acknowledged,
    Heartbeat,
    HeartbeatReply,
    Rebalance,
    ShardMap,
)
from flowgentic_actors.errors import InvalidRequestError, RejectedError
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.server_connection import Connection
from tests.support.counter import PATIENCE, until
from tests.support.fake_nodes import IDENTITY, several_nodes
from tests.support.placements import member

pytestmark = pytest.mark.anyio


class Children:
    """A supervisor whose actors never come up."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.killed: dict[str, str] = {}

    async def add(self, _tasks: object, spec: Any, _told: object) -> None:
        self.children.append(Child(spec, RestartPolicy(1, 1.0), 0))

    async def stop(self, _timeout: float, _reason: str) -> dict[str, str]:
        return self.killed


class Pool:
    """Nodes whose agents the test is."""

    here = "node-0"
    identity = IDENTITY

    def __init__(self) -> None:
        self.machines = {f"node-{number}": f"machine-{number}" for number in range(3)}
        self.specs: Callable[[str], NodeSpec] | None = None
        self.restarted: list[str] = []
        self.closed = False

    async def hand_out(self, specs: Callable[[str], NodeSpec]) -> None:
        self.specs = specs

    async def restart(self, node: str, _specs: object, is_wanted: Callable[[], bool]) -> None:
        if is_wanted():
            self.restarted.append(node)

    def folder(self, node: str) -> str:
        return ""

    async def close(self) -> None:
        self.closed = True


class Line:
    """A connection of a node."""

    timed_out = False


class World:
    """A controller with its nodes."""

    def __init__(self, folder: Path, tasks: TaskGroup, **changes: Any) -> None:
        self.spec = spec = several_nodes(folder, node_timeout=1.0, **changes)
        self.pool, self.supervisor = Pool(), Children()
        self.events: list[tuple[str, str]] = []
        self.plan_file = PlanFile(Path(spec.memory))
        self.lines = {node: cast("Connection", Line()) for node in self.pool.machines}
        self.beats: dict[str, dict[str, Any]] = {}
        self.controller = ClusterController(
            spec,
            tasks,
            list(self.pool.machines),
            node_pool=cast("NodePool", self.pool),
            address=TcpAddress("127.0.0.1", 1, IDENTITY.certificate),
            supervisor=cast("Supervisor", self.supervisor),
            memory=OpenMemory(
                actor=spec.actor,
                replicated=False,
                generation=folder / "memory" / "generation-1",
                folder=folder,
                ip="127.0.0.1",
                shards=3,
                note_table=lambda shards, table: None,
            ),
            plan_file=self.plan_file,
            plan=None,
            manifest=b"{}",
            on_event=lambda kind, _actor, detail: self.events.append((kind, detail)),
        )

    async def beat(self, node: str, **fields: Any) -> HeartbeatReply:
        """A heartbeat of a node that does what it is told."""
        given = self.beats.setdefault(node, {"known": 0, "replicas": (), "events": ()})
        given |= fields
        assert self.pool.specs is not None
        heartbeat = Heartbeat(node=node, host=self.pool.specs(node).host_id, **given)
        reply = await self.controller.heartbeat(self.lines[node], heartbeat)
        if reply.assignments is not None:
            given["known"] = reply.assignments.version
            given["replicas"] = tuple(
                member(assignment, node) for assignment in reply.assignments.per_shard
            )
        return reply

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@asynccontextmanager
async def opened(folder: Path, **changes: Any) -> AsyncIterator[World]:
    """A controller that has handed out the settings; its own node's actor never serves."""
    (folder / "memory").mkdir(mode=0o700)
    async with anyio.create_task_group() as tasks:
        world = World(folder, tasks, **changes)
        tasks.start_soon(world.controller.start)
        await until(lambda: world.pool.specs)
        yield world
        tasks.cancel_scope.cancel()


def map_of(reply: Raw | Acknowledged) -> ShardMap:
    assert isinstance(reply, Raw)
    return msgspec.msgpack.decode(reply, type=ShardMap)


async def test_a_node_gets_its_lease_and_clients_hear_where_its_shard_is(folder: Path) -> None:
    async with opened(folder) as world:
        first = await world.beat("node-1")
        assert first.lease > 0
        assert first.assignments is not None
        assert [assignment.shard for assignment in first.assignments.per_shard] == [1]
        stored = await asyncio.to_thread(PlanFile(Path(world.spec.memory)).read)
        assert stored is not None
        assert [plan.leader for plan in stored.shards] == ["node-0", "node-1", "node-2"]
        before = world.controller.current_shard_map()
        assert [place.path for place in before.locations] == ["", "", ""]

        await world.beat("node-1")
        after = map_of(await world.controller.shard_map(before.version, PATIENCE))
        assert after.version > before.version
        assert after.locations[1].path == "/node-1/1"
        assert after.locations[1].machine == "machine-1"
        assert await world.controller.shard_map(after.version, 0.0) == Acknowledged()
        status = {actor.shard: actor for actor in world.controller.actors()}
        assert (status[1].state, status[1].node) == ("running", "node-1")
        assert status[2].state == "starting"


async def test_strangers_get_nothing_and_nodes_of_an_earlier_host_leave(folder: Path) -> None:
    async with opened(folder) as world:
        beat = Heartbeat("node-1", "another host", 0, (), ())
        reply = await world.controller.heartbeat(world.lines["node-1"], beat)
        assert (reply.lease, reply.leave) == (0.0, "keep")
        assert world.pool.specs is not None
        stranger = Heartbeat("node-9", world.pool.specs("node-1").host_id, 0, (), ())
        with pytest.raises(InvalidRequestError, match="node-9 is no node of this cluster"):
            await world.controller.heartbeat(world.lines["node-1"], stranger)


async def test_while_the_plan_cannot_be_stored_nothing_new_is_acted_upon(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(folder) as world:
        await world.beat("node-1")
        full = True

        def write(plan: bytes) -> None:
            if full:
                raise OSError(28, "No space left on device")
            PlanFile.write(world.plan_file, plan)

        monkeypatch.setattr(world.plan_file, "write", write)
        version = world.controller.current_shard_map().version
        await world.beat("node-1")  # its actor serves: the address is news for clients
        await until(lambda: "plan_not_written" in world.kinds())
        assert world.kinds().count("plan_not_written") == 1
        assert world.controller.current_shard_map().version == version

        full = False
        assert map_of(await world.controller.shard_map(version, PATIENCE)).locations[1].path
        assert world.kinds().count("plan_not_written") == 1


async def test_a_silent_node_is_lost_and_one_that_hung_up_is_started_again(folder: Path) -> None:
    async with opened(folder) as world:
        for node in ("node-1", "node-2"):
            await world.beat(node)
        world.controller.disconnected(world.lines["node-1"])
        await until(lambda: world.kinds().count("node_lost") == 2)
        await until(lambda: world.pool.restarted)
        assert world.pool.restarted == ["node-1"]
        states = {node.name: node.state for node in world.controller.nodes()}
        assert states == {"node-0": "up", "node-1": "lost", "node-2": "lost"}
        assert "shard_lost" in world.kinds()


async def test_the_end_collects_what_did_not_end_in_order_on_every_node(folder: Path) -> None:
    async with opened(folder) as world:
        for node in ("node-1", "node-2"):
            await world.beat(node)
        world.supervisor.killed = {"shard-0": "killed"}
        found: dict[str, str] = {}

        async def end() -> None:
            found.update(await world.controller.end(PATIENCE, "enough"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            reply = await world.beat("node-1")
            while reply.end is None:
                reply = await world.beat("node-1")
            assert reply.end.reason == "enough"
            with pytest.raises(RejectedError, match="closing"):
                await world.controller.rebalance(Rebalance(1, 0, (), 1, 0.0))
            for node, killed in (("node-1", {}), ("node-2", {"shard-2": "stuck"})):
                await world.beat(node, ended=killed)
        assert found == {"shard-0": "killed", "shard-2 on node-2": "stuck"}

        await world.controller.tell_end("it is over", closed=True)
        told = world.controller.current_shard_map()
        assert (told.closing, told.closed) == ("it is over", True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(world.controller.leave, remove=True))
            for node in ("node-1", "node-2"):
                while (reply := await world.beat(node)).leave is None:
                    pass
                assert reply.leave == "remove"
        assert world.pool.closed


async def test_counters_are_asked_for_and_waited_for(folder: Path) -> None:
    async with opened(folder) as world:
        for node in ("node-1", "node-2"):
            await world.beat(node)
        answered = asyncio.Event()

        async def query() -> None:
            await world.controller.query_stats(PATIENCE)
            answered.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(query)
            for node in ("node-1", "node-2"):
                while not (asks := (await world.beat(node)).asks):
                    pass
                assert not answered.is_set()
                await world.beat(node, asked=asks, answered=asks)
            with anyio.fail_after(PATIENCE):
                await answered.wait()
