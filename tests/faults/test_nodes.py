"""Nodes that are lost, cut off, and there again; `python -m flowgentic_actors.testing.nodes` is the
long form. Groups of processes on this machine stand for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.engine.commands import GetItem, PutItem
from flowgentic_actors.errors import (
    NotSentError,
    PartialFailureError,
    ReplicaUnavailableError,
    RequestError,
    ShardLostError,
)
from flowgentic_actors.testing.nodes import NodesPlan, run_nodes
from flowgentic_actors.wire.addresses import Unreachable
from tests.conftest import shared_by_module
from tests.support.counter import until
from tests.support.nodes import (
    PATIENCE,
    acknowledged,
    cut,
    everywhere,
    expect,
    kinds,
    led_by,
    namespace_on,
    node_of,
    settings,
    until_node,
)
from tests.support.processes import eventually, gone, in_fork, python, remove_orphan, wait_until

pytestmark = pytest.mark.anyio

ONE_COPY = settings(n_nodes=2, replicas=1, ack="node")


@pytest.fixture(scope="module")
def shared(scratch: Path) -> Iterator[MemoryCluster]:
    """Three nodes and two copies of each shard: for tests that heal what they cut."""
    with shared_by_module(**settings()) as memory:
        yield memory


# ---------------------------------------------------------------------- two copies


async def test_lost_and_cut_off_nodes_and_others_in_their_place_lose_nothing() -> None:
    plan = NodesPlan(losses=1, cuts=1, rebalances=1, seed=4, pause=0.3, items=300)
    report = await run_nodes(plan)
    assert report.clean, str(report.findings)
    assert report.blows == {"lose": 1, "cut": 1, "rebalance": 1}
    assert len(report.moved) == 1
    assert len(report.back) == len(report.copied) == 2
    assert report.items_found == 300
    assert report.acknowledged > 200
    assert report.events["node_lost"] >= 2
    assert report.events["node_returned"] >= 1
    assert report.events["shard_promoted"] >= 1
    assert report.events["replica_ready"] >= 4
    assert not report.events["shard_lost"]


async def test_a_node_that_was_cut_off_answers_nobody_any_more(shared: MemoryCluster) -> None:
    status = await shared.status()
    shard = led_by(status, "node-1")
    namespace = namespace_on(shared, shard)
    assert isinstance(shared.client, RemoteClient)
    path = shared.client._shard_map.locations[shard].path
    descriptor = await asyncio.to_thread(shared.handle.read)
    old = ActorRef("the old leader", path, descriptor.secret, descriptor.max_message_bytes, 2)
    read = msgspec.msgpack.encode(GetItem(namespace, "key"))
    write = msgspec.msgpack.encode(PutItem(namespace, "key", ("msgpack", b"\xc0")))

    await shared.store.aput(namespace, "key", {"v": 1})
    await old.ask(read, 20)
    async with cut(shared, "node-1"):
        asked = [asyncio.create_task(old.ask(body, 8)) for body in (read, write, read)]
        await acknowledged(shared, namespace, "key", 2)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, RequestError) for answer in answers), answers
    with pytest.raises(NotSentError):
        await old.ask(read, 0.5)
    await old.close()
    await expect(shared, namespace, "key", 2)
    assert {"node_lost", "shard_promoted", "node_returned", "replica_ready"} <= set(
        await kinds(shared)
    )


def test_a_forked_child_finds_the_shards_while_a_node_is_cut_off(shared: MemoryCluster) -> None:
    status = asyncio.run(shared.status())
    name = next(actor.node for actor in status.actors if actor.node != "node-0")
    namespace = namespace_on(shared, led_by(status, name))
    node = node_of(shared, name)
    shared.store.put(namespace, "before", {"v": 1})

    def read_and_write() -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                shared.store.put(namespace, "child", {"v": 2})
                item = shared.store.get(namespace, "before")
            except RequestError:
                time.sleep(0.05)
            else:
                return item and item.value
        return "not in time"

    node.cut()
    try:
        assert in_fork(read_and_write, PATIENCE + 5) == {"v": 1}
        item = shared.store.get(namespace, "child")
        assert item is not None
        assert item.value == {"v": 2}
    finally:
        node.heal()
    asyncio.run(until_node(shared, name, "up"))


async def test_ten_threads_lose_nothing_while_a_node_is_cut_off(shared: MemoryCluster) -> None:
    status = await shared.status()
    copies = [node for actor in status.actors for node in (actor.node, actor.replica_node)]
    node = next(node for node in copies if node != "node-0")
    places = everywhere(shared, status)
    over = threading.Event()
    give_up = time.monotonic() + 2 * PATIENCE
    stored: list[dict[tuple[tuple[str, str], str], int]] = [{} for _ in range(10)]
    unexpected: list[BaseException] = []

    def work(number: int) -> None:
        count = 0
        # on a busy machine a thread may have come nowhere by the time at which the node is back
        while not over.is_set() or (
            len(stored[number]) < len(places) and time.monotonic() < give_up
        ):
            count += 1
            where = (places[count % len(places)], f"thread-{number}")
            try:
                shared.store.put(*where, {"v": count})
                stored[number][where] = count
                item = shared.store.get(*where)
                assert item is not None
                assert item.value["v"] == count
            except RequestError:
                continue
            except BaseException as error:
                unexpected.append(error)
                raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    try:
        async with cut(shared, node):
            for place in places:
                await acknowledged(shared, place, "key")
    finally:
        over.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert not unexpected
    assert all(len(done) == len(places) for done in stored)
    for done in stored:
        for where, count in done.items():
            item = await shared.store.aget(*where)
            assert item is not None
            assert item.value["v"] >= count  # one whose outcome is not known may have happened


# ---------------------------------------------------------------------- one copy is left


@pytest.mark.parametrize("degrade", [False, True])
async def test_while_one_copy_is_left_writes_are_refused_unless_that_is_allowed(
    degrade: bool,
) -> None:
    async with MemoryCluster(**settings(n_nodes=2, degrade=degrade)) as memory:
        places = everywhere(memory, await memory.status())
        for place in places:
            await memory.store.aput(place, "key", {"v": 1})
        await asyncio.to_thread(node_of(memory, "node-1").lose)
        await until_node(memory, "node-1", "lost")
        for place in places:
            await expect(memory, place, "key")  # the new leader is there
            if degrade:
                await acknowledged(memory, place, "alone", 2)
                await expect(memory, place, "alone", 2)
            else:
                with pytest.raises(ReplicaUnavailableError, match="ack='replica'"):
                    await memory.store.aput(place, "key", {"v": 2})
            await expect(memory, place, "key")
        status = await memory.status()
        assert status.n_nodes == 1
        assert [node.state for node in status.nodes] == ["up", "lost"]


async def test_a_node_whose_program_is_killed_ends_its_actors_and_is_back() -> None:
    async with MemoryCluster(**settings(n_nodes=2)) as memory:
        places = everywhere(memory, await memory.status())
        for place in places:
            await memory.store.aput(place, "key", {"v": 1})
        node = node_of(memory, "node-1")
        program, *actors = await asyncio.to_thread(node.pids)
        os.kill(program, signal.SIGKILL)

        async def another_one() -> bool:
            pids = await asyncio.to_thread(node.pids)
            return len(pids) > len(actors) and not {program, *actors} & set(pids)

        await eventually(another_one, PATIENCE)
        assert await asyncio.to_thread(lambda: all(map(gone, actors)))
        for place in places:
            await expect(memory, place, "key")
            await acknowledged(memory, place, "more")
        await until_node(memory, "node-1", "up")


async def test_when_the_host_is_killed_everything_on_all_nodes_is_there_again() -> None:
    async with MemoryCluster(**settings(n_nodes=2)) as memory:
        before = await memory.status()
        places = everywhere(memory, before)
        for number, place in enumerate(places):
            await memory.store.aput(place, "key", {"v": number})
        os.kill(before.host_pid, signal.SIGKILL)
        for number, place in enumerate(places):
            await expect(memory, place, "key", number)
            await acknowledged(memory, place, "after", number)
            await expect(memory, place, "after", number)
        await until_node(memory, "node-1", "up")
        after = await memory.status()
        assert after.host_pid != before.host_pid
        assert [actor.node for actor in after.actors] == [actor.node for actor in before.actors]
        assert "host_restarted" in await kinds(memory)


# ---------------------------------------------------------------------- without a second copy


async def test_a_lost_shard_is_said_to_be_lost_and_found_again_with_its_node() -> None:
    async with MemoryCluster(**ONE_COPY) as memory:
        status = await memory.status()
        lost, kept = led_by(status, "node-1"), led_by(status, "node-0")
        places = {shard: namespace_on(memory, shard) for shard in (lost, kept)}
        for place in places.values():
            await memory.store.aput(place, "key", {"v": 1})
        async with cut(memory, "node-1"):
            await until_node(memory, "node-1", "lost")

            client = memory.client
            assert isinstance(client, RemoteClient)
            lost_ref = client._actors[lost]
            await until(lambda: isinstance(lost_ref.address, Unreachable))
            with pytest.raises(ShardLostError, match=f"shard-{lost} is lost: its node node-1"):
                await memory.store.aget(places[lost], "key")
            with pytest.raises(ShardLostError):
                memory.store.put(places[lost], "key", {"v": 2})
            with pytest.raises(PartialFailureError, match=f"shard-{lost} is lost"):
                await memory.store.asearch(("nodes",))
            assert await memory.store.aget(places[kept], "key") is not None
            await memory.store.aput(places[kept], "key", {"v": 2})
            states = {actor.shard: actor.state for actor in (await memory.status()).actors}
            assert states == {lost: "lost", kept: "running"}
        await expect(memory, places[lost], "key")
        assert len(await memory.store.asearch(("nodes",))) == 2
        assert {"shard_lost", "node_returned", "shard_found"} <= set(await kinds(memory))


async def test_from_persist_path_a_lost_shard_is_opened_on_another_node(tmp_path: Path) -> None:
    async with MemoryCluster(**ONE_COPY, persist_path=tmp_path / "memory") as memory:
        places = everywhere(memory, await memory.status())
        for place in places:
            for number in range(20):
                await memory.store.aput(place, f"key-{number}", {"v": number})
        await asyncio.to_thread(node_of(memory, "node-1").lose)
        for place in places:
            await acknowledged(memory, place, "more")
            assert len(await memory.store.asearch(place, limit=100)) == 21
        assert "shard_moved" in await kinds(memory)
        await until_node(memory, "node-1", "lost")


# ---------------------------------------------------------------------- the owner's end

OWNER = """
    import asyncio, json, sys
    from pathlib import Path
    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.testing.nodes import LocalNode

    async def main():
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            await memory.store.aput(("a", "b"), "key", {"v": 1})
            status = await memory.status()
            folder = Path(status.folder)
            pids = [status.host_pid]
            for node in status.nodes[1:]:
                pids += LocalNode(folder, node.name).pids()
            pids += [actor.pid for actor in status.actors]
            print(json.dumps({"pids": pids, "folder": status.folder}))
            await asyncio.sleep(60)

    asyncio.run(main())
"""


def test_with_its_owner_all_nodes_end() -> None:
    with python(OWNER, json.dumps(settings(n_nodes=2)), process_group=0) as process:
        assert process.stdout is not None
        cluster = json.loads(process.stdout.readline())
        process.kill()
    assert len(cluster["pids"]) >= 6
    wait_until(lambda: all(map(gone, cluster["pids"])), 20)
    remove_orphan(cluster["folder"])


async def test_a_node_that_takes_longer_than_its_lease_to_end_ends_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"node_timeout": 1.0, "close_timeout": 20.0}
    async with MemoryCluster(
        mode="distributed", spawner="subprocess", n_nodes=2, **settings
    ) as memory:
        status = await memory.status()
        (pid,) = [actor.pid for actor in status.actors if actor.node != status.nodes[0].name]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it cannot end before it goes on
        asyncio.get_running_loop().call_later(3.0, os.kill, pid, signal.SIGCONT)
        begun = time.monotonic()
    assert time.monotonic() - begun > 2.5
    assert "did not end in order" not in caplog.text
