"""What the death of each process does, and what it does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import Item

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import RequestError
from tests.cluster.helpers import eventually, gone, python, wait_until
from tests.conftest import SETTINGS, mode_params
from tests.contract.faces import checkpoint_of, config_of, unique

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
    wait_until(lambda: not Path(cluster["folder"]).exists(), 10)
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


@distributed
@pytest.mark.anyio
async def test_when_the_host_is_killed_calls_fail_in_time_and_closing_cleans_up(
    mode: str,
) -> None:
    settings = {**SETTINGS[mode], "request_timeout": 1.0}
    async with MemoryCluster(**settings) as memory:
        status = await memory.status()
        (actor,) = status.actors
        pid = actor.pid
        assert pid is not None
        await memory.store.aput(("a",), "key", {})
        underway = [asyncio.ensure_future(memory.store.aget(("a",), "key")) for _ in range(10)]
        os.kill(status.host_pid, signal.SIGKILL)
        outcomes = await asyncio.wait_for(asyncio.gather(*underway, return_exceptions=True), 5)
        assert all(isinstance(outcome, Item | RequestError) for outcome in outcomes), outcomes
        await asyncio.to_thread(wait_until, lambda: gone(pid), 10)

        started = time.monotonic()
        for call in (memory.store.aget(("a",), "key"), memory.status(), memory.recent_events()):
            with pytest.raises(RequestError, match="request_timeout"):
                await call
        with pytest.raises(RequestError, match="request_timeout"):
            memory.store.put(("a",), "key", {})
        assert time.monotonic() - started < 4 * 1.0 + 3
        started = time.monotonic()

    assert time.monotonic() - started < 6
    assert not await asyncio.to_thread(Path(status.folder).exists)


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
