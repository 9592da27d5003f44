"""`flowgentic-actors bench`: every mode of the memory beside LangGraph's in-memory savers.

All contenders are open for the whole run and take turns, workload by workload, round after round:
what disturbs the machine disturbs them alike. So the ratios of one run can be trusted more than
its times, and times of different runs should not be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cli.workloads import WORKLOADS, Subject, Workload, subject
from flowgentic_actors.environment import why_no_dragon
from flowgentic_actors.errors import FlowgenticError

REFERENCE: Final = "in-memory"
"""The contender that every ratio is relative to: LangGraph's InMemorySaver and InMemoryStore."""

_PACKAGES = ("flowgentic-actors", "langgraph", "langgraph-checkpoint", "dragonhpc", "msgspec")


# ---------------------------------------------------------------------- who takes part


@asynccontextmanager
async def _in_memory() -> Any:
    yield subject(InMemorySaver(), InMemoryStore())


@asynccontextmanager
async def _cluster(**settings: Any) -> Any:
    async with MemoryCluster(**settings) as memory:
        yield subject(memory.checkpointer, memory.store)


class Contender(NamedTuple):
    """A kind of memory.

    Attributes:
        open: Opens it.
        durability: What survives, for the table.
        why_not: Says why it cannot run here, None when it can.
    """

    open: Callable[[], AbstractAsyncContextManager[Subject]]
    durability: str
    why_not: Callable[[], str | None] = lambda: None


_distributed = partial(_cluster, mode="distributed", fallback_to_local=False)
_JOURNAL = "journal: survives the death of any process on the node"

CONTENDERS: dict[str, Contender] = {
    REFERENCE: Contender(_in_memory, "none"),
    "local": Contender(partial(_cluster, mode="local"), "none, in process"),
    "subprocess": Contender(partial(_distributed, spawner="subprocess"), _JOURNAL),
    "dragon": Contender(partial(_distributed, spawner="dragon"), _JOURNAL, why_no_dragon),
}
"""Everything that can be measured, by name; the reference first."""

MODES = tuple(name for name in CONTENDERS if name != REFERENCE)
"""What `--modes` may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What may be told to the benchmark."""

    quick: bool = False
    """A short run, to see that all works; its p99 and its rates rest on few samples."""

    modes: tuple[str, ...] = MODES
    """The modes to measure beside the reference, of `MODES`."""

    json: Path | None = None
    """File for everything that was found out, or None."""

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in MODES]:
            raise ValueError(
                f"unknown mode {', '.join(map(repr, unknown))}: choose from {', '.join(MODES)}"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments: `BenchOptions(**vars(arguments))` takes them."""
    add = parser.add_argument
    add("--quick", action="store_true", help="a short run, below 20 s")
    add(
        "--modes",
        type=lambda text: tuple(dict.fromkeys(text.split(","))),
        default=MODES,
        metavar=",".join(MODES),
        help="modes to measure beside LangGraph's in-memory savers (default: all)",
    )
    add("--json", type=Path, metavar="FILE", help="write everything that was found out to FILE")


# ---------------------------------------------------------------------- what comes out


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """How one contender did at one workload.

    Attributes:
        workload: The workload's name.
        contender: The contender's name.
        unit: `s`, the less the better, or `1/s`, the more the better.
        median: Half of the samples are at least as good.
        p99: 99 % of the samples are at least as good.
        ratio: The median, divided by that of the reference in the same run.
        samples: How many samples they rest on.
    """

    workload: str
    contender: str
    unit: Literal["s", "1/s"]
    median: float
    p99: float
    ratio: float
    samples: int


@dataclass(slots=True, kw_only=True)
class Report:
    """A run.

    Attributes:
        environment: The machine, its load averages before and after, and the versions.
        opened: Seconds that opening each contender took.
        left_out: Why contenders that were asked for did not take part.
        rounds: Rounds measured; one more went before them to warm up.
        seconds: Time that the rounds took, warming up included.
        figures: By workload, then contender.
    """

    quick: bool
    environment: dict[str, Any]
    durability: dict[str, str] = field(default_factory=dict)
    opened: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


Samples = dict[tuple[str, str], list[float]]
"""Seconds of each operation, by (workload, contender)."""


def figures(samples: Samples, workloads: Sequence[Workload]) -> list[Figure]:
    """Sum the samples up; those of the reference must be among them."""
    found: list[Figure] = []
    for workload in workloads:
        of = {who: times for (what, who), times in samples.items() if what == workload.name}
        usual = _rate_or_time(workload, percentile(of[REFERENCE], 0.5))
        for contender, times in of.items():
            median = _rate_or_time(workload, percentile(times, 0.5))
            found.append(
                Figure(
                    workload=workload.name,
                    contender=contender,
                    unit=workload.unit,
                    median=median,
                    p99=_rate_or_time(workload, percentile(times, 0.99)),
                    ratio=median / usual,
                    samples=len(times),
                )
            )
    return found


def percentile(samples: Sequence[float], fraction: float) -> float:
    """The value that this fraction of the samples does not exceed, between two neighbours."""
    ordered = sorted(samples)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _rate_or_time(workload: Workload, seconds: float) -> float:
    return seconds if workload.unit == "s" else workload.per_sample / seconds


# ---------------------------------------------------------------------- measuring


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: Rounds after the one that warms up.
        seconds: No further round begins after this time.
    """

    rounds: int
    seconds: float


FULL: Final = Effort(40, 60.0)
QUICK: Final = Effort(3, 6.0)


async def measure(
    report: Report,
    contenders: Mapping[str, Contender],
    workloads: Sequence[Workload],
    effort: Effort,
    show: Callable[[float, str], None] = lambda _done, _what: None,
) -> None:
    """Open the contenders, let them take turns, and write into the report what came out.

    Args:
        report: To be filled in.
        contenders: Who takes part, the reference among them.
        workloads: What is measured.
        effort: For how long.
        show: Told between two turns which part is done and what comes next.
    """
    async with AsyncExitStack() as stack:
        subjects = await _open_all(report, contenders, stack)
        samples: Samples = {(what.name, who): [] for what in workloads for who in subjects}
        _set_heap_aside()
        start = time.perf_counter()
        for number in range(effort.rounds + 1):
            if number > 1 and time.perf_counter() - start > effort.seconds:
                break
            order = list(subjects)
            first = number % len(order)  # so that nobody always follows the same one
            order = order[first:] + order[:first]
            for index, workload in enumerate(workloads):
                show((number + index / len(workloads)) / (effort.rounds + 1), workload.name)
                for name in order:
                    times = await _take_turn(workload, subjects[name])
                    if number > 0:  # the first round warms up
                        samples[workload.name, name] += times
            if number == 0:
                _set_heap_aside()
            report.rounds = number
        gc.unfreeze()
        show(1.0, "closing")
        report.seconds = time.perf_counter() - start
    report.figures = figures(samples, workloads)


async def _open_all(
    report: Report, contenders: Mapping[str, Contender], stack: AsyncExitStack
) -> dict[str, Subject]:
    subjects: dict[str, Subject] = {}
    for name, contender in contenders.items():
        start = time.perf_counter()
        try:
            subjects[name] = await stack.enter_async_context(contender.open())
        except FlowgenticError as error:
            report.left_out[name] = f"it could not be opened: {error}"
        else:
            report.opened[name] = time.perf_counter() - start
            report.durability[name] = contender.durability
    return subjects


def _set_heap_aside() -> None:
    """Let the garbage collector, from now on, look only through what a turn makes."""
    gc.collect()
    gc.freeze()


async def _take_turn(workload: Workload, memory: Subject) -> list[float]:
    """Time some operations, one after the other."""
    gc.collect()  # nobody pays for what another one left behind
    times: list[float] = []
    async with workload.turn(memory) as operations:
        if workload.per_sample == 1:  # a sample of many warms up by itself
            await next(operations)  # the caches still hold what the last contender needed
        for operation in islice(operations, workload.samples):
            start = time.perf_counter()
            await operation
            times.append(time.perf_counter() - start)
    return times


# ---------------------------------------------------------------------- the command


def run_bench(options: BenchOptions) -> int:
    """Run the benchmark and print on standard output what came out.

    Args:
        options: What to measure, and how thoroughly.

    Returns:
        0 when all went well, 1 when a memory failed, 2 when the JSON file cannot be written.
    """
    console = Console()
    if options.json is not None:
        try:
            options.json.open("a").close()  # found out now, not after a minute
        except OSError as error:
            return _complain(f"Cannot write the results: {error}", 2)
    report = Report(quick=options.quick, environment=environment())
    contenders: dict[str, Contender] = {}
    for name in (REFERENCE, *options.modes):
        reason = CONTENDERS[name].why_not()
        if reason is None:
            contenders[name] = CONTENDERS[name]
        else:
            report.left_out[name] = reason
            _say(console, f"Left out: {name}. {reason}")
    unable = len(report.left_out)
    try:
        with _progress(console) as show:
            effort = QUICK if options.quick else FULL
            asyncio.run(measure(report, contenders, WORKLOADS, effort, show))
    except FlowgenticError as error:
        return _complain(f"The memory failed: {type(error).__name__}: {error}", 1)
    report.environment["load_after"] = _load()
    _print_report(console, report)
    if options.json is not None:
        text = msgspec.json.format(msgspec.json.encode(report)) + b"\n"
        options.json.write_bytes(text)
    failed = list(report.left_out.items())[unable:]
    for name, reason in failed:
        _complain(f"Left out: {name}. {reason}", 1)
    return 1 if failed else 0


def environment() -> dict[str, Any]:
    """What the figures depend on: machine, load average (1 min), versions."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "load_before": _load(),
        "versions": versions,
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[float, str], None]]:
    """Hand out a function that shows the part done: a bar, or lines in a log."""
    if console.is_terminal:
        columns = (BarColumn(), TextColumn("{task.percentage:.0f} % {task.fields[what]}"))
        # Drawn between two turns: a thread that draws would disturb what is measured.
        with Progress(
            *columns, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True
        ) as bar:
            task = bar.add_task("", total=1.0, what="")
            yield lambda done, what: bar.update(task, completed=done, what=what, refresh=True)
        return
    shown = -1

    def show(done: float, _what: str) -> None:
        nonlocal shown
        if int(done * 4) > shown:
            shown = int(done * 4)
            _say(console, f"{done:.0%} measured")

    yield show


def _print_report(console: Console, report: Report) -> None:
    about = report.environment
    _say(
        console,
        f"{about['cpus']} CPUs, load {about['load_before']} before and {about['load_after']} "
        f"after, Python {about['python']}, langgraph {about['versions']['langgraph']}; "
        f"{report.rounds} rounds in {report.seconds:.0f} s",
    )
    kinds = Table(box=None, pad_edge=False)
    for heading in ("memory", "durability"):
        kinds.add_column(heading, overflow="fold")
    kinds.add_column("opened in", justify="right")
    for name, durability in report.durability.items():
        kinds.add_row(name, durability, _amount(report.opened[name], "s"))
    console.print(kinds)

    names = list(report.opened)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    found = {(figure.workload, figure.contender): figure for figure in report.figures}
    for workload in dict.fromkeys(figure.workload for figure in report.figures):
        table.add_row(workload, *(_cell(found[workload, name]) for name in names))
    console.print(table)
    _say(
        console,
        f"The median and, as ...x, its ratio to {REFERENCE} in this run; below it p99: 99 % of the "
        "samples are at least as good. Of times the less is the better, of rates (/s) the more.",
    )


def _cell(figure: Figure) -> Text:
    times = Text(_amount(figure.median, figure.unit))
    if figure.contender != REFERENCE:
        decimals = 2 if figure.ratio < 10 else 1 if figure.ratio < 100 else 0
        times.append(f" {figure.ratio:.{decimals}f}x".rjust(6), "bold")
    return times.append(f"\n{_amount(figure.p99, figure.unit)}", "dim")


def _amount(value: float, unit: Literal["s", "1/s"]) -> str:
    if unit == "1/s":
        return f"{float(f'{value:.3g}'):,.0f}/s"
    for scale, name in ((1.0, "s"), (1e3, "ms")):
        if value * scale >= 1:
            return f"{value * scale:.3g} {name}"
    return f"{value * 1e6:.3g} µs"


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(Text(message, "bold red"), soft_wrap=True)
    return code


def _say(console: Console, message: str) -> None:
    console.print(Text(message), soft_wrap=True)
