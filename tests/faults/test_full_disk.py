"""What ends on a full disk begins again there: actors, hosts, and shards of lost nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_disk import small_disk

pytestmark = pytest.mark.timeout(200)

START = """
import asyncio, json, os, signal, sys
from pathlib import Path

from flowgentic_actors import FlowgenticError, MemoryCluster
from flowgentic_actors.errors import StorageError
from flowgentic_actors.testing.nodes import LocalNode

DISK = Path(sys.argv[1])
SETTINGS = dict(mode="distributed", spawner="subprocess", scratch=DISK, request_timeout=20)
KEYS = [("users", str(number)) for number in range(100)]
told = {}


def fill():
    with (DISK / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            told["full"] = error.strerror


async def put_all(memory):
    for key in KEYS:
        await memory.store.aput(key, "key", {"text": "x" * 10_000})


async def until_written(memory):
    # The first write that is refused has the actor look whether there is room by now.
    for _ in range(100):
        try:
            return await put_all(memory)
        except StorageError:
            await asyncio.sleep(0.1)


async def lost(memory):
    async def one(key):
        try:
            return await memory.store.aget(key, "key") is not None
        except FlowgenticError as error:
            return str(error)

    return [found for found in await asyncio.gather(*map(one, KEYS)) if found is not True][:3]


async def until(memory, so):
    for _ in range(200):
        status = await memory.status()
        if so(status):
            return status
        await asyncio.sleep(0.1)
    raise AssertionError(status)


async def replaced(memory, pid):
    for _ in range(200):
        try:
            if (await memory.status()).host_pid != pid:
                return
        except FlowgenticError as error:
            told["waited"] = str(error)
        await asyncio.sleep(0.1)

"""

KILLED = """
async def main():
    async with MemoryCluster(**SETTINGS) as memory:
        await put_all(memory)
        status = await memory.status()
        fill()
        os.kill(status.actors[0].pid, signal.SIGKILL)
        told["actor killed"] = await lost(memory)
        told["actor"] = (await memory.status()).actors[0].state
        os.kill(status.host_pid, signal.SIGKILL)
        await replaced(memory, status.host_pid)
        told["host killed"] = await lost(memory)
        told["actor again"] = (await memory.status()).actors[0].state


asyncio.run(main())
told["left"] = [path.name for path in DISK.glob("flowgentic-*/*/")]
print(json.dumps(told))
"""

LOST = """
async def main():
    settings = dict(n_nodes=3, replicas=2, ack="replica", node_timeout=2.0)
    async with MemoryCluster(**SETTINGS, **settings) as memory:
        await put_all(memory)
        status = await until(memory, lambda status: all(a.replica_ready for a in status.actors))
        fill()
        node = LocalNode(Path(status.folder), "node-1")
        for pid in node.pids():
            os.kill(pid, signal.SIGSTOP)
        await until(memory, lambda status: "node-1" not in [a.node for a in status.actors])
        told["node lost"] = await lost(memory)
        leader = next(a for a in (await memory.status()).actors if a.node == "node-0")
        os.kill(leader.pid, signal.SIGKILL)
        told["leader killed"] = await lost(memory)
        (DISK / "filler").unlink()
        for pid in node.pids():
            os.kill(pid, signal.SIGCONT)
        await until(memory, lambda status: all(a.replica_ready for a in status.actors))
        await until_written(memory)
        told["room again"] = await lost(memory)
        told["host"] = (await memory.status()).host_pid == status.host_pid


asyncio.run(main())
told["left"] = [path.name for path in DISK.glob("flowgentic-*/*/")]
print(json.dumps(told))
"""


def _told(scratch: Path, program: str) -> dict[str, Any]:
    with small_disk(scratch, "200m") as disk:
        ended = disk.run("-c", START + program, str(disk.path), timeout=180)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert told.pop("full") == "No space left on device"
    told.pop("waited", None)
    return told


def test_a_killed_actor_and_a_killed_host_come_back(scratch: Path) -> None:
    assert _told(scratch, KILLED) == {
        "actor killed": [],
        "actor": "running",
        "host killed": [],
        "actor again": "running",
        "left": [],
    }


def test_a_lost_nodes_shards_are_promoted_and_get_second_copies_once_there_is_room(
    scratch: Path,
) -> None:
    assert _told(scratch, LOST) == {
        "node lost": [],
        "leader killed": [],
        "room again": [],
        "host": True,
        "left": [],
    }
