"""A flood of the TCP ports of a cluster of several nodes, while graphs run on it.

python -m flowgentic_actors.testing.flood --seconds 60 --processes 8

The nodes are groups of processes on this machine, the flooders others, half of which come from the
address of the nodes, half from addresses of their own. They know no secret, and open connections to
every port as fast as they can. Meanwhile graphs run, clients come anew, and an actor is killed.
Exit code 0: no graph failed, everything but that actor lived, puts were at most ten times as slow
(p99) as before, no process took 100 MB more, and no log grew by more than 1 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypedDict

from langgraph.graph import END, START, StateGraph

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.memory import MemoryCluster
from flowgentic_actors.python import python_command, python_environ
from flowgentic_actors.testing.flooder import HOST
from flowgentic_actors.testing.history import Finding

FLOODER: Final = "flowgentic_actors.testing.flooder"

_FILE_WAIT: Final = 30.0
_LOOK_EVERY: Final = 1.0
_BETWEEN_PUTS: Final = 0.002
_BETWEEN_TURNS: Final = 0.05
_BETWEEN_CLIENTS: Final = 0.5
_LONGEST_WAIT: Final = 10.0
_END_WAIT: Final = 10.0
_LISTENS: Final = "0A"  # in /proc/net/tcp


@dataclass(frozen=True, kw_only=True)
class FloodPlan:
    """The plan of a flood.

    Attributes:
        seconds: Of the flood.
        processes: Flooding processes.
        connections: That each of them keeps open, or tries to.
        nodes: Nodes of the cluster.
        graphs: Graphs that run at one time.
        before: Seconds of puts, and then of puts and graphs, before the flood.
    """

    seconds: float = 60.0
    processes: int = 8
    connections: int = 500
    nodes: int = 3
    graphs: int = 4
    before: float = 10.0


@dataclass
class FloodReport:
    """The report of a flood. Times in seconds.

    Attributes:
        findings: What must not happen.
        puts: How long puts took: alone, with graphs, and in the flood.
        opened: Connections of flooders.
        runs: Runs of graphs that ended well in the flood.
        waits: How long new clients waited until every shard had answered them, in the flood.
        grown: Most bytes that a process took more in the flood than before.
        logged: Most bytes that a log grew by.
        busy: Seconds of a processor that all processes of the cluster took in a second, before the
            flood (with graphs) and in it. Other work on the machine makes puts slower, not this.
        files: Most open files of a process.
        events: How many there were of each kind.
    """

    findings: list[Finding] = field(default_factory=list)
    puts: dict[str, list[float]] = field(default_factory=dict)
    opened: int = 0
    runs: int = 0
    waits: list[float] = field(default_factory=list)
    grown: int = 0
    logged: int = 0
    busy: dict[str, float] = field(default_factory=dict)
    files: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def p99(self, phase: str) -> float:
        """The 99th percentile of the durations of puts."""
        return statistics.quantiles(self.puts[phase], n=100)[-1]

    def __str__(self) -> str:
        events = ", ".join(f"{kind} {n}" for kind, n in sorted(self.events.items()))
        puts = ", ".join(
            f"{phase} {statistics.median(times) * 1e3:.2f} / {self.p99(phase) * 1e3:.2f}"
            for phase, times in self.puts.items()
        )
        return (
            f"{self.opened} connections of strangers; {self.runs} runs of graphs\n"
            f"puts, ms (p50 / p99): {puts}\n"
            f"new clients: {len(self.waits)}, waited {statistics.median(self.waits):.3f} s "
            f"(median), {max(self.waits):.3f} s (worst)\n"
            f"most of a process: {self.grown / 1e6:.1f} MB more, {self.files} open files; most of "
            f"a log: {self.logged / 1e3:.1f} KB more\n"
            f"processors: {', '.join(f'{phase} {n:.2f}' for phase, n in self.busy.items())}\n"
            f"events: {events}\n"
            f"findings: {len(self.findings)}"
        )


async def run_flood(
    plan: FloodPlan, progress: Callable[[str], None] = lambda _: None
) -> FloodReport:
    """Flood a cluster.

    Args:
        plan: What to do.
        progress: Told how it goes.

    Returns:
        What was found; times are for the caller to judge.
    """
    report = FloodReport()
    async with MemoryCluster(
        mode="distributed",
        spawner="subprocess",
        n_nodes=plan.nodes,
        replicas=2,
        ack="replica",
        request_timeout=30.0,
    ) as memory:
        flood = _Flood(plan, memory, report)
        progress("puts alone")
        await flood.work("alone", plan.before, graphs=False)
        progress("puts and graphs")
        await flood.work("with graphs", plan.before)
        progress("the flood")
        await flood.strike()
    return report


class _State(TypedDict):
    turns: int


def _graph(memory: MemoryCluster) -> Any:
    async def step(state: _State) -> _State:
        return {"turns": state["turns"] + 1}

    builder = StateGraph(_State)
    builder.add_node("one", step)
    builder.add_node("two", step)
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.add_edge("two", END)
    return builder.compile(checkpointer=memory.checkpointer)


class _Flood:
    """One cluster, until it is closed."""

    def __init__(self, plan: FloodPlan, memory: MemoryCluster, report: FloodReport) -> None:
        self._plan = plan
        self._memory = memory
        self._report = report
        self._graph = _graph(memory)
        self._folder = Path(memory.handle.descriptor).parent
        self._before: dict[int, int] = {}  # bytes of each process
        self._logs: dict[Path, int] = {}
        self._runs = 0

    async def work(
        self,
        phase: str,
        seconds: float,
        *also: Callable[[float], Awaitable[None]],
        graphs: bool = True,
    ) -> None:
        """Put items and run graphs, with another task beside."""
        self._runs = 0
        spent = await on_daemon_thread(_FILE_WAIT, self._spent)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._put(phase, until))
            for number in range(self._plan.graphs if graphs else 0):
                tasks.create_task(self._run_graphs(f"{phase}-{number}", until))
            for another in also:
                tasks.create_task(_forever(another, until))
        now = await on_daemon_thread(_FILE_WAIT, self._spent)
        took = sum(now[pid] - spent[pid] for pid in now.keys() & spent.keys())
        self._report.busy[phase] = took / seconds

    async def strike(self) -> None:
        """Flood the cluster, and kill an actor meanwhile."""
        plan, report = self._plan, self._report
        pids = await on_daemon_thread(_FILE_WAIT, self._look)
        self._before = {pid: await on_daemon_thread(_FILE_WAIT, _memory_of, pid) for pid in pids}
        self._logs = await on_daemon_thread(_FILE_WAIT, self._log_sizes)
        strangers = [await self._stranger(number) for number in range(plan.processes)]
        try:
            await self.work(
                "in the flood",
                plan.seconds,
                self._kill,
                self._come_anew,
                lambda until: self._watch(strangers, until),
            )
        finally:
            for stranger in strangers:
                report.opened += await _ended(stranger)
        report.runs = self._runs
        for path, size in (await on_daemon_thread(_FILE_WAIT, self._log_sizes)).items():
            report.logged = max(report.logged, size - self._logs.get(path, 0))
        report.events += Counter(event.kind for event in await self._memory.recent_events())
        died = [pid for pid in pids if not await on_daemon_thread(_FILE_WAIT, _memory_of, pid)]
        if len(died) != 1 or report.events["actor_exited"] != 1:
            self._find("died", f"processes {died}; {report.events}")

    # ------------------------------------------------------------------ work

    async def _put(self, phase: str, until: float) -> None:
        times = self._report.puts.setdefault(phase, [])
        while time.monotonic() < until:
            await asyncio.sleep(_BETWEEN_PUTS)
            began = time.perf_counter()
            namespace = ("flood", f"place-{len(times) % 50}")
            await self._memory.store.aput(namespace, "key", {"number": len(times)})
            times.append(time.perf_counter() - began)

    async def _run_graphs(self, name: str, until: float) -> None:
        turns = 0
        while time.monotonic() < until:
            await asyncio.sleep(_BETWEEN_TURNS)
            thread = {"configurable": {"thread_id": f"{name}-{turns % 10}"}}
            try:
                await self._graph.ainvoke({"turns": turns}, thread)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is found
                self._find("graph failed", f"{type(error).__name__}: {error}")
            turns += 1
            self._runs += 1

    async def _come_anew(self, _: float) -> None:
        """Attach as a new client."""
        await asyncio.sleep(_BETWEEN_CLIENTS)
        began = time.monotonic()
        async with MemoryCluster.attach(self._memory.handle) as attached:
            await attached.store.asearch(("flood",), limit=1)
        self._report.waits.append(time.monotonic() - began)
        if self._report.waits[-1] > _LONGEST_WAIT:
            self._find("new client", f"waited {self._report.waits[-1]:.1f} s")

    # ------------------------------------------------------------------ harm

    async def _kill(self, until: float) -> None:
        """Kill one actor of another node, half-way through the flood."""
        left = until - time.monotonic()
        await asyncio.sleep(left / 2)
        actors = (await self._memory.status()).actors
        victim = next(actor.pid for actor in actors if actor.node != "node-0" and actor.pid)
        os.kill(victim, signal.SIGKILL)
        await asyncio.sleep(left)

    async def _stranger(self, number: int) -> asyncio.subprocess.Process:
        source = HOST if number % 2 else f"127.0.0.{2 + number}"
        command = await on_daemon_thread(
            _FILE_WAIT, python_command, FLOODER, str(self._plan.connections), source
        )
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=await on_daemon_thread(_FILE_WAIT, python_environ),
        )

    async def _watch(self, strangers: list[asyncio.subprocess.Process], _: float) -> None:
        """Measure the cluster's processes, and tell the flooders their current ports."""
        pids = await on_daemon_thread(_FILE_WAIT, self._look)
        ports = await on_daemon_thread(_FILE_WAIT, _ports_of, pids)
        for stranger in strangers:
            assert stranger.stdin is not None
            stranger.stdin.write(json.dumps(ports).encode() + b"\n")
        for pid in pids:
            now = await on_daemon_thread(_FILE_WAIT, _memory_of, pid)
            files = await on_daemon_thread(_FILE_WAIT, _files_of, pid)
            self._report.files = max(self._report.files, len(files))
            if pid in self._before:
                self._report.grown = max(self._report.grown, now - self._before[pid])
        await asyncio.sleep(_LOOK_EVERY)

    # ------------------------------------------------------------------ looking

    def _look(self) -> list[int]:
        """The cluster's processes: host, node agents, actors."""
        folders = [self._folder, *self._folder.glob("nodes/node-*")]
        entries = [entry for folder in folders for entry in ProcessRecord(folder).entries()]
        return [entry.pid for entry in entries if entry.alive()]

    def _spent(self) -> dict[int, float]:
        """The processor time of each process, in seconds."""
        return {pid: _seconds_of(pid) for pid in self._look()}

    def _log_sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size for path in self._folder.rglob("*.log*")}

    def _find(self, kind: str, text: str) -> None:
        self._report.findings.append(Finding(kind, "flood", text, ()))


async def _forever(work: Callable[[float], Awaitable[None]], until: float) -> None:
    while time.monotonic() < until:
        await work(until)


async def _ended(stranger: asyncio.subprocess.Process) -> int:
    """The number of connections a flooder opened, once it has ended."""
    assert stranger.stdin is not None
    assert stranger.stdout is not None
    stranger.stdin.close()
    try:
        async with asyncio.timeout(_END_WAIT):
            told = await stranger.stdout.read()
            await stranger.wait()
    except TimeoutError:
        stranger.kill()
        await stranger.wait()
        return 0
    return int(told)


def _memory_of(pid: int) -> int:
    """The memory of a process in bytes, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def _seconds_of(pid: int) -> float:
    """The processor time of a process in seconds, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _files_of(pid: int) -> list[str]:
    """The open files of a process."""
    found = []
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            found.append(str(path.readlink()))  # noqa: PERF401 - what was closed ends it
    except OSError:
        pass
    return found


def _ports_of(pids: list[int]) -> list[int]:
    """The TCP ports on which processes listen."""
    sockets = {name for pid in pids for name in _files_of(pid)}
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if row[3] == _LISTENS and f"socket:[{row[9]}]" in sockets
    ]


# ---------------------------------------------------------------------- the command

_SLOWER: Final = 10.0
_MOST_GROWTH: Final = 100 << 20
_MOST_LOGGED: Final = 1 << 20


def judge(report: FloodReport) -> list[str]:
    """The figures that exceed their bounds, in words."""
    found = [f"{finding.kind}: {finding}" for finding in report.findings]
    alone, flooded = report.p99("alone"), report.p99("in the flood")
    if flooded > _SLOWER * alone:
        found.append(f"puts: p99 {flooded * 1e3:.2f} ms, {flooded / alone:.1f} times as before")
    if report.grown > _MOST_GROWTH:
        found.append(f"memory: {report.grown / 1e6:.1f} MB more")
    if report.logged > _MOST_LOGGED:
        found.append(f"log: {report.logged / 1e6:.1f} MB more")
    return found


def main() -> int:
    """Run it from the command line; exit code 0 when nothing exceeds its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    plan = FloodPlan()
    for name in ("seconds", "before"):
        parser.add_argument(f"--{name}", type=float, default=getattr(plan, name))
    for name in ("processes", "connections", "nodes", "graphs"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plan, name))
    plan = FloodPlan(**vars(parser.parse_args()))
    report = asyncio.run(run_flood(plan, _say))
    _say(str(report))
    found = judge(report)
    for text in found[:20]:
        _say(f"  {text}")
    return 1 if found else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
