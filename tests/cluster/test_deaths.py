"""What the death of each process does, and what it does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import ClusterEvent, MemoryCluster
from flowgentic_actors.cluster.opener.host_watchdog import HostWatchdog
from flowgentic_actors.cluster.persistence.cluster_folders import HOST_SOCKET
from flowgentic_actors.deadlines import Patience
from flowgentic_actors.errors import MemoryFailedError, OutcomeUnknownError, RequestError
from flowgentic_actors.wire.session import MAX_LOSSES
from tests.conftest import SETTINGS, mode_params
from tests.support.faces import checkpoint_of, config_of, unique
from tests.support.processes import (
    ROOT,
    eventually,
    gone,
    python,
    remove_orphan,
    run_in_runtime,
    wait_until,
)

distributed = pytest.mark.parametrize("mode", mode_params("subprocess", "dragon"))

OWNER = """
    import asyncio, json, os, signal, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        interrupted = asyncio.Event()
        # a parent that ignores SIGINT, such as a shell's background job, hands that down
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.argv[2] == "handled":
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            await memory.store.aput(("a",), "key", {"v": 1})
            status = await memory.status()
            pids = [status.host_pid, *(actor.pid for actor in status.actors)]
            print(json.dumps({"pids": pids, "folder": status.folder}))
            await interrupted.wait()
            memory.store.put(("a",), "key", {"v": 2})
            item = await memory.store.aget(("a",), "key")
            (actor,) = (await memory.status()).actors
            print(item.value["v"], actor.epoch, actor.pid == pids[1])
            await asyncio.sleep(60)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
"""


def owner(mode: str, sigint: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A process group of its own that has a cluster open, and what it says about it."""
    process = python(OWNER, json.dumps(SETTINGS[mode]), sigint, process_group=0)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@distributed
def test_a_cluster_outlives_ctrl_c_and_ends_when_its_owner_is_killed(mode: str) -> None:
    process, cluster = owner(mode, "handled")
    with process:
        assert process.stdout is not None
        try:
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout.readline().strip() == "2 1 True"
        finally:
            process.kill()

    wait_until(lambda: all(map(gone, cluster["pids"])), 10)
    remove_orphan(cluster["folder"])
    # sockets, launchers and shared memory are looked for after every test


def test_a_program_ended_by_ctrl_c_closes_its_cluster() -> None:
    process, cluster = owner("subprocess", "not handled")
    with process:
        try:
            os.killpg(process.pid, signal.SIGINT)
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()

    assert out.strip() == "interrupted"
    assert all(gone(pid) for pid in cluster["pids"])
    assert not Path(cluster["folder"]).exists()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", mode_params("subprocess", "dragon", slow=("dragon",)))
async def test_when_the_host_is_killed_another_one_goes_on(mode: str) -> None:
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        before = await memory.status()
        await memory.store.aput(("a",), "key", {"v": 0})
        async with MemoryCluster.attach(memory.handle) as attached:
            os.kill(before.host_pid, signal.SIGKILL)
            # with the host's end the actor's is certain, and what it was asked is asked again
            underway = [memory.store.aput(("a",), f"key-{n}", {"v": n}) for n in range(50)]
            await asyncio.gather(*underway)

            async def restarted() -> bool:
                return (await memory.status()).host_restarts == 1

            await eventually(restarted)
            memory.store.put(("a",), "blocking", {"v": 1})
            await attached.store.aput(("a",), "attached", {"v": 1})
            assert len(await attached.store.asearch(("a",), limit=100)) == 53
            status = await memory.status()
        assert status.host_pid != before.host_pid
        assert status.actors[0].pid != before.actors[0].pid
        assert (status.actors[0].epoch, status.actors[0].restarts) == (2, 1)
        assert status.uptime > before.uptime
        events = await memory.recent_events()
        assert [event.number for event in events] == [*range(len(events))]
        kinds = [event.kind for event in events if event.kind != "loop_blocked"]  # a busy machine
        assert kinds == [
            "actor_running",
            "cluster_opened",
            "host_restarted",
            "actor_running",
        ]
    assert not await asyncio.to_thread(Path(status.folder).exists)


async def collect(memory: MemoryCluster, into: list[ClusterEvent]) -> None:
    async for event in memory.events():
        into.append(event)


@pytest.mark.anyio
async def test_status_is_whole_and_events_go_on_while_a_new_host_comes_up() -> None:
    told: list[ClusterEvent] = []
    async with MemoryCluster(**SETTINGS["several-actors"]) as memory:
        telling = asyncio.create_task(collect(memory, told))
        status = await memory.status()
        os.kill(status.host_pid, signal.SIGKILL)
        states: set[str] = set()
        while "starting" not in states or {a.state for a in status.actors} != {"running"}:
            status = await memory.status()
            assert [actor.name for actor in status.actors] == ["shard-0", "shard-1", "shard-2"]
            assert all(actor.epoch >= 1 for actor in status.actors)
            states |= {actor.state for actor in status.actors}
        recent = await memory.recent_events()

        async def all_told() -> bool:
            return len(told) >= len(recent)

        await eventually(all_told)
        telling.cancel()
    assert told[: len(recent)] == recent
    assert [event.number for event in recent] == [*range(len(recent))]
    assert [event.kind for event in recent] == [
        *["actor_running"] * 3,
        "cluster_opened",
        "host_restarted",
        *["actor_running"] * 3,
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("persist", "delays"), [(False, [0.0, 0.1, 0.6]), (True, [0.0, 0.6])])
async def test_closing_soon_after_the_hosts_death_is_orderly_and_quick(
    persist: bool, delays: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SETTINGS["subprocess"], "close_timeout": 30.0}
    settings |= {"persist_path": tmp_path / "memory"} if persist else {}
    for delay in delays:
        async with MemoryCluster(**settings) as memory:
            await memory.store.aput(("a",), str(delay), {})
            os.kill((await memory.status()).host_pid, signal.SIGKILL)
            await asyncio.sleep(delay)
            started = time.monotonic()
        assert time.monotonic() - started < (20 if persist else 5)  # one more host seals it
    told = [record.message for record in caplog.records]
    assert not [text for text in told if "in order" in text or "did not come up" in text]
    if persist:
        async with MemoryCluster(**settings) as memory:
            (reopened,) = [e for e in await memory.recent_events() if e.kind == "persist_reopened"]
            assert "was closed in order" in reopened.detail
            assert len(await memory.store.asearch(("a",))) == len(delays)


@pytest.mark.anyio
async def test_what_did_not_end_in_order_is_told_with_its_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {**SETTINGS["several-actors"], "close_timeout": 0.5}
    async with MemoryCluster(**settings) as memory:
        await memory.store.aput(("a",), "key", {})
        status = await memory.status()
        pid = status.actors[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "did not end in order: shard-1: it did not drain in time. Closing took" in record.message
    assert "close_timeout" in record.message
    assert gone(pid)
    await asyncio.to_thread(remove_orphan, status.folder)


@pytest.mark.anyio
async def test_a_stopped_host_is_replaced_and_so_are_actors_that_do_not_end() -> None:
    settings = {**SETTINGS["several-actors"], "heartbeat_interval": 0.2, "hang_timeout": 1.0}
    async with MemoryCluster(**settings) as memory:
        before = await memory.status()
        await memory.store.aput(("a",), "key", {"v": 0})
        stopped = before.actors[0].pid
        assert stopped is not None
        for pid in (before.host_pid, stopped):
            os.kill(pid, signal.SIGSTOP)

        async def replaced() -> bool:
            return (await memory.status()).host_restarts == 1

        await eventually(replaced)
        assert await memory.store.aget(("a",), "key") is not None
        assert gone(stopped)
        assert gone(before.host_pid)
        (event,) = [e for e in await memory.recent_events() if e.kind == "host_restarted"]
        assert "did not answer" in event.detail


@pytest.mark.anyio
async def test_a_host_is_not_killed_because_its_owner_was_suspended() -> None:
    settings = {**SETTINGS["subprocess"], "heartbeat_interval": 0.1, "hang_timeout": 0.5}
    process = python(OWNER, json.dumps(settings), "handled", process_group=0)
    assert process.stdout is not None
    with process:
        try:
            cluster = json.loads(process.stdout.readline())
            pids = cluster["pids"]
            for _ in range(3):
                for pid in (process.pid, *pids):
                    os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(1.0)
                for pid in (process.pid, *pids):
                    os.kill(pid, signal.SIGCONT)
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            assert not any(map(gone, pids))
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, signal.SIGINT)
            assert process.stdout.readline().strip() == "2 1 True"
        finally:
            process.kill()
    await asyncio.to_thread(wait_until, lambda: all(map(gone, pids)), 10)
    await asyncio.to_thread(remove_orphan, cluster["folder"])


@pytest.mark.anyio
async def test_a_host_that_dies_too_often_fails_the_cluster_and_everybody_is_told() -> None:
    settings = {**SETTINGS["subprocess"], "restart_intensity": 1}
    async with MemoryCluster(**settings) as memory, MemoryCluster.attach(memory.handle) as other:
        await memory.store.aput(("a",), "key", {"v": 0})
        folder = (await memory.status()).folder
        for restarts in (0, 1):

            async def serves(restarts: int = restarts) -> bool:
                return (await memory.status()).host_restarts == restarts

            await eventually(serves)
            os.kill((await memory.status()).host_pid, signal.SIGKILL)
        started = time.monotonic()
        for call in (memory.status(), other.store.aget(("b",), "key")):
            with pytest.raises(RequestError, match="has failed: its host was restarted 1 times"):
                await call
        for _ in range(2):  # the first may have been under way when the actor died
            with pytest.raises(RequestError, match="restart_intensity"):
                memory.store.put(("a",), "key", {})
        with pytest.raises(MemoryFailedError):
            memory.store.put(("a",), "key", {})
        assert time.monotonic() - started < 10
        started = time.monotonic()
    assert time.monotonic() - started < 5
    await asyncio.to_thread(remove_orphan, folder)


@distributed
@pytest.mark.anyio
async def test_every_acknowledged_write_outlives_the_actor(memory: MemoryCluster) -> None:
    label, done = unique(), asyncio.Event()
    acknowledged = [0] * 8

    async def write(writer: int) -> None:
        while not done.is_set():
            number = acknowledged[writer]
            await memory.store.aput((label, str(writer)), str(number), {"n": number})
            config = config_of(f"{label}-{writer}")
            await memory.checkpointer.aput(config, checkpoint_of({"n": number}), {}, {})
            acknowledged[writer] += 1

    async def runs() -> bool:
        return (await memory.status()).actors[0].state == "running"

    async def kill_soon() -> None:
        goal = sum(acknowledged) + 100
        await asyncio.to_thread(wait_until, lambda: sum(acknowledged) >= goal)
        await eventually(runs)
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def kill_twice() -> None:
        await kill_soon()
        await kill_soon()
        done.set()

    async with asyncio.TaskGroup() as tasks:
        for writer in range(8):
            tasks.create_task(write(writer))
        tasks.create_task(kill_twice())

    for writer, count in enumerate(acknowledged):
        items = await memory.store.asearch((label, str(writer)), limit=10_000)
        assert sorted(item.value["n"] for item in items) == [*range(count)]
        listed = memory.checkpointer.alist(config_of(f"{label}-{writer}"))
        found = [checkpoint.checkpoint["channel_values"]["n"] async for checkpoint in listed]
        assert found == [*range(count)][::-1]


@pytest.mark.anyio
async def test_a_request_that_ends_its_actor_is_failed_and_innocent_ones_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it is in the request that does it: here a file in the actor's way."""
    poison = """
        import os, flowgentic_actors.shard.actor as shard
        handle = shard.ShardActor.handle
        def deadly(self, call):
            if b"poison" in bytes(call.body):
                os.kill(os.getpid(), 9)
            return handle(self, call)
        shard.ShardActor.handle = deadly
    """
    make = f"{textwrap.dedent(poison)}\nmake = shard.make_shard_actor"
    (tmp_path / "poisoned.py").write_text(make)
    (tmp_path / "sitecustomize.py").write_text(
        "import flowgentic_actors.cluster.nodes.shard_specs as shard_specs\n"
        "shard_specs.SHARD_FACTORY = 'poisoned:make'\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    async with MemoryCluster(**SETTINGS["subprocess"], restart_intensity=30) as memory:
        await memory.store.aput(("a",), "first", {})
        calls = [memory.store.aput((f"n{n}",), "key", {"v": n}) for n in range(5)]
        calls += [memory.store.aput(("a",), "poison", {})]
        calls += [memory.store.aput((f"n{n}",), "key", {"v": n}) for n in range(5, 10)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        guilty = results.pop(5)
        assert isinstance(guilty, OutcomeUnknownError)
        assert "seems to be what ends it" in str(guilty)
        assert results == [None] * 10
        (actor,) = (await memory.status()).actors
        assert actor.restarts <= MAX_LOSSES + 2


@pytest.mark.anyio
@pytest.mark.parametrize("mode", mode_params("dragon"))
async def test_when_the_dragon_launcher_is_killed_a_new_runtime_is_started(mode: str) -> None:
    """What the old one leaves in shared memory is looked for after every test."""
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        before = await memory.status()
        await memory.store.aput(("a",), "key", {"v": 1})
        launcher = os.getpgid(before.host_pid)
        os.kill(launcher, signal.SIGKILL)

        async def restarted() -> bool:
            return (await memory.status()).host_restarts == 1

        await eventually(restarted)
        assert gone(before.host_pid)
        item = await memory.store.aget(("a",), "key")
        assert item is not None
        assert item.value == {"v": 1}
        (event,) = [e for e in await memory.recent_events() if e.kind == "host_restarted"]
        assert "the runtime that it ran in" in event.detail


IN_RUNTIME = """
    import asyncio, os, signal
    from flowgentic_actors import MemoryCluster

    async def main():
        async with MemoryCluster(fallback_to_local=False) as memory:
            await memory.store.aput(("a",), "key", {"v": 1})
            status = await memory.status()
            os.kill(status.host_pid, signal.SIGKILL)
            while (await memory.status()).host_restarts == 0:
                await asyncio.sleep(0.05)
            item = await memory.store.aget(("a",), "key")
            (actor,) = (await memory.status()).actors
            print("answer", item.value["v"], status.spawner, actor.epoch, flush=True)
        print("closed", flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", mode_params("dragon", slow=("dragon",)))
def test_a_host_killed_inside_a_programs_runtime_is_replaced_there(
    mode: str, tmp_path: Path
) -> None:
    run = run_in_runtime(IN_RUNTIME, tmp_path)
    assert "answer 1 dragon 2" in run.stdout, run.stdout + run.stderr
    assert "closed" in run.stdout


CLIENT = """
    import asyncio, sys, time
    from flowgentic_actors import MemoryCluster

    async def main():
        async with MemoryCluster.attach(sys.argv[1]) as memory:
            answers = [asyncio.ensure_future(memory.store.aget(("a",), "large")) for _ in range(50)]
            await asyncio.sleep(0)  # they are on their way, and nobody will read the answers
            request = asyncio.ensure_future(memory.store.aput(("a",), "half", {"v": "x" * 10**8}))
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, lambda: (print("busy", flush=True), time.sleep(60)))
            await request

    asyncio.run(main())
"""


@pytest.mark.anyio
async def test_a_client_killed_amid_requests_and_answers_leaves_nothing() -> None:
    async with MemoryCluster(**SETTINGS["subprocess"], name="clients") as memory:
        await memory.store.aput(("a",), "large", {"v": "x" * 4_000_000})
        clients = [python(CLIENT, "clients") for _ in range(3)]
        for client in clients:
            with client:
                assert client.stdout is not None
                await asyncio.to_thread(client.stdout.readline)
                client.kill()

        async def at_rest() -> bool:
            (actor,) = (await memory.status()).actors
            return actor.mailbox_bytes == actor.mailbox_requests == 0

        await eventually(at_rest)
        await memory.store.aput(("a",), "key", {"v": 1})
        assert await memory.store.aget(("a",), "key") is not None
        (actor,) = (await memory.status()).actors
        assert actor.epoch == 1


def test_a_host_that_died_after_it_made_its_socket_is_not_waited_for(tmp_path: Path) -> None:
    class Dead:
        def running(self) -> bool:
            return False

    class Spec:
        secret = bytes(32)
        max_message_bytes = 1 << 20

    watchdog: Any = object.__new__(HostWatchdog)
    watchdog._folder, watchdog._spec, watchdog._process, watchdog._closing = (
        tmp_path,
        Spec,
        Dead(),
        False,
    )
    watchdog._socket = tmp_path / HOST_SOCKET
    (tmp_path / HOST_SOCKET).touch()  # nobody listens there
    started = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        watchdog._connect(Patience(60))
    assert time.monotonic() - started < 10
