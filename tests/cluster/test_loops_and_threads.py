"""One cluster, used and opened from several event loops, threads and tasks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import ClusterClosedError, ClusterError
from flowgentic_actors.wire.client_wire import ClientWire
from tests.conftest import NEEDS_DRAGON, SETTINGS
from tests.support.faces import remembers, unique

subprocesses = pytest.mark.parametrize("mode", ["subprocess"])
without_dragon = pytest.mark.parametrize("mode", ["inline", "subprocess"])


def test_one_cluster_serves_one_event_loop_after_another(memory: MemoryCluster) -> None:
    label = unique()
    for number in range(3):
        asyncio.run(memory.store.aput((label,), str(number), {}))
        asyncio.run(remembers(memory))

    assert len(memory.store.search((label,))) == 3


def test_one_cluster_serves_many_threads_and_loops_at_once(memory: MemoryCluster) -> None:
    label, together = unique(), threading.Barrier(64)

    def live(number: int) -> None:
        together.wait(30)
        if number % 8 == 0:
            asyncio.run(remembers(memory))
        for step in range(4):
            memory.store.put((label, str(number)), str(step), {"n": number})
            assert len(memory.store.search((label, str(number)))) == step + 1

    with ThreadPoolExecutor(64) as pool:
        for result in [pool.submit(live, number) for number in range(64)]:
            result.result(60)

    assert len(memory.store.search((label,), limit=1000)) == 256


@without_dragon
def test_a_loop_that_runs_in_pieces_with_blocking_calls_between(mode: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        memory = loop.run_until_complete(MemoryCluster(**SETTINGS[mode]).__aenter__())
        for number in range(3):
            loop.run_until_complete(memory.store.aput(("a",), str(number), {}))
            assert len(memory.store.search(("a",))) == number + 1
            loop.run_until_complete(remembers(memory))
        loop.run_until_complete(memory.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.mark.anyio
@without_dragon
async def test_a_cluster_may_be_left_in_another_task_than_it_was_entered_in(mode: str) -> None:
    memory = MemoryCluster(**SETTINGS[mode])
    await asyncio.create_task(memory.__aenter__())
    await asyncio.create_task(remembers(memory))
    await asyncio.create_task(memory.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("mode", "times"),
    # A run opens more than one cluster by Dragon anyway: one is shared by most tests.
    [
        ("inline", 10),
        ("subprocess", 3),
        pytest.param("subprocess", 20, marks=pytest.mark.slow),
        pytest.param("dragon", 2, marks=[*NEEDS_DRAGON, pytest.mark.slow]),
    ],
)
def test_clusters_are_opened_one_after_the_other_in_one_process(mode: str, times: int) -> None:
    async def live() -> str:
        async with MemoryCluster(**SETTINGS[mode]) as memory:
            await remembers(memory)
            status = await memory.status()
            assert status.spawner == mode
            return status.name

    names = [asyncio.run(live()) for _ in range(times)]

    assert mode == "inline" or len(set(names)) == times


@pytest.mark.anyio
async def test_two_clusters_at_once_share_nothing() -> None:
    async with (
        MemoryCluster(**SETTINGS["subprocess"]) as one,
        MemoryCluster(**SETTINGS["subprocess"]) as two,
        MemoryCluster(mode="local") as three,
    ):
        await one.store.aput(("a",), "key", {})

        assert await two.store.aget(("a",), "key") is None
        assert await three.store.aget(("a",), "key") is None


@pytest.mark.anyio
@subprocesses
async def test_the_clients_loop_may_be_of_another_make(fresh_memory: MemoryCluster) -> None:
    """Such loops bring transports of their own, which are no subclasses of asyncio's."""

    class Foreign:
        def __init__(self, transport: asyncio.BaseTransport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> object:
            return getattr(self._transport, name)

    made = ClientWire.connection_made

    def connection_made(self: ClientWire, transport: asyncio.BaseTransport) -> None:
        made(self, Foreign(transport))  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientWire, "connection_made", connection_made)
        await fresh_memory.store.aput(("a",), "key", {"v": 1})
        assert await fresh_memory.store.aget(("a",), "key") is not None


@pytest.mark.parametrize("mode", ["inline", "subprocess"])
def test_a_program_without_an_event_loop_opens_and_closes(mode: str) -> None:
    with MemoryCluster(**SETTINGS[mode]) as memory:
        memory.store.put(("a",), "key", {"v": 1})
        item = memory.store.get(("a",), "key")
        assert item is not None
        assert item.value == {"v": 1}
        assert not memory.uses_dragon
    memory.close()
    with pytest.raises(ClusterClosedError):
        memory.store.get(("a",), "key")
    with pytest.raises(ClusterError, match="open"), memory:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["inline", "subprocess"])
async def test_a_loops_own_thread_may_open_and_close_too(mode: str) -> None:
    memory = MemoryCluster(**SETTINGS[mode]).open()
    await memory.store.aput(("a",), "key", {"v": 1})
    assert memory.store.get(("a",), "key") is not None
    memory.close()
