"""A cluster's life, from opening to closing, and what it tells."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flowgentic_actors import ClusterEvent, MemoryCluster
from flowgentic_actors.errors import ClusterClosedError, ClusterError
from tests.conftest import NEEDS_DRAGON, SETTINGS, mode_params
from tests.support.faces import config_of, remembers, unique
from tests.support.processes import eventually, wait_until

fork_with_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
distributed = pytest.mark.parametrize("mode", mode_params("subprocess", "dragon", slow=("dragon",)))
subprocesses = pytest.mark.parametrize("mode", ["subprocess"])
without_dragon = pytest.mark.parametrize("mode", ["inline", "subprocess"])


# ---------------------------------------------------------------------- before and after


def test_before_it_is_open_it_says_so(mode: str) -> None:
    memory = MemoryCluster(**SETTINGS[mode])
    uses: list[Callable[[], object]] = [
        lambda: memory.checkpointer,
        lambda: memory.store,
        lambda: memory.handle,
        lambda: memory.is_distributed,
        lambda: asyncio.run(memory.status()),
        lambda: asyncio.run(memory.recent_events()),
    ]
    for use in uses:
        with pytest.raises(ClusterClosedError, match="async with"):
            use()


@pytest.mark.anyio
@without_dragon
async def test_after_it_is_closed_it_says_so(mode: str) -> None:
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        saver, store = memory.checkpointer, memory.store
        await remembers(memory)
        # as in a program that is interrupted while something is under way
        events = asyncio.create_task(collect(memory, [], start=10_000))
        await asyncio.sleep(0.05)

    with pytest.raises(ClusterClosedError):
        await asyncio.wait_for(events, 5)
    with pytest.raises(ClusterClosedError):
        await store.aget(("a",), "key")
    with pytest.raises(ClusterClosedError):
        store.put(("a",), "key", {})
    with pytest.raises(ClusterClosedError):
        await saver.aget_tuple(config_of(unique()))
    with pytest.raises(ClusterClosedError):
        saver.get_tuple(config_of(unique()))
    with pytest.raises(ClusterClosedError):
        await memory.status()
    with pytest.raises(ClusterClosedError):
        await memory.recent_events()
    with pytest.raises(ClusterError):
        await memory.__aenter__()
    await memory.__aexit__(None, None, None)  # once more is fine


@pytest.mark.anyio
@subprocesses
async def test_an_attached_cluster_that_was_left_says_so(memory: MemoryCluster) -> None:
    async with MemoryCluster.attach(memory.handle) as attached:
        store = attached.store
        await remembers(attached)

    with pytest.raises(ClusterClosedError):
        await store.aget(("a",), "key")
    await remembers(memory)


@pytest.mark.anyio
@without_dragon
async def test_closing_while_calls_are_under_way_answers_them(mode: str) -> None:
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        calls = [
            asyncio.ensure_future(memory.store.aput(("a",), str(n), {"v": "x" * 10_000}))
            for n in range(200)
        ]
        await asyncio.sleep(0)

    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert all(o is None or isinstance(o, ClusterClosedError) for o in outcomes), outcomes


# ---------------------------------------------------------------------- opening that fails


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("mode", "delays"),
    [
        ("subprocess", [0.0, 0.01, 0.05, 0.1, 0.2]),
        pytest.param("dragon", [1.0], marks=NEEDS_DRAGON),
    ],
)
async def test_opening_that_is_cancelled_leaves_nothing(mode: str, delays: list[float]) -> None:
    for delay in delays:
        opening = asyncio.create_task(MemoryCluster(**SETTINGS[mode]).__aenter__())
        await asyncio.sleep(delay)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(opening, 10)

    # what is left is looked for after every test


@pytest.mark.anyio
@subprocesses
async def test_a_cluster_that_is_left_by_cancellation_leaves_nothing(mode: str) -> None:
    async def live() -> None:
        async with MemoryCluster(**SETTINGS[mode]) as memory:
            await remembers(memory)
            inside.set()
            await asyncio.sleep(60)

    for impatience in (None, 0.0, 0.05):
        inside = asyncio.Event()
        task = asyncio.create_task(live())
        await inside.wait()
        task.cancel()
        if impatience is not None:  # Ctrl-C once more, while it closes
            await asyncio.sleep(impatience)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


@pytest.mark.anyio
async def test_a_relative_scratch_folder_works(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scratch / "sub"
    folder.mkdir()
    monkeypatch.chdir(scratch)
    async with MemoryCluster(**SETTINGS["subprocess"], scratch="sub", name="relative") as memory:
        assert Path(memory.handle.descriptor).is_relative_to(folder)
        monkeypatch.chdir(tmp_path)
        await remembers(memory)
        async with MemoryCluster.attach("relative", scratch=folder) as attached:
            await remembers(attached)


# ---------------------------------------------------------------------- what it tells


async def collect(memory: MemoryCluster, into: list[ClusterEvent], start: int = 0) -> None:
    async for event in memory.events(start):
        into.append(event)


@pytest.mark.anyio
@subprocesses
async def test_events_are_told_as_they_happen(fresh_memory: MemoryCluster) -> None:
    told: list[ClusterEvent] = []
    telling = asyncio.create_task(collect(fresh_memory, told))
    (actor,) = (await fresh_memory.status()).actors

    assert actor.pid is not None
    os.kill(actor.pid, signal.SIGKILL)
    await fresh_memory.store.aput(("a",), "key", {})  # waits for the restart
    await asyncio.to_thread(wait_until, lambda: [e.kind for e in told].count("actor_running") == 2)
    telling.cancel()

    assert [event.kind for event in told] == [
        "actor_running",
        "cluster_opened",
        "actor_exited",
        "actor_running",
    ]
    assert [event.number for event in told] == [0, 1, 2, 3]
    assert [event.actor for event in told] == ["shard-0", "", "shard-0", "shard-0"]
    assert "signal 9" in told[2].detail
    assert await fresh_memory.recent_events() == told
    later = fresh_memory.events(2)
    assert await anext(later) == told[2]
    await later.aclose()


@pytest.mark.anyio
@without_dragon
async def test_status_tells_what_runs_and_what_it_holds(
    mode: str, fresh_memory: MemoryCluster
) -> None:
    await remembers(fresh_memory)

    async def counted() -> bool:
        (actor,) = (await fresh_memory.status()).actors
        return (actor.threads, actor.checkpoints, actor.items) == (1, 1, 1)

    await eventually(counted)  # counters are as fresh as the last heartbeat
    status = await fresh_memory.status()
    (actor,) = status.actors

    local = mode == "inline"
    assert (status.mode, status.spawner) == ("local" if local else "distributed", mode)
    assert status.uptime > 0
    assert (actor.name, actor.shard, actor.state) == ("shard-0", 0, "running")
    assert (actor.epoch, actor.restarts, actor.reason) == (1, 0, "")
    assert (actor.threads, actor.checkpoints, actor.items) == (1, 1, 1)
    assert actor.requests == 4
    assert actor.rejected == 0
    assert actor.blob_bytes > 0
    assert (actor.journal_bytes > 0) is not local
    assert actor.node == os.uname().nodename
    if local:
        assert (status.host_pid, actor.pid, status.folder) == (os.getpid(), os.getpid(), "")
    else:
        assert len({os.getpid(), status.host_pid, actor.pid}) == 3
        assert status.name == fresh_memory.handle.name
        assert Path(status.folder) == Path(fresh_memory.handle.descriptor).parent
