"""Attached programs after the end of their cluster, and when its name is used again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.protocol.handle import ClusterHandle
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE
from flowgentic_actors.errors import (
    ClusterClosedError,
    ClusterClosingError,
    FlowgenticError,
    OutcomeUnknownError,
)
from tests.conftest import SETTINGS
from tests.support.processes import eventually, in_fork, python, remove_orphan

pytestmark = pytest.mark.anyio

SUBPROCESS = SETTINGS["subprocess"]
NAME = f"team-{os.getpid()}"
CLOSED = rf"cluster '{NAME}' was closed at \d"
SOON = 3.0
"""Seconds: 0.2 until it is noticed, and a busy machine."""

OWNER = """
    import asyncio, json, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            print(memory.handle.descriptor)
            await asyncio.sleep(60)

    asyncio.run(main())
"""


@asynccontextmanager
async def attached(
    descriptor: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[dict[str, MemoryCluster]]:
    """Programs that attached in each way, and have used the memory from a loop and a thread."""
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, descriptor)
    handle = ClusterHandle(NAME, descriptor)
    export = await asyncio.to_thread(handle.export)
    ways: dict[str, Any] = {"name": NAME, "handle": handle, "export": export, "environment": None}
    async with AsyncExitStack() as stack:
        programs = {}
        for way, target in ways.items():
            programs[way] = await stack.enter_async_context(MemoryCluster.attach(target))
            await programs[way].store.aput(("a",), way, {"v": 1})
            await asyncio.to_thread(programs[way].store.get, ("a",), way)
        yield programs


def calls_of(memory: MemoryCluster) -> list[Callable[[], Awaitable[Any]]]:
    thread: Any = {"configurable": {"thread_id": "t"}}
    return [
        lambda: memory.store.aget(("a",), "key"),
        lambda: memory.store.aput(("a",), "key", {"v": 1}),
        lambda: memory.store.asearch(()),
        lambda: memory.checkpointer.aget_tuple(thread),
        lambda: asyncio.to_thread(memory.store.get, ("a",), "key"),
        lambda: asyncio.to_thread(memory.store.put, ("a",), "key", {"v": 1}),
        lambda: asyncio.to_thread(memory.store.search, ()),
        memory.status,
        memory.recent_events,
        memory.closing,
    ]


async def expect_closed(memory: MemoryCluster, match: str = CLOSED) -> None:
    for call in calls_of(memory):
        with pytest.raises(ClusterClosedError, match=match):
            await call()


async def until_closed(memory: MemoryCluster) -> None:
    """Until its actors have ended, they answer, or say that the cluster is closing."""

    async def so() -> bool:
        try:
            await memory.store.aget(("a",), "key")
        except ClusterClosedError:
            return True
        except ClusterClosingError:
            return False
        return False

    await eventually(so)


async def test_after_an_orderly_end_each_attached_program_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = await MemoryCluster(**SUBPROCESS, name=NAME).__aenter__()
    async with attached(owner.handle.descriptor, monkeypatch) as programs:
        child = programs["name"]
        await owner.__aexit__(None, None, None)
        begun = time.monotonic()
        for memory in programs.values():
            await expect_closed(memory)
        assert time.monotonic() - begun < SOON

        def in_a_child() -> str:
            try:
                child.store.get(("a",), "key")
            except FlowgenticError as error:
                return f"{type(error).__name__}: {error}"
            return "answered"

        assert in_fork(in_a_child, 10).startswith("ClusterClosedError: cluster ")


async def test_after_the_owners_death_each_attached_program_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = json.dumps({**SUBPROCESS, "name": NAME})
    with python(OWNER, options, process_group=0) as process:
        assert process.stdout is not None
        descriptor = (await asyncio.to_thread(process.stdout.readline)).strip()
        async with attached(descriptor, monkeypatch) as programs:
            process.kill()
            begun = time.monotonic()
            for memory in programs.values():
                await until_closed(memory)
                await expect_closed(memory, CLOSED + ".*did not end in order")
            assert time.monotonic() - begun < 2 * SOON
    remove_orphan(str(Path(descriptor).parent))


async def test_what_is_under_way_at_the_end_has_a_clear_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = await MemoryCluster(**SUBPROCESS, name=NAME, close_timeout=1.0).__aenter__()
    folder = Path(owner.handle.descriptor).parent
    async with attached(owner.handle.descriptor, monkeypatch) as programs:
        actor = (await owner.status()).actors[0].pid
        assert actor is not None
        os.kill(actor, signal.SIGSTOP)
        calls = [calls_of(memory) for memory in programs.values()]
        # Writes first: each takes a connection that is there, and is sent.
        writes = [asyncio.ensure_future(of[number]()) for of in calls for number in (1, 5)]
        await asyncio.sleep(0.3)
        reads = [asyncio.ensure_future(of[number]()) for of in calls for number in (0, 2, 3, 4)]
        await asyncio.sleep(0.3)
        await owner.__aexit__(None, None, None)
        begun = time.monotonic()
        for read in reads:
            with pytest.raises(ClusterClosedError, match=CLOSED):
                await read
        for write in writes:
            with pytest.raises(OutcomeUnknownError, match=CLOSED + ".*may have happened"):
                await write
        assert time.monotonic() - begun < SOON
    remove_orphan(str(folder))


async def test_only_programs_attached_by_name_use_the_next_cluster_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With another number of shards, too."""
    owner = await MemoryCluster(**SUBPROCESS, name=NAME).__aenter__()
    async with attached(owner.handle.descriptor, monkeypatch) as programs:
        await owner.__aexit__(None, None, None)
        async with MemoryCluster(**SUBPROCESS, name=NAME, actors_per_node=3) as again:
            memory = programs.pop("name")

            async def answered() -> bool:
                try:
                    await memory.store.aput(("n", "0"), "key", {"v": 0})
                except ClusterClosedError:
                    return False
                return True

            await eventually(answered, SOON)
            for number in range(1, 8):  # on all shards
                await memory.store.aput(("n", str(number)), "key", {"v": number})
            memory.store.put(("n", "8"), "key", {"v": 8})
            assert memory.store.get(("n", "3"), "key") is not None
            for store in (memory.store, again.store):
                found = await store.asearch(("n",), limit=100)
                assert sorted(item.value["v"] for item in found) == [*range(9)]
            assert (await memory.status()).host_pid == (await again.status()).host_pid
            for other in programs.values():
                await expect_closed(other, f"{CLOSED}.*anew")
        await expect_closed(memory)


async def test_a_cluster_that_is_replaced_at_once_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls go on all the while; none of them hangs, and none that ends is of the wrong kind."""
    owner = await MemoryCluster(**SUBPROCESS, name=NAME).__aenter__()
    over, failed = asyncio.Event(), set()

    async def use(memory: MemoryCluster) -> int:
        answered = 0
        while not over.is_set():
            begun = time.monotonic()
            try:
                await memory.store.aput(("a",), "key", {"v": 1})
                answered += 1
            except FlowgenticError as error:
                failed.add(type(error).__name__)
                answered = 0
            assert time.monotonic() - begun < SOON
            await asyncio.sleep(0.01)
        return answered

    async with MemoryCluster.attach(NAME) as memory:
        using = asyncio.create_task(use(memory))
        await asyncio.sleep(0.1)
        await owner.__aexit__(None, None, None)
        async with MemoryCluster(**SUBPROCESS, name=NAME):
            await asyncio.sleep(1.0)
            over.set()
            assert await using
    assert "ClusterClosedError" in failed
    assert failed <= {"ClusterClosedError", "ClusterClosingError", "OutcomeUnknownError"}


async def test_a_program_on_another_node_is_told_by_the_host() -> None:
    """It sees no files of the cluster; another machine's name stands for another machine."""
    owner = await MemoryCluster(**SUBPROCESS, name=NAME, n_nodes=2).__aenter__()
    descriptor = await asyncio.to_thread(owner.handle.read)
    elsewhere = msgspec.structs.replace(descriptor, machine="elsewhere")
    path = Path(owner.handle.descriptor).with_name("elsewhere.json")
    await asyncio.to_thread(elsewhere.write, path)
    export = await asyncio.to_thread(ClusterHandle(NAME, str(path)).export)
    async with MemoryCluster.attach(export, request_timeout=10) as memory:
        await memory.store.aput(("a",), "key", {"v": 1})
        await asyncio.to_thread(memory.store.get, ("a",), "key")
        await owner.__aexit__(None, None, None)
        begun = time.monotonic()
        for call in calls_of(memory)[:7]:
            with pytest.raises(ClusterClosedError, match=CLOSED):
                await call()
        assert time.monotonic() - begun < SOON
