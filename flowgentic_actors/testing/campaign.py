"""A fault campaign: writers and readers keep a history while a cluster's parts fail.

python -m flowgentic_actors.testing.campaign --actions kill --count 100 --compaction

The plan of faults and what each worker does follow from the seed; how they meet in time does not,
so a seed that found something finds it again with some luck only. Exit code 0: nothing was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.process_record import is_alive, started_at
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.cluster.client.host_client import describe
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.errors import RequestError
from flowgentic_actors.memory import MemoryCluster
from flowgentic_actors.storage.compacted_set import SUFFIX
from flowgentic_actors.testing.faults import (
    ACTIONS,
    End,
    Fault,
    FaultPlan,
    Site,
    SkippedError,
    compactor_of,
)
from flowgentic_actors.testing.history import Finding, Outcome
from flowgentic_actors.testing.links import FaultyLink
from flowgentic_actors.testing.workload import Bench, Fill, ItemWriter, Reader, ThreadWriter

_RELAYED = {"cut", "delay"}
_BACK_WITHIN = 60.0
_LOOK_EVERY = 0.25
_FILE_WAIT = 30.0
_SMALL_SEGMENTS = 1 << 20  # compaction begins when more than one segment is garbage


@dataclass(frozen=True, kw_only=True)
class CampaignPlan:
    """The plan of a campaign.

    Attributes:
        actions: Faults to choose from; see `flowgentic_actors.testing.faults.ACTIONS`.
        count: Faults in all.
        seed: Decides faults and workers.
        spawner: Who starts the actors.
        actors: Memory actors.
        items: Items that are there from the beginning and checked at the end.
        writers: Tasks that write items.
        threads: Tasks that write checkpoints.
        readers: Tasks that read what the others write.
        pause: Mean seconds between two faults.
        minutes: Time after which no further fault begins.
        ack: When a write counts as acknowledged, as in `MemoryConfig`.
        compaction: Write so much, in journals of small segments, that they are compacted most of
            the time.
        request_timeout: Deadline of each call, seconds.
        scratch: The cluster's scratch folder; for `fill-disk` on a small file system of its own.
        settings: Other settings of the `MemoryCluster`.
    """

    actions: Sequence[str] = ("kill",)
    count: int = 10
    seed: int = 0
    spawner: Literal["dragon", "subprocess"] = "subprocess"
    actors: int = 2
    items: int = 1000
    writers: int = 8
    threads: int = 4
    readers: int = 4
    pause: float = 0.4
    minutes: float = 24 * 60.0
    ack: Literal["node", "disk"] = "node"
    compaction: bool = False
    request_timeout: float = 20.0
    scratch: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class CampaignReport:
    """The report of a campaign.

    Attributes:
        findings: What no correct memory does.
        found: How many findings there were, the ones not kept included.
        faults: Faults that happened, by kind.
        skipped: Faults that found nothing to happen to, by kind.
        outages: Seconds from each fault to the next good answer of its shard, by kind.
        outcomes: How many calls ended how.
        items_found: Unchanging items that were there at the end.
        slowest: Seconds that the slowest call took.
        restarts: Restarts of actors that the supervisor counted.
        compactions: Compacted sets that were seen.
        compacting: Share of the looks at which a compaction was under way.
        seconds: From the first fault to the last.
        rss: Resident bytes of this process: at the first fault, and the most after it.
    """

    findings: list[Finding] = field(default_factory=list)
    found: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    outages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outcomes: Counter[str] = field(default_factory=Counter)
    items_found: int = 0
    slowest: float = 0.0
    restarts: int = 0
    compactions: int = 0
    compacting: float = 0.0
    seconds: float = 0.0
    rss: tuple[int, int] = (0, 0)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, invented or stuck."""
        return self.found == 0

    @property
    def acknowledged(self) -> int:
        """The number of the workers' acknowledged writes."""
        return sum(n for what, n in self.outcomes.items() if what in _GOOD_WRITES)

    def __str__(self) -> str:
        kinds = Counter(finding.kind for finding in self.findings)
        calls = ", ".join(f"{what} {n}" for what, n in sorted(self.outcomes.items()))
        faults = [_fault_line(kind, self) for kind in sorted({*self.faults, *self.skipped})]
        return (
            f"{self.faults.total()} faults in {self.seconds:.0f} s, {self.restarts} restarts; "
            f"{self.acknowledged} writes acknowledged, {self.items_found} fixed items found; "
            f"slowest call {self.slowest:.2f} s\n"
            f"compactions: {self.compactions} sets, under way {self.compacting:.0%} of the time; "
            f"RSS {self.rss[0] >> 20} -> {self.rss[1] >> 20} MiB\n"
            + "".join(f"{line}\n" for line in faults)
            + f"calls: {calls}\n"
            f"findings: {self.found} " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        )


_GOOD_WRITES = {
    f"{what}: good" for what in ("put", "delete", "put checkpoint", "put writes", "delete thread")
}


def _fault_line(kind: str, report: CampaignReport) -> str:
    outages = sorted(report.outages.get(kind, []))
    line = f"{kind}: {report.faults[kind]} happened, {report.skipped[kind]} skipped"
    if not outages:
        return line
    late = outages[min(len(outages) - 1, int(0.95 * len(outages)))]
    return (
        f"{line}; next good answer after {statistics.median(outages):.2f} s (median), "
        f"{late:.2f} s (p95), {outages[-1]:.2f} s (worst)"
    )


async def run_campaign(
    plan: CampaignPlan, progress: Callable[[str], None] = lambda _: None
) -> CampaignReport:
    """Carry out a campaign on a cluster of its own.

    Args:
        plan: What to do.
        progress: Told now and then how it goes.

    Returns:
        What was found; `report.clean` says whether it is good.
    """
    settings = {
        "hang_timeout": 3.0,
        "restart_intensity": 100_000,
        "request_timeout": plan.request_timeout,
        **({"segment_bytes": _SMALL_SEGMENTS} if plan.compaction else {}),
        **plan.settings,
    }
    async with MemoryCluster(
        mode="distributed",
        spawner=plan.spawner,
        fallback_to_local=False,
        actors_per_node=plan.actors,
        ack=plan.ack,
        scratch=plan.scratch,
        **settings,
    ) as memory:
        campaign = _Campaign(plan, memory, progress)
        report = await campaign.run()
    for pid in campaign.pids:
        if await on_daemon_thread(_FILE_WAIT, _runs, pid):
            campaign.bench.findings.add("left", "", f"process {pid} runs after the cluster's end")
    report.findings, report.found = campaign.bench.findings.list, campaign.bench.findings.count
    return report


class _Campaign:
    def __init__(
        self, plan: CampaignPlan, memory: MemoryCluster, progress: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._progress = progress
        self._site = Site(memory=memory, small_disk=plan.scratch)
        self._report = CampaignReport()
        self._probes = 0
        self._sets: set[str] = set()
        self.pids: set[int] = set()
        self.bench = Bench(
            memory.store,
            memory.checkpointer,
            plan.seed,
            bound=2 * plan.request_timeout + 5.0,
            text=16_000 if plan.compaction else 400,
            impatience=0.02,
        )

    async def run(self) -> CampaignReport:
        """Fill the memory, work, inject faults, verify."""
        plan, bench, report = self._plan, self.bench, self._report
        fill = Fill(bench, plan.items)
        await fill.write()
        self._progress(f"{plan.items} items written")
        async with AsyncExitStack() as stack:
            if _RELAYED & set(plan.actions):
                await stack.enter_async_context(self._through_relays())
            writers = [ItemWriter(bench, n) for n in range(plan.writers)]
            threads = [ThreadWriter(bench, n) for n in range(plan.threads)]
            readers = [Reader(bench, n, fill, writers, threads) for n in range(plan.readers)]
            stop, began = asyncio.Event(), time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch())
                for run in [
                    *(writer.run for writer in writers),
                    *(thread.run for thread in threads),
                    *(reader.run for reader in readers),
                ]:
                    tasks.create_task(run(stop))
                try:
                    await self._faults()
                    await asyncio.sleep(plan.pause)
                finally:
                    stop.set()
                    watching.cancel()
            report.seconds = time.monotonic() - began
            self._progress("verifying")
            bench.impatience = 0.0
            for check in [*(w.check_all for w in writers), *(t.read for t in threads)]:
                await check()
            report.items_found = await fill.check_all()
        status = await self._site.memory.status()
        report.restarts = sum(actor.restarts for actor in status.actors)
        report.outcomes, report.slowest = bench.outcomes, bench.slowest
        report.compactions = len(self._sets)
        return report

    @asynccontextmanager
    async def _through_relays(self) -> AsyncIterator[None]:
        """Route the workers' connections through relays that can be disturbed."""
        plan, memory = self._plan, self._site.memory
        descriptor = await on_daemon_thread(_FILE_WAIT, memory.handle.read)
        description = await on_daemon_thread(60.0, describe, descriptor, plan.request_timeout)
        direct = description.shard_map
        links = [
            FaultyLink(Path(f"{place.path}.relay"), place.path, f"{plan.seed}/{shard}")
            for shard, place in enumerate(direct.locations)
        ]
        relayed = tuple(
            msgspec.structs.replace(place, path=str(link.path))
            for place, link in zip(direct.locations, links, strict=True)
        )
        places = msgspec.structs.replace(direct, locations=relayed)
        detour = msgspec.structs.replace(description, shard_map=places)
        client = RemoteClient(descriptor, detour, plan.request_timeout, 2)
        self.bench.store, self.bench.saver = AsyncStore(client), AsyncCheckpointSaver(client)
        self._site.links = links
        try:
            for link in links:
                await link.open()
            yield
        finally:
            await client.close()
            for link in links:
                await link.close()

    # ------------------------------------------------------------------ faults

    async def _faults(self) -> None:
        plan = self._plan
        faults = FaultPlan(
            actions=plan.actions,
            count=plan.count,
            seed=plan.seed,
            shards=plan.actors,
            pause=plan.pause,
        )
        deadline = time.monotonic() + 60 * plan.minutes
        for number, fault in enumerate(faults, 1):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(fault.pause)
            await self._happen(_kind(fault), fault)
            if number % 50 == 0:
                found = self.bench.findings.count
                self._progress(f"{number} of {plan.count} faults, {found} findings")

    async def _happen(self, kind: str, fault: Fault) -> None:
        try:
            end = await fault.begin(self._site)
        except SkippedError:
            self._report.skipped[kind] += 1
            return
        except RequestError as error:
            # To find the victim, the host is asked: after a fault of its own it may be away.
            self._report.skipped[f"{kind}: {type(error).__name__}"] += 1
            return
        began = time.monotonic()
        self._report.faults[kind] += 1
        self.bench.findings.step("", f"{fault}")
        ending = asyncio.create_task(_end_after(fault.seconds, end))
        try:
            if await self._answers(fault.shard):
                self._report.outages[kind].append(time.monotonic() - began)
        finally:
            await ending

    async def _answers(self, shard: int) -> bool:
        """Write to a shard until a write is acknowledged."""
        namespace = self._probe(shard)
        deadline = time.monotonic() + _BACK_WITHIN
        while time.monotonic() < deadline:
            self._probes += 1
            call = self.bench.store.aput(namespace, "back", {"number": self._probes})
            outcome, _ = await self.bench.call("probe", str(namespace), call)
            if outcome is Outcome.DONE:
                return True
            await asyncio.sleep(0.05)
        self.bench.findings.add("down", f"shard {shard}", f"no good answer for {_BACK_WITHIN:g} s")
        return False

    def _probe(self, shard: int) -> tuple[str, str]:
        depth = self._site.memory.config.namespace_depth
        table = even_table(self._plan.actors, depth)
        places = (("campaign", f"probe-{n}") for n in range(100_000))
        return next(place for place in places if table.of_namespace(place) == shard)

    # ------------------------------------------------------------------ watching

    async def _watch(self) -> None:
        """Count compactions and processes, and measure this process's memory."""
        looks = compacting = 0
        while True:
            try:
                status = await self._site.memory.status()
            except RequestError:
                await asyncio.sleep(_LOOK_EVERY)
                continue
            pids = [actor.pid for actor in status.actors if actor.pid is not None]
            self.pids |= {status.host_pid, *pids}
            folder = Path(status.folder)
            running, sets = await on_daemon_thread(_FILE_WAIT, _compactions, folder, pids)
            self._sets |= sets
            looks += len(pids)
            compacting += running
            rss = await on_daemon_thread(_FILE_WAIT, _rss)
            first, most = self._report.rss
            self._report.rss = first or rss, max(most, rss)
            self._report.compacting = compacting / max(1, looks)
            await asyncio.sleep(_LOOK_EVERY)


async def _end_after(seconds: float, end: End | None) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        if end is not None:
            await end()


def _kind(fault: Fault) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in type(fault).__name__)[1:]


def _compactions(folder: Path, pids: Sequence[int]) -> tuple[int, set[str]]:
    running = sum(compactor_of(pid) is not None for pid in pids)
    return running, {str(path) for path in folder.glob(f"memory/*/shard-*/*{SUFFIX}")}


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def _runs(pid: int) -> bool:
    return is_alive(pid, started_at(pid))


# ---------------------------------------------------------------------- the command


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run a campaign from the command line; exit code 0 when it is clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    plan = CampaignPlan()
    parser.add_argument(
        "--actions",
        type=lambda text: tuple(text.split(",")),
        default=plan.actions,
        help=f"separated by commas: {', '.join(ACTIONS)}",
    )
    parser.add_argument("--count", type=int, default=100, help="faults in all")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--spawner", choices=("dragon", "subprocess"), default=plan.spawner)
    parser.add_argument("--actors", type=int, default=plan.actors)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=plan.writers)
    parser.add_argument("--threads", type=int, default=plan.threads)
    parser.add_argument("--readers", type=int, default=plan.readers)
    parser.add_argument("--pause", type=float, default=plan.pause)
    parser.add_argument("--minutes", type=float, default=plan.minutes)
    parser.add_argument("--ack", choices=("node", "disk"), default=plan.ack)
    parser.add_argument("--compaction", action="store_true", help="overwrite large values")
    parser.add_argument("--request-timeout", type=float, default=plan.request_timeout)
    parser.add_argument("--scratch", type=Path, help="small file system, for fill-disk")
    parser.add_argument(
        "--settings",
        type=json.loads,
        default=plan.settings,
        help='others of the cluster, in JSON: {"hot_memory": 1048576}',
    )
    plan = CampaignPlan(**vars(parser.parse_args()))
    report = asyncio.run(run_campaign(plan, _say))
    _say(f"seed {plan.seed}: {report}")
    for finding in report.findings[:20]:
        _say(f"  {finding}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
