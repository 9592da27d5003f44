"""A campaign of nodes that are lost, cut off, added and removed, with a checked history.

python -m flowgentic_actors.testing.nodes --losses 20 --cuts 20 --rebalances 20

The nodes are groups of processes on this machine. All processes of one are killed at the same time
(a loss), or stopped and continued later (a network that is cut, and heals). While slots move to
more, fewer or other nodes, actors are killed, and nodes cut off, about every second time. What
happens to which node follows from the seed; how it meets what the workers do does not. Exit code 0:
nothing was found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.cluster.protocol.status import ClusterEvent
from flowgentic_actors.errors import RequestError
from flowgentic_actors.memory import MemoryCluster
from flowgentic_actors.testing.faults import compactor_of
from flowgentic_actors.testing.history import Finding, Outcome
from flowgentic_actors.testing.workload import Bench, Fill, ItemWriter, Reader, ThreadWriter

Blow: TypeAlias = Literal["lose", "cut", "rebalance"]

_BACK_WITHIN: Final = 60.0
_FILE_WAIT: Final = 30.0
_LOOK_EVERY: Final = 0.05
_OFTEN: Final = 0.5
_GOOD_WRITES: Final = {
    f"{what}: good" for what in ("put", "delete", "put checkpoint", "put writes", "delete thread")
}


class LocalNode:
    """One group of processes that stands for a node other than the host's.

    Args:
        folder: The cluster's folder.
        name: The node's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.folder = folder / "nodes" / name

    def pids(self) -> list[int]:
        """The live processes of the node: its agent first, then actors and compactions. Blocks."""
        alive = [entry.pid for entry in ProcessRecord(self.folder).entries() if entry.alive()]
        compactors = (compactor_of(pid) for pid in alive)
        return [*alive, *(pid for pid in compactors if pid is not None)]

    def lose(self) -> None:
        """Kill all processes of the node at once, and remove its disk. Blocks."""
        self.cut()  # so that none sees another one's end
        pids = self.pids()
        # What is started in its place finds a file where its folder would have to be, and ends.
        self.folder.rename(self.folder.parent.parent / f"lost-{self.name}")
        self.folder.touch()
        for pid in pids:
            _send(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Stop all processes of the node, as if its network were cut. Blocks."""
        for pid in self.pids():
            _send(pid, signal.SIGSTOP)

    def heal(self) -> None:
        """Continue the processes of the node. Blocks."""
        for pid in self.pids():
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


# ---------------------------------------------------------------------- the campaign


@dataclass(frozen=True, kw_only=True)
class NodesPlan:
    """The plan of a campaign with nodes.

    Attributes:
        losses: Nodes that are lost, in all.
        cuts: Nodes that are cut off for a while, in all.
        rebalances: Times that other nodes are used, in all.
        seed: Decides what happens when, and what workers do.
        nodes: Nodes of each cluster in the beginning. A lost one does not come back: when two are
            left, the next cluster begins.
        actors: Memory actors of each node.
        items: Items that are there from the beginning and checked at the end.
        writers: Tasks that write items.
        threads: Tasks that write checkpoints.
        readers: Tasks that read what the others write.
        pause: Mean seconds of work between two of them.
        node_timeout: As in `MemoryConfig`.
        request_timeout: Deadline of each call, seconds.
    """

    losses: int = 1
    cuts: int = 0
    rebalances: int = 0
    seed: int = 0
    nodes: int = 3
    actors: int = 1
    items: int = 500
    writers: int = 6
    threads: int = 3
    readers: int = 3
    pause: float = 0.5
    node_timeout: float = 2.0
    request_timeout: float = 20.0


@dataclass
class NodesReport:
    """The report of a campaign with nodes.

    Attributes:
        findings: What no correct memory does.
        blows: What happened.
        back: Seconds from each loss or cut to the moment in which every shard had acknowledged a
            write again.
        copied: Seconds from each loss, or the end of a cut, until every shard had two copies, and a
            node that was cut off was there again.
        moved: Seconds that each rebalancing took.
        events: How many there were of each kind.
        outcomes: How many calls ended how.
        items_found: Unchanging items that were there at the ends of the clusters.
        slowest: Seconds that the slowest call took.
        n_nodes: Nodes that there were at the end of the last cluster.
    """

    findings: list[Finding] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)
    back: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    items_found: int = 0
    slowest: float = 0.0
    n_nodes: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, invented or stuck."""
        return not self.findings

    @property
    def acknowledged(self) -> int:
        """The number of the workers' acknowledged writes."""
        return sum(n for what, n in self.outcomes.items() if what in _GOOD_WRITES)

    def __str__(self) -> str:
        kinds = Counter(finding.kind for finding in self.findings)
        calls = ", ".join(f"{what} {n}" for what, n in sorted(self.outcomes.items()))
        events = ", ".join(f"{kind} {n}" for kind, n in sorted(self.events.items()))
        return (
            f"{self.blows['lose']} losses, {self.blows['cut']} cuts, {self.blows['rebalance']} "
            f"rebalances; {self.acknowledged} writes acknowledged, {self.items_found} fixed items "
            f"found; slowest call {self.slowest:.2f} s\n"
            f"service back after {_spread(self.back)}; two copies again after "
            f"{_spread(self.copied)}; rebalanced within {_spread(self.moved)}\n"
            f"events: {events}\n"
            f"calls: {calls}\n"
            f"findings: {len(self.findings)} "
            + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        )


def _spread(times: list[float]) -> str:
    if not times:
        return "-"
    return f"{statistics.median(times):.2f} s (median), {max(times):.2f} s (worst)"


async def run_nodes(
    plan: NodesPlan, progress: Callable[[str], None] = lambda _: None
) -> NodesReport:
    """Lose nodes, and cut them off, under load.

    Args:
        plan: What to do.
        progress: Told now and then how it goes.

    Returns:
        What was found; `report.clean` says whether it is good.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - repeatable, not secret
    blows: list[Blow] = []
    blows += ["lose"] * plan.losses
    blows += ["cut"] * plan.cuts
    blows += ["rebalance"] * plan.rebalances
    rng.shuffle(blows)
    report = NodesReport()
    number = 0
    while blows:
        taken: list[Blow] = []
        left = plan.nodes
        while blows and left > 2:  # with one node alone no write is acknowledged
            left -= blows[0] == "lose"
            taken.append(blows.pop(0))
        progress(f"cluster {number}: {', '.join(taken)}")
        await _one_cluster(plan, f"{plan.seed}/{number}", taken, report, progress)
        progress(f"{report.acknowledged} writes acknowledged, {len(report.findings)} findings")
        number += 1
    return report


async def _one_cluster(
    plan: NodesPlan,
    seed: str,
    blows: list[Blow],
    report: NodesReport,
    progress: Callable[[str], None],
) -> None:
    async with MemoryCluster(
        mode="distributed",
        spawner="subprocess",
        n_nodes=plan.nodes,
        actors_per_node=plan.actors,
        replicas=2,
        ack="replica",
        node_timeout=plan.node_timeout,
        request_timeout=plan.request_timeout,
        restart_intensity=1000,
    ) as memory:
        round_ = _Round(plan, seed, memory, report, progress)
        await round_.run(blows)
    for node in round_.nodes.values():
        for pid in await on_daemon_thread(_FILE_WAIT, node.pids):
            round_.bench.findings.add("left", node.name, f"process {pid} runs after the end")
    report.findings += round_.bench.findings.list
    report.outcomes += round_.bench.outcomes
    report.slowest = max(report.slowest, round_.bench.slowest)


class _Round:
    """One cluster, until it is closed."""

    def __init__(
        self,
        plan: NodesPlan,
        seed: str,
        memory: MemoryCluster,
        report: NodesReport,
        progress: Callable[[str], None],
    ) -> None:
        self._progress = progress
        self._plan = plan
        self._memory = memory
        self._report = report
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._probes = 0
        self.nodes: dict[str, LocalNode] = {}
        self.bench = Bench(
            memory.store,
            memory.checkpointer,
            self._rng.randrange(1 << 32),
            bound=plan.request_timeout + 5.0,
            impatience=0.01,
        )

    async def run(self, blows: list[Blow]) -> None:
        """Fill the memory, work, inject faults, verify."""
        plan, bench = self._plan, self.bench
        await self._look_at_nodes()
        fill = Fill(bench, plan.items)
        await fill.write()
        writers = [ItemWriter(bench, n) for n in range(plan.writers)]
        threads = [ThreadWriter(bench, n) for n in range(plan.threads)]
        readers = [Reader(bench, n, fill, writers, threads) for n in range(plan.readers)]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for run in [*(w.run for w in writers), *(t.run for t in threads)]:
                tasks.create_task(run(stop))
            for reader in readers:
                tasks.create_task(reader.run(stop))
            try:
                for blow in blows:
                    await asyncio.sleep(plan.pause * self._rng.uniform(0.5, 1.5))
                    used = await self._look_at_nodes()
                    if blow == "rebalance":
                        await self._rebalance(used)
                    else:
                        await self._strike(blow, self._rng.choice(used))
                await asyncio.sleep(plan.pause)
            finally:
                stop.set()
        bench.impatience = 0.0
        for check in [*(writer.check_all for writer in writers), *(t.read for t in threads)]:
            await check()
        self._report.items_found += await fill.check_all()
        self._report.n_nodes = (await self._memory.status()).n_nodes
        events: list[ClusterEvent] = await self._memory.recent_events()
        self._report.events += Counter(event.kind for event in events)

    async def _look_at_nodes(self) -> list[LocalNode]:
        """The nodes in use, without the host's own."""
        status = await self._memory.status()
        folder = Path(status.folder)
        for node in status.nodes[1:]:
            self.nodes.setdefault(node.name, LocalNode(folder, node.name))
        return [self.nodes[node.name] for node in status.nodes[1:] if node.state == "up"]

    async def _rebalance(self, used: list[LocalNode]) -> None:
        """Rebalance to other nodes, with a fault meanwhile or without."""
        rng, report = self._rng, self._report
        report.blows["rebalance"] += 1
        without = {rng.choice(used).name} if len(used) > 1 and rng.random() < _OFTEN else set()
        n_nodes = None if without else rng.randint(2, self._plan.nodes + 1)
        what = f"rebalance without {min(without)}" if without else f"rebalance to {n_nodes}"
        self._progress(what)
        self.bench.findings.step("", what)
        began, lost = time.monotonic(), await self._lost()
        moving = asyncio.ensure_future(self._memory.rebalance(n_nodes, without=without))
        try:
            if rng.random() < _OFTEN:
                await asyncio.sleep(rng.uniform(0.0, 3.0))
                await self._harm(used)
            await moving
            report.moved.append(time.monotonic() - began)
        except RequestError as error:
            self.bench.findings.add("not rebalanced", what, str(error))
        finally:
            moving.cancel()
        status = await self._memory.status()
        lost = await self._lost() - lost
        leads = {node.name: node.leads for node in status.nodes if node.state == "up"}
        slots = [actor.slots for actor in status.actors]
        even = set(leads.values()) == {self._plan.actors} and max(slots) - min(slots) < 2
        if not (even or lost):  # with a node that was lost meanwhile it is uneven again
            self.bench.findings.add("uneven", what, f"leaders {leads}, slots {slots}")
        await self._settled(None, "up")

    async def _lost(self) -> int:
        """The number of losses of a node so far."""
        return sum(e.kind == "node_lost" for e in await self._memory.recent_events())

    async def _harm(self, used: list[LocalNode]) -> None:
        """Kill an actor, or cut a node off for a moment."""
        rng = self._rng
        if rng.random() < _OFTEN:
            pids = [a.pid for a in (await self._memory.status()).actors if a.pid is not None]
            self.bench.findings.step("", "an actor is killed")
            _send(rng.choice(pids), signal.SIGKILL)
            return
        node = rng.choice(used)
        self.bench.findings.step("", f"{node.name} is cut off")
        await on_daemon_thread(_FILE_WAIT, node.cut)
        await asyncio.sleep(rng.uniform(0.0, 1.5 * self._plan.node_timeout))
        await on_daemon_thread(_FILE_WAIT, node.heal)

    async def _strike(self, blow: Blow, node: LocalNode) -> None:
        report = self._report
        report.blows[blow] += 1
        self._progress(f"{blow} {node.name}")
        self.bench.findings.step("", f"{blow} {node.name}")
        began = time.monotonic()
        if blow == "lose":
            await on_daemon_thread(_FILE_WAIT, node.lose)
        else:
            await on_daemon_thread(_FILE_WAIT, node.cut)
        try:
            if await self._serves():
                report.back.append(time.monotonic() - began)
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        finally:
            if blow == "cut":
                await on_daemon_thread(_FILE_WAIT, node.heal)
                began = time.monotonic()
        if await self._settled(node, "lost" if blow == "lose" else "up"):
            report.copied.append(time.monotonic() - began)

    async def _serves(self) -> bool:
        """Write to every shard until all writes are acknowledged."""
        shards = self._memory.client.table.owners
        return all(await asyncio.gather(*map(self._answers, shards)))

    async def _answers(self, shard: int) -> bool:
        namespace = self._probe(shard)
        deadline = time.monotonic() + _BACK_WITHIN
        while time.monotonic() < deadline:
            self._probes += 1
            call = self._memory.store.aput(namespace, "back", {"number": self._probes})
            outcome, _ = await self.bench.call("probe", str(namespace), call)
            if outcome is Outcome.DONE:
                return True
            await asyncio.sleep(_LOOK_EVERY)
        self.bench.findings.add("down", f"shard {shard}", f"no good answer for {_BACK_WITHIN:g} s")
        return False

    def _probe(self, shard: int) -> tuple[str, str]:
        table = self._memory.client.table
        places = (("campaign", f"probe-{n}") for n in range(100_000))
        return next(place for place in places if table.of_namespace(place) == shard)

    async def _settled(self, node: LocalNode | None, state: str) -> bool:
        """Wait until a node is known to be lost or back, and every shard has two copies."""
        deadline = time.monotonic() + _BACK_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(RequestError):
                status = await self._memory.status()
                states = {known.name: known.state for known in status.nodes}
                so = node is None or states[node.name] == state
                if so and all(a.replica_ready for a in status.actors):
                    return True
            await asyncio.sleep(_LOOK_EVERY)
        self.bench.findings.add("one copy", "", f"not two of each shard in {_BACK_WITHIN:g} s")
        return False


# ---------------------------------------------------------------------- the command


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run it from the command line; exit code 0 when it is clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    plan = NodesPlan()
    for name in (
        "losses",
        "cuts",
        "rebalances",
        "seed",
        "nodes",
        "actors",
        "items",
        "writers",
        "threads",
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(plan, name))
    parser.add_argument("--readers", type=int, default=plan.readers)
    for name in ("pause", "node-timeout", "request-timeout"):
        default = getattr(plan, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=default)
    plan = NodesPlan(**vars(parser.parse_args()))
    report = asyncio.run(run_nodes(plan, _say))
    _say(f"seed {plan.seed}: {report}")
    for finding in report.findings[:20]:
        _say(f"  {finding}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
