"""A cluster's life, from opening to closing, and who may use it from where."""

from __future__ import annotations

import asyncio
import base64
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

import flowgentic_actors.cluster.opener.host_launcher
import flowgentic_actors.memory
from flowgentic_actors import ClusterEvent, ClusterHandle, MemoryCluster
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE, SchedulerJob, dragon_launcher
from flowgentic_actors.errors import (
    ClusterClosedError,
    ClusterError,
    ClusterExistsError,
    ClusterNotFoundError,
    ClusterOpenError,
    DragonUnavailableError,
    LocalClusterError,
)
from flowgentic_actors.wire.client_wire import ClientWire
from tests.conftest import NEEDS_DRAGON, SETTINGS, mode_params
from tests.support.faces import checkpoint_of, config_of, unique
from tests.support.processes import eventually, in_fork, output_of, wait_until

fork_with_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
distributed = pytest.mark.parametrize("mode", mode_params("subprocess", "dragon"))
subprocesses = pytest.mark.parametrize("mode", ["subprocess"])
without_dragon = pytest.mark.parametrize("mode", ["inline", "subprocess"])


async def remembers(memory: MemoryCluster) -> None:
    """The memory works, awaited and blocking."""
    thread, label = unique(), unique()
    checkpoint = checkpoint_of({"a": 1})
    versions = checkpoint["channel_versions"]
    await memory.checkpointer.aput(config_of(thread), checkpoint, {}, versions)
    assert memory.checkpointer.get_tuple(config_of(thread)) is not None
    memory.store.put((label,), "key", {"v": 1})
    item = await memory.store.aget((label,), "key")
    assert item is not None
    assert item.value == {"v": 1}


# ---------------------------------------------------------------------- loops and threads


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


# ---------------------------------------------------------------------- forks


@fork_with_threads
@distributed
def test_a_forked_child_uses_the_cluster_too(memory: MemoryCluster) -> None:
    label = unique()
    memory.store.put((label,), "parent", {})  # so that there are connections to inherit

    def child() -> list[str]:
        memory.store.put((label,), "blocking", {})
        asyncio.run(memory.store.aput((label,), "awaited", {}))
        asyncio.run(remembers(memory))
        return [item.key for item in memory.store.search((label,))]

    assert in_fork(child) == ["awaited", "blocking", "parent"]
    memory.store.put((label,), "parent again", {})
    assert len(memory.store.search((label,))) == 4


@fork_with_threads
@distributed
@pytest.mark.anyio
async def test_a_child_forked_inside_a_running_loop_uses_the_cluster_too(
    memory: MemoryCluster,
) -> None:
    label = unique()
    await memory.store.aput((label,), "parent", {})

    def child() -> int:
        asyncio.run(memory.store.aput((label,), "child", {}))
        return len(memory.store.search((label,)))

    assert in_fork(child) == 2
    assert len(await memory.store.asearch((label,))) == 2


@fork_with_threads
@distributed
def test_a_process_forked_by_multiprocessing_uses_the_cluster_too(memory: MemoryCluster) -> None:
    label = unique()
    memory.store.put((label,), "parent", {})
    context = multiprocessing.get_context("fork")

    def child(key: str) -> None:
        memory.store.put((label,), key, {})
        asyncio.run(remembers(memory))

    children = [context.Process(target=child, args=(f"child {n}",)) for n in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join(30)

    assert [process.exitcode for process in children] == [0, 0, 0]
    assert len(memory.store.search((label,))) == 4


@fork_with_threads
@pytest.mark.parametrize("mode", ["inline"])
def test_a_fork_of_a_local_clusters_process_is_refused(memory: MemoryCluster) -> None:
    label = unique()

    def awaited() -> None:
        asyncio.run(memory.store.aput((label,), "child", {}))

    for child in (lambda: memory.store.put((label,), "child", {}), awaited):
        error = in_fork(child)
        assert isinstance(error, LocalClusterError)
        assert "mode='distributed'" in str(error)
    memory.store.put((label,), "parent", {})
    assert len(memory.store.search((label,))) == 1


@fork_with_threads
@distributed
def test_a_forked_child_that_closes_the_cluster_ends_only_its_own_part(
    memory: MemoryCluster,
) -> None:
    label = unique()
    memory.store.put((label,), "key", {"v": 1})

    assert in_fork(lambda: asyncio.run(memory.__aexit__(None, None, None))) is None

    assert Path(memory.handle.descriptor).exists()
    assert len(memory.store.search((label,))) == 1
    asyncio.run(remembers(memory))


# ---------------------------------------------------------------------- attaching

ATTACHER = """
    import asyncio, base64, pickle, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        handle, name, export = pickle.loads(base64.b64decode(sys.argv[1]))
        for how, target in (("handle", handle), ("name", name), ("export", export), ("env", None)):
            async with MemoryCluster.attach(target) as memory:
                assert memory.is_distributed
                item = await memory.store.aget(("attached", name), "parent")
                await memory.store.aput(("attached", name), how, item.value)
                memory.store.put(("attached", name), how + " blocking", item.value)

    asyncio.run(main())
"""


@distributed
def test_another_process_attaches_by_handle_name_export_and_environment(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = memory.handle
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, handle.descriptor)
    memory.store.put(("attached", handle.name), "parent", {"v": 1})

    given = pickle.dumps((handle, handle.name, handle.export()))
    output_of(ATTACHER, base64.b64encode(given).decode())

    keys = [item.key for item in memory.store.search(("attached", handle.name))]
    ways = ["env", "export", "handle", "name"]
    assert keys == sorted([*ways, *(f"{way} blocking" for way in ways), "parent"])
    asyncio.run(remembers(memory))  # whoever attached did not end it


@distributed
def test_the_secret_is_in_nothing_that_is_shown_or_passed_on(memory: MemoryCluster) -> None:
    handle = memory.handle
    secret = handle.read().secret.reveal()
    status = asyncio.run(memory.status())
    attached = MemoryCluster.attach(handle.export())
    things = [memory, handle, handle.read(), status, asyncio.run(memory.recent_events()), attached]
    things += [memory.checkpointer, memory.store, memory._client, memory._owner]
    shown = [(repr(thing) + str(thing)).encode() for thing in things]
    shown += [pickle.dumps(handle), msgspec.msgpack.encode(status)]
    for pid in (status.host_pid, *(actor.pid for actor in status.actors)):
        process = psutil.Process(pid)
        shown.append(repr((process.cmdline(), process.environ())).encode())
    shown += [log.read_bytes() for log in Path(status.folder).glob("*.log")]

    forms = (secret, secret.hex().encode(), msgspec.json.encode(secret).strip(b'"'))
    for text in shown:
        assert not any(form in text for form in forms), text
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps(memory)
    descriptor = Path(handle.descriptor)
    assert descriptor.stat().st_mode & 0o777 == 0o600
    assert descriptor.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.anyio
@subprocesses
async def test_a_descriptor_that_others_can_read_is_not_trusted(
    fresh_memory: MemoryCluster,
) -> None:
    await asyncio.to_thread(Path(fresh_memory.handle.descriptor).chmod, 0o644)
    with pytest.raises(ClusterNotFoundError, match="mode 0644: only its owner"):
        async with MemoryCluster.attach(fresh_memory.handle):
            pass


@pytest.mark.anyio
async def test_attaching_to_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DESCRIPTOR_VARIABLE, raising=False)
    nowhere = ClusterHandle("nowhere", str(tmp_path / "nowhere" / "cluster.json"))
    for target in (None, "nowhere", "../nowhere", "", nowhere, "flowgentic:", "flowgentic:%%%"):
        with pytest.raises(ClusterNotFoundError):
            async with MemoryCluster.attach(target):
                pass
    async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
        handle, export = memory.handle, await asyncio.to_thread(memory.handle.export)
    for target in (handle, handle.name, export):
        with pytest.raises(ClusterNotFoundError, match=handle.name):
            async with MemoryCluster.attach(target, request_timeout=0.3):
                pass


def test_attaching_takes_no_settings_that_the_opener_decided() -> None:
    with pytest.raises(TypeError, match="actors_per_node"):
        MemoryCluster.attach("name", actors_per_node=2)


@pytest.mark.anyio
async def test_a_local_cluster_has_no_handle() -> None:
    async with MemoryCluster(mode="local") as memory:
        assert not memory.is_distributed
        with pytest.raises(LocalClusterError, match="distributed"):
            _ = memory.handle


@pytest.mark.anyio
async def test_a_name_is_taken_once() -> None:
    name = f"named-{os.getpid()}"
    settings = {**SETTINGS["subprocess"], "name": name}
    async with MemoryCluster(**settings) as memory:
        with pytest.raises(ClusterExistsError, match=name):
            async with MemoryCluster(**settings):
                pass
        await remembers(memory)
        async with MemoryCluster.attach(name) as attached:
            await remembers(attached)
    async with MemoryCluster(**settings) as memory:  # it is free again
        await remembers(memory)


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


# ---------------------------------------------------------------------- without Dragon


@pytest.fixture
def no_dragon(monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a machine where Dragon is not installed."""
    reason = "the package dragonhpc is not installed: pip install dragonhpc"
    monkeypatch.setattr(flowgentic_actors.memory, "why_no_dragon", lambda: reason)
    monkeypatch.setattr(flowgentic_actors.memory, "_said", set())
    return reason


@pytest.mark.anyio
async def test_without_dragon_it_falls_back_and_says_so_once(
    no_dragon: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with MemoryCluster(mode="distributed") as memory:
            assert not memory.is_distributed
            await remembers(memory)
            events = await memory.recent_events()
            assert [event.kind for event in events] == ["cluster_opened", "fallback_to_local"]
            assert events[1].detail == no_dragon

    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name == "flowgentic_actors"
    assert "local fallback" in warning.message
    assert no_dragon in warning.message


@pytest.mark.anyio
@pytest.mark.usefixtures("no_dragon")
async def test_without_dragon_it_raises_where_no_fallback_is_wanted() -> None:
    with pytest.raises(DragonUnavailableError, match="pip install dragonhpc"):
        async with MemoryCluster(mode="distributed", fallback_to_local=False):
            pass


@pytest.mark.anyio
async def test_what_was_to_survive_the_loss_of_power_is_not_kept_in_a_local_cluster() -> None:
    with pytest.raises(ClusterOpenError, match="persist_path"):
        async with MemoryCluster(ack="disk"):
            pass


@pytest.mark.anyio
@pytest.mark.usefixtures("no_dragon")
async def test_without_dragon_plain_subprocesses_need_no_fallback() -> None:
    async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
        assert memory.is_distributed


@pytest.mark.anyio
@pytest.mark.dragon
@NEEDS_DRAGON[1]
async def test_a_dragon_that_does_not_come_up_falls_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = tmp_path / "dragon"
    launcher.write_text("#!/bin/sh\necho no more semaphores >&2\nexit 1\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(
        flowgentic_actors.cluster.opener.host_launcher, "dragon_launcher", lambda: str(launcher)
    )
    async with MemoryCluster(mode="distributed") as memory:
        assert not memory.is_distributed
        await remembers(memory)
    assert "no more semaphores" in caplog.text
    with pytest.raises(ClusterOpenError, match="no more semaphores"):
        async with MemoryCluster(mode="distributed", fallback_to_local=False):
            pass


@pytest.mark.anyio
@pytest.mark.dragon
@NEEDS_DRAGON[1]
async def test_a_dragon_that_fails_once_to_come_up_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = await asyncio.to_thread(dragon_launcher)
    launcher = tmp_path / "dragon"
    launcher.write_text(
        f'#!/bin/sh\nif mkdir {tmp_path}/first; then exit 1; fi\nexec {real} "$@"\n'
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(
        flowgentic_actors.cluster.opener.host_launcher, "dragon_launcher", lambda: str(launcher)
    )
    async with MemoryCluster(mode="distributed", fallback_to_local=False) as memory:
        await remembers(memory)
        assert (await memory.status()).spawner == "dragon"
    assert "started once more" in caplog.text


@pytest.mark.anyio
async def test_auto_is_local_outside_of_a_job_and_distributed_inside(
    no_dragon: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flowgentic_actors.memory, "scheduler_job", lambda: None)
    async with MemoryCluster() as memory:
        assert not memory.is_distributed
        assert len(await memory.recent_events()) == 1
    assert not caplog.records

    job = SchedulerJob("slurm", "1", 1)
    monkeypatch.setattr(flowgentic_actors.memory, "scheduler_job", lambda: job)
    async with MemoryCluster() as memory:
        assert not memory.is_distributed
    assert no_dragon in caplog.text
    async with MemoryCluster(spawner="subprocess") as memory:
        assert memory.is_distributed


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
