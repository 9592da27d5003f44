"""Reads of cold values: from an actor's DDict, or from its journal."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from langgraph.store.base import PutOp

from flowgentic_actors import MemoryCluster
from flowgentic_actors.bench.measuring import Show
from flowgentic_actors.bench.results import Figure, Report, percentile, summary
from flowgentic_actors.bench.workloads import expect

GROUP: Final = "cold"

_MIB: Final = 1 << 20
_HOT: Final = 1 * _MIB
_READERS: Final = 16
_TEXT: Final = "0123456789abcdef" * 254  # with the rest of the value 4 KiB
_SETTLE: Final = 60.0  # seconds that values may take from the actor's memory to its DDict
_BATCH = 200


class Amount(NamedTuple):
    """The amount that is stored and read.

    Attributes:
        items: Values of 4 KiB.
        reads: Reads of each kind.
    """

    items: int
    reads: int


FULL: Final = Amount(8_000, 1_600)
QUICK: Final = Amount(4_000, 320)


async def read_cold(
    report: Report, modes: Sequence[str], amount: Amount, scratch: Path, show: Show
) -> None:
    """Measure reads of cold values beside reads of the same values in memory."""
    for number, mode in enumerate(modes):
        show(number / len(modes), f"cold reads: {mode}")
        try:
            await _read(report, mode, amount, scratch)
        except Exception as error:  # noqa: BLE001 - the other modes go on
            report.fail("cold reads", mode, error)


async def _read(report: Report, mode: str, amount: Amount, scratch: Path) -> None:
    settings: dict[str, Any] = {
        "mode": "distributed",
        "spawner": mode,
        "fallback_to_local": False,
        "scratch": scratch,
    }
    room = {"store_total_mem": 256 * _MIB, "checkpoint_total_mem": 16 * _MIB}
    async with (
        MemoryCluster(**settings) as hot,
        MemoryCluster(hot_memory=_HOT, **room, **settings) as cold,
    ):
        for memory in (hot, cold):
            await _fill(memory, amount.items)
        await _settle(cold, mode, amount.items)
        before = (await cold.status()).actors[0]
        samples = await _measure({"memory": hot, "cold": cold}, amount)
        await asyncio.sleep(1.0)  # the next heartbeat brings the counters
        after = (await cold.status()).actors[0]
    from_ddict = after.ddict_reads - before.ddict_reads
    from_journal = after.cold_reads - before.cold_reads - from_ddict
    report.notes.append(
        f"cold reads of {mode}: of {2 * amount.reads} reads with hot_memory = 1 MiB and "
        f"{amount.items * 4 // 1024} MiB stored, {from_ddict} came from the DDict and "
        f"{from_journal} from the journal"
    )
    if mode == "dragon" and from_ddict < amount.reads:
        report.failed[f"cold reads: {mode}"] = "most values did not come from the DDict"
        return
    place = "the DDict" if from_ddict > from_journal else "the journal"
    report.figures += _figures(mode, place, samples)


async def _fill(memory: MemoryCluster, items: int) -> None:
    for start in range(0, items, _BATCH):
        numbers = range(start, min(items, start + _BATCH))
        await memory.store.abatch([PutOp(_NAMESPACE, str(n), _value(n)) for n in numbers])


_NAMESPACE = ("bench", "cold")


def _value(number: int) -> dict[str, Any]:
    return {"number": number, "text": _TEXT}


async def _settle(memory: MemoryCluster, mode: str, items: int) -> None:
    """Wait until the values are in the tier that they are to be read from."""
    deadline = time.monotonic() + _SETTLE
    while time.monotonic() < deadline:
        actor = (await memory.status()).actors[0]
        cooled = actor.items >= items and actor.hot_bytes <= 1.5 * _HOT
        if cooled and (mode != "dragon" or actor.ddict_bytes >= 0.8 * items * len(_TEXT)):
            return
        await asyncio.sleep(0.25)


async def _measure(memories: dict[str, MemoryCluster], amount: Amount) -> dict[str, list[float]]:
    chance = random.Random(0)  # noqa: S311 - the same keys for all contenders
    samples: dict[str, list[float]] = {
        f"{kind} {n}": [] for kind in memories for n in (1, _READERS)
    }

    async def read(memory: MemoryCluster, times: list[float]) -> None:
        number = chance.randrange(amount.items)
        start = time.perf_counter()
        item = await memory.store.aget(_NAMESPACE, str(number))
        times.append(time.perf_counter() - start)
        expect(item and item.value, _value(number), f"value {number}")

    for _ in range(amount.reads // _READERS):
        for kind, memory in memories.items():
            for _ in range(_READERS):
                await read(memory, samples[f"{kind} 1"])
            together = samples[f"{kind} {_READERS}"]
            await asyncio.gather(*(read(memory, together) for _ in range(_READERS)))
    return samples


def _figures(mode: str, place: str, samples: dict[str, list[float]]) -> list[Figure]:
    found = []
    for readers in (1, _READERS):
        usual = percentile(samples[f"memory {readers}"], 0.5)
        for kind, where in (("memory", "memory"), ("cold", place)):
            times = samples[f"{kind} {readers}"]
            median, p99 = summary(times)
            found.append(
                Figure(
                    group=GROUP,
                    workload=f"store get 4 KiB, {readers} at once"
                    if readers > 1
                    else "store get 4 KiB",
                    contender=f"{mode}, from {where}",
                    unit="s",
                    median=median,
                    p99=p99,
                    ratio=median / usual,
                    against=f"{mode}, from memory",
                    samples=len(times),
                )
            )
    return found
