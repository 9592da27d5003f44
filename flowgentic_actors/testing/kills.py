"""A kill campaign: writers keep a history while actors are killed, then the history is checked.

python -m flowgentic_actors.testing.kills --kills 100 --spawner subprocess
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Literal

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.slots import even_table
from flowgentic_actors.errors import RequestError

_CALL_BOUND = 1.5
"""A call that takes this many times its deadline hangs."""


@dataclass(frozen=True, kw_only=True)
class KillPlan:
    """What a campaign does.

    Attributes:
        kills: SIGKILLs in all.
        seed: Decides which actor is killed when.
        spawner: Who starts the actors.
        actors: Memory actors.
        writers: Tasks that write and read as fast as they can.
        pause: Mean seconds between an actor's return and the next kill.
        request_timeout: Deadline of each call, seconds.
        ack: When a write counts as acknowledged, as in `MemoryConfig`.
    """

    kills: int
    seed: int = 0
    spawner: Literal["dragon", "subprocess"] = "subprocess"
    actors: int = 2
    writers: int = 8
    pause: float = 0.7
    request_timeout: float = 20.0
    ack: Literal["node", "disk"] = "node"


@dataclass
class KillReport:
    """What a campaign found.

    Attributes:
        acknowledged: Writes that were acknowledged.
        unknown: Writes whose outcome their caller was not told.
        lost: Acknowledged writes that were not there, or not whole, when read.
        phantoms: Values read that nobody wrote, or that were written over already.
        hung: Calls that neither answered nor failed in time.
        outages: Seconds from each kill to the next good answer of the killed actor's shard.
        restarts: Restarts that the supervisor counted.
    """

    acknowledged: int = 0
    unknown: int = 0
    lost: list[str] = field(default_factory=list)
    phantoms: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    outages: list[float] = field(default_factory=list)
    restarts: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, invented or stuck."""
        return not (self.lost or self.phantoms or self.hung)

    def __str__(self) -> str:
        median = statistics.median(self.outages) if self.outages else 0.0
        worst = max(self.outages, default=0.0)
        return (
            f"{len(self.outages)} kills, {self.restarts} restarts, {self.acknowledged} writes "
            f"acknowledged, {self.unknown} unknown, {len(self.lost)} lost, {len(self.phantoms)} "
            f"phantoms, {len(self.hung)} hung; back after {median:.2f} s (median), {worst:.2f} s "
            "(worst)"
        )


class _Writer:
    """Writes ascending numbers to a few keys of a namespace of its own and reads them back."""

    _KEYS = 50

    def __init__(
        self, memory: MemoryCluster, number: int, plan: KillPlan, report: KillReport
    ) -> None:
        self._store = memory.store
        self._namespace = ("campaign", f"writer-{number}")
        self._bound = plan.request_timeout * _CALL_BOUND
        self._report = report
        self._rng = random.Random(f"{plan.seed}/{number}")  # noqa: S311 - repeatable, not secret
        self._acknowledged: dict[str, int] = {}
        self._attempted: dict[str, int] = {}
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Write and read until told to stop."""
        while not stop.is_set():
            key = f"key-{self._rng.randrange(self._KEYS)}"
            try:
                async with asyncio.timeout(self._bound):
                    if self._rng.random() < 0.75:
                        await self._write(key)
                    else:
                        await self.check(key)
            except TimeoutError:
                self._report.hung.append(f"{self._namespace} {key}")

    async def check_all(self) -> None:
        """Read everything that was ever written."""
        for key in sorted(self._attempted):
            await self.check(key)

    async def _write(self, key: str) -> None:
        self._count += 1
        number = self._attempted[key] = self._count
        value = {"number": number, "text": f"{number:06d}" * self._rng.randrange(1, 60)}
        try:
            await self._store.aput(self._namespace, key, value)
        except RequestError:
            self._report.unknown += 1
        else:
            self._acknowledged[key] = number
            self._report.acknowledged += 1

    async def check(self, key: str) -> None:
        """Read a key and hold it against what was acknowledged."""
        try:
            item = await self._store.aget(self._namespace, key)
        except RequestError:
            return  # told, and in time: that is all that is promised
        least, most = self._acknowledged.get(key, 0), self._attempted.get(key, 0)
        number = 0 if item is None else int(item.value["number"])
        where = f"{self._namespace} {key}: read {number}"
        if number < least:
            self._report.lost.append(f"{where}, acknowledged {least}")
        elif number > most or (item and not item.value["text"].startswith(f"{number:06d}")):
            self._report.phantoms.append(f"{where}, last written {most}")


async def run_kills(plan: KillPlan) -> KillReport:
    """Carry out a campaign on a cluster of its own.

    Args:
        plan: What to do.

    Returns:
        What was found; `report.clean` says whether it is good.
    """
    report = KillReport()
    rng = random.Random(plan.seed)  # noqa: S311 - repeatable, not secret
    async with MemoryCluster(
        mode="distributed",
        spawner=plan.spawner,
        fallback_to_local=False,
        actors_per_node=plan.actors,
        restart_intensity=max(10, plan.kills),
        request_timeout=plan.request_timeout,
        ack=plan.ack,
    ) as memory:
        stop = asyncio.Event()
        writers = [_Writer(memory, n, plan, report) for n in range(plan.writers)]
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(stop))
            for _ in range(plan.kills):
                await asyncio.sleep(plan.pause * rng.uniform(0.5, 1.5))
                report.outages.append(await _kill_one(memory, rng))
            await asyncio.sleep(plan.pause)
            stop.set()
        for writer in writers:
            await writer.check_all()
        report.restarts = sum(actor.restarts for actor in (await memory.status()).actors)
    return report


async def _kill_one(memory: MemoryCluster, rng: random.Random) -> float:
    """Kill a running actor; return the seconds until its shard answers again."""
    status = await memory.status()
    victim = rng.choice([actor for actor in status.actors if actor.pid is not None])
    assert victim.pid is not None
    table = even_table(len(status.actors), memory.config.namespace_depth)
    probe = next(
        ("campaign", f"probe-{n}")
        for n in range(10_000)
        if table.of_namespace(("campaign", f"probe-{n}")) == victim.shard
    )
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    await memory.store.aput(probe, "back", {"number": 0})
    return time.monotonic() - killed


def main() -> int:
    """Run a campaign from the command line; exit code 0 when it is clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spawner", choices=("dragon", "subprocess"), default="subprocess")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--ack", choices=("node", "disk"), default="node")
    options = parser.parse_args()
    report = asyncio.run(run_kills(KillPlan(**vars(options))))
    sys.stdout.write(f"{report}\n")
    for problem in [*report.lost, *report.phantoms, *report.hung][:20]:
        sys.stdout.write(f"  {problem}\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
