"""The child process of `footprint`: measures one memory, first idle, then filled."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore

from flowgentic_actors import MemoryCluster
from flowgentic_actors.actors.process_group import group_members
from flowgentic_actors.bench.machine import processor_time, resident, shared_memory
from flowgentic_actors.bench.workloads import expect

_VALUE: Final = 4096
_BATCH: Final = 200
_NAMESPACE: Final = ("bench", "memory")

_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "local": {"mode": "local"},
    "local-journal": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
    "subprocess-disk": {"mode": "distributed", "spawner": "subprocess", "ack": "disk"},
    "dragon": {"mode": "distributed", "spawner": "dragon", "fallback_to_local": False},
}


def main() -> int:
    """Measure the contender that the argument names, and print the results."""
    asked = msgspec.json.decode(sys.argv[1])
    found = asyncio.run(_measure(**asked))
    print(msgspec.json.encode(found).decode())
    return 0


async def _measure(
    *, name: str, hot_memory: int | None, items: int, idle: float, rest: float, scratch: str
) -> dict[str, float]:
    found: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        memory: MemoryCluster | None = None
        store: BaseStore = InMemoryStore()
        if name != "in-memory":
            settings = dict(_SETTINGS[name])
            if settings["mode"] == "distributed":
                settings["scratch"] = Path(scratch)
            if hot_memory is not None:
                settings["hot_memory"] = hot_memory
            if name == "local-journal":
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
                settings = {**_SETTINGS[name], "persist_path": Path(folder) / "memory"}
            memory = await stack.enter_async_context(MemoryCluster(**settings))
            store = memory.store
        holders, others = await _processes(memory)
        if idle:
            found |= await _idle(holders, others, idle, rest)
        if items:
            found |= await _fill(store, memory, items, _Look(holders, rest))
    return found


async def _processes(memory: MemoryCluster | None) -> tuple[list[int], list[int]]:
    """The processes that hold the values, and those started beside them."""
    if memory is None or not memory.is_distributed:
        return [os.getpid()], []
    status = await memory.status()
    actors = [actor.pid for actor in status.actors if actor.pid is not None]
    group = group_members(os.getpgid(status.host_pid))
    return actors, [pid for pid in group if pid not in actors]


async def _idle(
    holders: list[int], others: list[int], seconds: float, rest: float
) -> dict[str, float]:
    await asyncio.sleep(rest)  # what opening has left to do
    before = processor_time(holders), processor_time(others)
    await asyncio.sleep(seconds)
    after = processor_time(holders), processor_time(others)
    found = {"idle": 100 * (after[0] - before[0]) / seconds}
    if others:
        found["idle_others"] = 100 * (after[1] - before[1]) / seconds
    return found


class _Look(NamedTuple):
    """Reader of the bytes that a memory holds.

    Attributes:
        holders: Processes that hold it.
        rest: Seconds after which what is done behind the answers is done.
    """

    holders: list[int]
    rest: float

    async def at(self, memory: MemoryCluster | None) -> dict[str, float]:
        """The bytes that are held now."""
        await asyncio.sleep(self.rest)
        gc.collect()
        journal = 0
        if memory is not None:
            journal = sum(actor.journal_bytes for actor in (await memory.status()).actors)
        return {"resident": resident(self.holders), "shm": shared_memory(), "journal": journal}


async def _fill(
    store: BaseStore, memory: MemoryCluster | None, items: int, look: _Look
) -> dict[str, float]:
    # The first tenth brings what comes with the first values: pools, a DDict, modules.
    warm = items // 10
    await _put(store, range(warm))
    before = await look.at(memory)
    await _put(store, range(warm, warm + items))
    after = await look.at(memory)
    last = await store.aget(_NAMESPACE, str(warm + items - 1))
    expect(last and len(last.value["text"]), _VALUE, "the length of the last value")
    stored = items * _VALUE
    grown = {name: (after[name] - before[name]) / stored for name in before}
    found = {**grown, "held": grown["resident"] + grown["shm"], "fixed": before["resident"]}
    if not found["journal"]:
        del found["journal"]
    return found


async def _put(store: BaseStore, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, _BATCH):
        some = range(start, min(numbers.stop, start + _BATCH))
        await store.abatch([PutOp(_NAMESPACE, str(number), _value()) for number in some])


def _value() -> dict[str, str]:
    return {"text": os.urandom(_VALUE // 2).hex()}


if __name__ == "__main__":
    sys.exit(main())
