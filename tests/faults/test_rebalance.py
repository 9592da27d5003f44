"""Nodes are added to clusters that are in use, and taken away;
`python -m flowgentic_actors.testing.nodes --rebalances 20` is the long form."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.protocol.slot_table import moves
from flowgentic_actors.cluster.protocol.status import ClusterStatus
from flowgentic_actors.errors import (
    InvalidRequestError,
    LocalClusterError,
    OutcomeUnknownError,
    RejectedError,
    RequestError,
)
from tests.conftest import shared_by_module
from tests.support.counter import until
from tests.support.nodes import PATIENCE, cut, kinds, led_by, node_of, settings, until_node
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio

ONE_COPY = settings(n_nodes=2, replicas=1, ack="node")
TWO = settings(n_nodes=2)
PLACES = [("notes", f"user-{number}") for number in range(60)]


@pytest.fixture(scope="module")
def one_copy(scratch: Path) -> Iterator[MemoryCluster]:
    """Two nodes and no second copies: for tests that move nothing."""
    with shared_by_module(**ONE_COPY) as memory:
        yield memory


@pytest.fixture(scope="module")
def two(scratch: Path) -> Iterator[MemoryCluster]:
    """Two nodes and two copies: for tests after which each leads a half again."""
    with shared_by_module(**TWO) as memory:
        yield memory


async def fill(memory: MemoryCluster, size: int = 100) -> None:
    """Something in every namespace and thread."""
    for place in PLACES:
        await memory.store.aput(place, "key", {"text": "x" * size})


async def all_there(memory: MemoryCluster) -> bool:
    found = Counter(item.namespace for item in await memory.store.asearch(("notes",), limit=1000))
    there = [await memory.store.aget(place, "key") is not None for place in PLACES]
    return found == Counter(PLACES) and all(there)


def leaders(status: ClusterStatus) -> dict[str, int]:
    """Slots by node."""
    slots: Counter[str] = Counter()
    for actor in status.actors:
        slots[actor.node] += actor.slots
    return dict(slots)


@asynccontextmanager
async def busy(memory: MemoryCluster) -> AsyncIterator[list[str]]:
    """Somebody reads, writes and searches all the time; what that meets is checked at once."""
    stop, wrong = asyncio.Event(), list[str]()

    async def write(number: int) -> None:
        count = 0
        while not stop.is_set():
            place, count = (f"busy-{number}", "notes"), count + 1
            await memory.store.aput(place, "key", {"n": count})
            item = await memory.store.aget(place, "key")
            if item is None or item.value["n"] != count:
                wrong.append(f"wrote {count}, read {item}")

    async def search() -> None:
        while not stop.is_set():
            found = await memory.store.asearch(("notes",), limit=1000)
            if Counter(item.namespace for item in found) != Counter(PLACES):
                wrong.append(
                    f"{len(found)} items found, {len({i.namespace for i in found})} places"
                )
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(write(number))
        tasks.create_task(search())
        try:
            yield wrong
        finally:
            stop.set()


# ---------------------------------------------------------------------- more nodes, and fewer


async def test_nodes_come_and_go_while_the_memory_is_used() -> None:
    async with MemoryCluster(**TWO) as memory:
        await fill(memory)
        before = memory.client.table
        async with busy(memory) as wrong:
            await memory.rebalance(3)
            status = await memory.status()
            assert status.n_nodes == 3
            assert sorted(leaders(status).values()) == [1365, 1365, 1366]
            assert all(actor.replica_ready for actor in status.actors)
            await until(lambda: memory.client.table.version == before.version + 2)
            moved = moves(before, memory.client.table)
            assert {taker for _, taker in moved} == {2}  # nothing else but to the new node
            assert sum(map(len, moved.values())) == 1365

            await memory.rebalance(without=["node-1"])
            status = await memory.status()
            assert {node.name: node.state for node in status.nodes} == {
                "node-0": "up",
                "node-1": "spare",
                "node-2": "up",
            }
            assert leaders(status) == {"node-0": 2048, "node-2": 2048}
            assert {actor.replica_node for actor in status.actors} == {"node-0", "node-2"}
            assert status.n_nodes == 2

            await memory.rebalance()
            assert leaders(await memory.status()).keys() == {"node-0", "node-1", "node-2"}
        assert not wrong, wrong[:5]
        assert await all_there(memory)
        assert {"rebalance_begun", "slots_moved", "rebalanced"} <= set(await kinds(memory))


async def test_where_nothing_has_to_move_nothing_does(one_copy: MemoryCluster) -> None:
    table = one_copy.client.table
    await one_copy.rebalance()
    await one_copy.rebalance(2)
    assert one_copy.client.table == table
    assert "slots_moved" not in await kinds(one_copy)


async def test_a_node_that_is_back_gets_its_part_again(two: MemoryCluster) -> None:
    await fill(two)
    async with cut(two, "node-1"):
        await until_node(two, "node-1", "lost")
        await eventually(lambda: leads(two, {"node-0": 4096}), PATIENCE)
    await two.rebalance()
    assert await leads(two, {"node-0": 2048, "node-1": 2048})
    assert await all_there(two)


async def leads(memory: MemoryCluster, slots: dict[str, int]) -> bool:
    try:
        return leaders(await memory.status()) == slots
    except RequestError:
        return False


async def test_copying_is_as_slow_as_it_is_told_to_be() -> None:
    async with MemoryCluster(**ONE_COPY) as memory:
        await fill(memory, 20_000)  # 1.2 MB, of which the third node gets a third
        begun = time.monotonic()
        await memory.rebalance(3, max_bytes_per_second=200_000)
        assert time.monotonic() - begun > 1.0
        assert await all_there(memory)


# ---------------------------------------------------------------------- in the middle


async def begun(memory: MemoryCluster, n_nodes: int) -> asyncio.Task[None]:
    """A rebalancing that takes its time, and is in the middle of it."""
    task = asyncio.create_task(memory.rebalance(n_nodes, max_bytes_per_second=300_000))

    async def new_actor() -> bool:
        status = await memory.status()
        return len(status.nodes) == n_nodes and any(a.items and not a.slots for a in status.actors)

    await eventually(new_actor, PATIENCE)
    assert not task.done()
    return task


async def kill_the_new_actor(memory: MemoryCluster) -> None:
    pid = next(actor.pid for actor in (await memory.status()).actors if not actor.slots)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def lose_the_new_node(memory: MemoryCluster) -> None:
    await asyncio.to_thread(node_of(memory, "node-2").lose)


@pytest.mark.parametrize(
    "harm", [pytest.param(kill_the_new_actor, marks=pytest.mark.slow), lose_the_new_node]
)
async def test_harm_in_the_middle_costs_nothing(
    harm: Callable[[MemoryCluster], Awaitable[None]],
) -> None:
    async with MemoryCluster(**TWO) as memory:
        await fill(memory, 20_000)
        task = await begun(memory, 3)
        await harm(memory)
        await task
        nodes = (
            {"node-0", "node-1"} if harm is lose_the_new_node else {"node-0", "node-1", "node-2"}
        )
        assert leaders(await memory.status()).keys() == nodes
        assert await all_there(memory)
        await memory.store.aput(PLACES[0], "after", {"v": 1})


async def test_whoever_asks_may_go_and_another_call_waits_its_turn() -> None:
    async with MemoryCluster(**ONE_COPY) as memory:
        await fill(memory, 20_000)
        task = await begun(memory, 3)
        with pytest.raises(RejectedError, match="already"):
            await memory.rebalance(2)
        with pytest.raises(RejectedError, match="already"):
            await memory.rebalance(2)
        task.cancel()

        async def over() -> bool:
            return "rebalanced" in await kinds(memory)

        await eventually(over, PATIENCE)
        assert await leads(memory, {"node-0": 1366, "node-1": 1365, "node-2": 1365})
        with pytest.raises(OutcomeUnknownError, match="timeout=0"):
            await memory.rebalance(2, timeout=0.0)
        await eventually(lambda: leads(memory, {"node-0": 2048, "node-1": 2048}), PATIENCE)
        assert await all_there(memory)


async def test_after_the_host_was_killed_in_the_middle_everything_is_there() -> None:
    async with MemoryCluster(**TWO) as memory:
        await fill(memory, 20_000)
        task = await begun(memory, 3)
        os.kill((await memory.status()).host_pid, signal.SIGKILL)
        await asyncio.gather(task, return_exceptions=True)
        await until_node(memory, "node-2", "up")
        await eventually(lambda: found(memory), PATIENCE)
        await memory.rebalance(3)
        assert await leads(memory, {"node-0": 1366, "node-1": 1365, "node-2": 1365})
        assert await all_there(memory)


async def found(memory: MemoryCluster) -> bool:
    try:
        return await all_there(memory)
    except RequestError:
        return False


# ---------------------------------------------------------------------- what outlives it


@pytest.mark.parametrize("n_nodes", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_the_next_cluster_finds_what_was_moved(tmp_path: Path, n_nodes: int) -> None:
    path = tmp_path / "memory"
    async with MemoryCluster(**ONE_COPY, persist_path=path) as memory:
        await fill(memory)
        await memory.rebalance(3)
        await memory.store.aput(PLACES[0], "after", {"v": 1})
    local: dict[str, Any] = {"mode": "local"}
    again = local if n_nodes == 1 else {**ONE_COPY, "n_nodes": n_nodes}
    async with MemoryCluster(**again, persist_path=path) as memory:
        assert await memory.store.aget(PLACES[0], "after") is not None
        await memory.store.adelete(PLACES[0], "after")
        assert await all_there(memory)


async def test_a_crash_in_the_middle_is_no_matter_for_the_next_cluster(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    memory = MemoryCluster(**ONE_COPY, persist_path=path)
    await memory.__aenter__()
    try:
        await fill(memory, 20_000)
        task = await begun(memory, 3)
        status = await memory.status()
        for pid in [status.host_pid, *(actor.pid for actor in status.actors)]:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        task.cancel()
    finally:
        await memory.__aexit__(None, None, None)
    async with MemoryCluster(**ONE_COPY, persist_path=path, open_timeout=90) as memory:
        assert await all_there(memory)


# ---------------------------------------------------------------------- what is refused


async def test_what_is_not_possible_is_said(two: MemoryCluster) -> None:
    async with MemoryCluster(mode="local") as memory:
        with pytest.raises(LocalClusterError, match="n_nodes=2"):
            await memory.rebalance()
    async with MemoryCluster(mode="distributed", spawner="subprocess", n_nodes=1) as memory:
        with pytest.raises(InvalidRequestError, match="opened on one node"):
            await memory.rebalance(2)
    with pytest.raises(RejectedError, match="'node-7' is none of the nodes: node-0, node-1"):
        await two.rebalance(without="node-7")
    with pytest.raises(RejectedError, match="node-0 is the host's node"):
        await two.rebalance(without=["node-0"])
    with pytest.raises(RejectedError, match="replicas=2 needs as many nodes"):
        await two.rebalance(1)
    with pytest.raises(RejectedError, match="n_nodes=3, and there are 2: node-0, node-2"):
        await two.rebalance(3, without=["node-1"])
    for wrong in ({"n_nodes": 0}, {"max_bytes_per_second": 0}):
        with pytest.raises(InvalidRequestError, match=f"{next(iter(wrong))} must be at least 1"):
            await two.rebalance(**wrong)  # type: ignore[arg-type]
    assert await leads(two, {"node-0": 2048, "node-1": 2048})


async def test_a_lost_shard_keeps_its_slots(one_copy: MemoryCluster) -> None:
    shard = led_by(await one_copy.status(), "node-1")
    async with cut(one_copy, "node-1"):
        await until_node(one_copy, "node-1", "lost")
        with pytest.raises(RejectedError, match=f"shard-{shard}: lost with its node"):
            await one_copy.rebalance()
