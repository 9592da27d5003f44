"""Clusters whose memory stays: fill one, kill one, check what is there."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from flowgentic_actors import MemoryCluster
from tests.conftest import SETTINGS
from tests.support.faces import checkpoint_of, config_of
from tests.support.processes import gone, python, wait_until

OWNER = """
    import asyncio, json, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            for n in range(20):
                await memory.store.aput(("team", str(n % 4)), f"key-{n}", {"n": n})
            status = await memory.status()
            pids = [status.host_pid, *(actor.pid for actor in status.actors)]
            print(json.dumps({"pids": pids, "folder": status.folder}))
            await asyncio.sleep(60)

    asyncio.run(main())
"""


def settings(**more: Any) -> dict[str, Any]:
    return {**SETTINGS["subprocess"], **more}


def die(**more: Any) -> dict[str, Any]:
    """Fill a cluster and kill its owner, its host and its actors in one moment."""
    with python(OWNER, json.dumps(settings(**more))) as process:
        assert process.stdout is not None
        cluster: dict[str, Any] = json.loads(process.stdout.readline())
        for pid in [process.pid, *cluster["pids"]]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(map(gone, cluster["pids"])))
    return cluster


async def fill(memory: MemoryCluster, label: str) -> None:
    for n in range(10):
        await memory.store.aput((label, str(n % 3)), f"key-{n}", {"n": n})
        config = config_of(f"{label}-{n % 3}")
        await memory.checkpointer.aput(config, checkpoint_of({"n": n}), {}, {})


async def check(memory: MemoryCluster, label: str) -> None:
    items = await memory.store.asearch((label,), limit=100)
    assert sorted(item.value["n"] for item in items) == [*range(10)]
    listed = [memory.checkpointer.alist(config_of(f"{label}-{n}")) for n in range(3)]
    found = [c.checkpoint["channel_values"]["n"] for run in listed async for c in run]
    assert sorted(found) == [*range(10)]
    latest = await memory.checkpointer.aget_tuple(config_of(f"{label}-0"))
    assert latest is not None
    assert latest.checkpoint["channel_values"]["n"] == 9
