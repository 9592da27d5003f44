"""The cost of calls to another node: to our memory over TLS, and to a bare DDict.

    dragon -w slurm -t tcp "$(which python)" -m flowgentic_actors.bench.across

It runs inside a Dragon runtime of two nodes or more, and prints a Markdown table. Both take turns
in one run, so what the machine does beside it meets both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from langgraph.checkpoint.base import empty_checkpoint

from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.memory import MemoryCluster

ROUNDS: Final = 10
CALLS: Final = 20
_SIZE: Final = 1000
_TIMEOUT: Final = 30

Call = Callable[[], Awaitable[Any]]


class DDictElsewhere:
    """A DDict of one manager on another node, called on a thread of its own."""

    def __init__(self, node: str) -> None:
        from dragon.data.ddict import DDict  # noqa: PLC0415 - slow, and optional
        from dragon.infrastructure.policy import Policy  # noqa: PLC0415

        there = Policy(placement=Policy.Placement.HOST_NAME, host_name=node)
        self._ddict = DDict(
            None,
            None,
            64 << 20,
            policy=[there],
            managers_per_policy=1,
            orc_policy=there,
            timeout=_TIMEOUT,
        )

    def put(self, value: bytes) -> None:
        """Store the value."""
        self._ddict["value"] = value

    def get(self) -> object:
        """Fetch the value."""
        return self._ddict["value"]

    def close(self) -> None:
        """End the DDict's processes."""
        self._ddict.destroy()


async def measure(memory: MemoryCluster) -> dict[str, list[float]]:
    """Measure; the seconds of each call, by operation."""
    status = await memory.status()
    others = {
        actor.shard: actor.node for actor in status.actors if actor.node != status.nodes[0].name
    }
    if not others:
        raise ClusterOpenError("this needs a Dragon runtime of two nodes or more")
    table = memory.client.table
    thread = next(name for name in map(str, range(10_000)) if table.of_thread(name) in others)
    node = others[table.of_thread(thread)]
    saver, value = memory.checkpointer, b"x" * _SIZE
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}

    def checkpoint(number: int) -> Any:
        made = empty_checkpoint()
        made["channel_values"] = {"state": value}
        made["channel_versions"] = {"state": number}
        return made

    ddict = await asyncio.to_thread(DDictElsewhere, node)
    number = 0

    async def put() -> None:
        nonlocal number
        number += 1
        await saver.aput(config, checkpoint(number), {}, {"state": number})

    calls: dict[str, Call] = {
        "aput, 1 KB": put,
        "aget_tuple, 1 KB": lambda: saver.aget_tuple(config),
        "DDict put, 1 KB": lambda: asyncio.to_thread(ddict.put, value),
        "DDict get, 1 KB": lambda: asyncio.to_thread(ddict.get),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    try:
        for name in (*calls, *calls):  # connections are made, caches are warm
            await calls[name]()
        for _ in range(ROUNDS):
            for name, call in calls.items():
                for _ in range(CALLS):
                    begun = time.perf_counter()
                    await call()
                    took[name].append(time.perf_counter() - begun)
    finally:
        await asyncio.to_thread(ddict.close)
    return took


def table_of(took: dict[str, list[float]]) -> str:
    """The results as a Markdown table, with the ratio of each pair."""
    medians = {name: statistics.median(times) for name, times in took.items()}
    pairs = {"aput, 1 KB": "DDict put, 1 KB", "aget_tuple, 1 KB": "DDict get, 1 KB"}
    lines = ["| to another node | median | 90 % | faster than the DDict |", "|---|---|---|---|"]
    for name, times in took.items():
        ninety = statistics.quantiles(times, n=10)[-1]
        other = pairs.get(name)
        ratio = f"{medians[other] / medians[name]:.1f}x" if other else ""
        lines.append(
            f"| {name} | {medians[name] * 1e6:,.0f} us | {ninety * 1e6:,.0f} us | {ratio} |"
        )
    return "\n".join(lines)


async def main() -> None:
    """Measure, and print the table."""
    async with MemoryCluster(
        mode="distributed", spawner="dragon", fallback_to_local=False, open_timeout=300
    ) as memory:
        print(table_of(await measure(memory)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
