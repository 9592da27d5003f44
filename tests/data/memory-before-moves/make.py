"""Make the memories of `memories.tar.xz`, with the version of the package that is installed.

python tests/data/memory-before-moves/make.py FOLDER
tar -C FOLDER --sort=name -cJf tests/data/memory-before-moves/memories.tar.xz .

They were made before the modules and classes of the package got the names of
`docs/decisions/names.md`. What a memory holds must not depend on such names: do not make them
again, a newer version would only show that it can read itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import Checkpoint, empty_checkpoint

from flowgentic_actors import MemoryCluster

ACTORS: dict[str, Any] = {
    "mode": "distributed",
    "spawner": "subprocess",
    "actors_per_node": 2,
    "segment_bytes": 64 * 1024,  # what is killed leaves files of that size
}
MEMORIES: dict[str, dict[str, Any]] = {
    "local": {"mode": "local"},
    "actors": ACTORS,
    "actors-killed": ACTORS,
    "nodes": {**ACTORS, "actors_per_node": 1, "n_nodes": 2},
}
THREADS = 2
STEPS = 4
ITEMS = 12


def embed(texts: list[str]) -> list[list[float]]:
    """Vectors that say how often the first letters of the alphabet are in a text."""
    return [[text.count(letter) + 0.5 for letter in "abcd"] for text in texts]


INDEX: Any = {"dims": 4, "embed": embed, "fields": ["text"]}


def text_of(n: int) -> str:
    """The text of an item."""
    return "abcd"[n % 4] * (n + 1)


def checkpoint_of(thread: int, step: int) -> Checkpoint:
    """A checkpoint of a thread: a list that grows, and a value that is replaced."""
    checkpoint = empty_checkpoint()
    version = f"{step:032}.5"
    checkpoint["id"] = f"1f0c0000-0000-6000-800{thread}-00000000000{step}"
    checkpoint["channel_values"] = {
        "messages": [f"message {thread}.{n} " + "x" * 30 for n in range(4 * step)],
        "step": {"n": step, "bytes": bytes(range(8))},
    }
    checkpoint["channel_versions"] = {"messages": version, "step": version}
    return checkpoint


async def fill(memory: MemoryCluster) -> None:
    """Put in a memory what the test looks for in it."""
    saver, store = memory.checkpointer, memory.store
    for thread in range(THREADS):
        config: Any = {"configurable": {"thread_id": f"thread-{thread}", "checkpoint_ns": ""}}
        for step in range(1, STEPS + 1):
            made = checkpoint_of(thread, step)
            config = await saver.aput(
                config,
                made,
                {"source": "loop", "step": step, "parents": {}},
                made["channel_versions"],
            )
            await saver.aput_writes(config, [("messages", f"write {step}"), ("step", step)], "task")
        within: Any = {"configurable": {"thread_id": f"thread-{thread}", "checkpoint_ns": "sub:1"}}
        await saver.aput(within, made, {"source": "loop", "step": 9, "parents": {}}, {})
    await saver.aput({"configurable": {"thread_id": "gone", "checkpoint_ns": ""}}, made, {}, {})
    await saver.adelete_thread("gone")
    for n in range(ITEMS):
        await store.aput(("notes", f"user-{n % 3}"), f"key-{n}", {"text": text_of(n), "n": n})
    await store.aput(("other",), "unindexed", {"text": "no vector"}, index=False)
    await store.aput(("notes", "user-0"), "deleted", {"text": "gone"})
    await store.adelete(("notes", "user-0"), "deleted")
    await memory.cache.aset({(("cache",), "key"): ({"answer": 42}, None)})


async def make(folder: str, name: str) -> None:
    """Make one memory, and tell the processes of its cluster before it is closed."""
    path = Path(folder) / name
    async with MemoryCluster(persist_path=path, index=INDEX, **MEMORIES[name]) as memory:
        await fill(memory)
        if "killed" in name:
            status = await memory.status()
            print(json.dumps([status.host_pid, *(actor.pid for actor in status.actors)]))
            sys.stdout.flush()
            await asyncio.sleep(60)


def main() -> None:
    """Make them all, each in a process of its own."""
    if len(sys.argv) > 2:
        asyncio.run(make(sys.argv[1], sys.argv[2]))
        return
    for name in MEMORIES:
        command = [sys.executable, __file__, sys.argv[1], name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if "killed" in name:
                for pid in [process.pid, *json.loads(process.stdout.readline())]:
                    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
