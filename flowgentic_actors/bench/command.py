"""`flowgentic-actors bench`: every mode of the memory, and peers, beside LangGraph's own memory.

All contenders are open for the whole run and take turns, workload by workload, round after round:
what disturbs the machine disturbs them alike. So the ratios of one run can be trusted more than
its times, and times of different runs should not be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowgentic_actors.bench import cold, conversation, footprint, growth
from flowgentic_actors.bench.contenders import (
    FLOOR,
    NAMES,
    OURS,
    POSTGRES_VARIABLE,
    REDIS_VARIABLE,
    REFERENCE,
    Contender,
    Places,
    contenders,
)
from flowgentic_actors.bench.machine import load, sync_time
from flowgentic_actors.bench.markdown import write_markdown
from flowgentic_actors.bench.measuring import Effort, measure, opened
from flowgentic_actors.bench.plots import draw, why_no_plots
from flowgentic_actors.bench.progress import Phase, progress, say
from flowgentic_actors.bench.repeated import repeat
from flowgentic_actors.bench.report import missing, print_report
from flowgentic_actors.bench.results import Report, environment, read, write
from flowgentic_actors.bench.selection import (
    DEFAULT,
    STUDIES,
    WORKLOADS,
    Selection,
    select,
)
from flowgentic_actors.config_values import user_path
from flowgentic_actors.storage.mounts import is_in_memory

FULL: Final = Effort(40, 240.0)
QUICK: Final = Effort(3, 15.0, 0.03)

MODES: Final = tuple(name for name in NAMES if name != REFERENCE)
"""What `--modes` may name."""

DEFAULT_MODES: Final = tuple(name for name in MODES if name != FLOOR)
"""The default of `--modes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options of the benchmark."""

    quick: bool = False
    """A short run, to see that all works; its p99 and its rates rest on few samples."""

    modes: tuple[str, ...] = DEFAULT_MODES
    """The memories to measure beside the reference, of `MODES`."""

    workloads: tuple[str, ...] = DEFAULT
    """What to measure: groups, beginnings of workloads' names, or `all`."""

    seconds: float | None = None
    """Time for what is measured in turns; no further round begins after it."""

    processes: int = 1
    """Processes that measure, one after the other; with several, as many pinned to one core."""

    postgres: str | None = None
    """DSN of a Postgres server. Default: `$FLOWGENTIC_BENCH_POSTGRES`."""

    redis: str | None = None
    """URL of a Redis server. Default: `$FLOWGENTIC_BENCH_REDIS`."""

    scratch: Path | None = None
    """Folder for journals and database files. Default: the temporary folder."""

    json: Path | None = None
    """File for everything that was found out, or None."""

    markdown: Path | None = None
    """File for the tables in Markdown, or None."""

    plots: Path | None = None
    """Folder for plots, or None."""

    results: Path | None = None
    """File that an earlier run wrote as JSON: it is shown, and nothing is measured."""

    listing: bool = False
    """Tell what can be measured, and measure nothing."""

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in MODES]:
            raise ValueError(
                f"unknown mode {', '.join(map(repr, unknown))}: choose from {', '.join(MODES)}"
            )
        if self.seconds is not None and not 0 <= self.seconds <= 86_400:
            raise ValueError(f"--seconds must be between 0 and 86,400, not {self.seconds:g}")
        if not 1 <= self.processes <= 1000:
            raise ValueError(f"--processes must be between 1 and 1,000, not {self.processes}")
        if self.plots is not None and (reason := why_no_plots()) is not None:
            raise ValueError(reason)
        self.selection()

    def selection(self) -> Selection:
        """The selection of contenders and workloads."""
        return select(self.workloads, quick=self.quick)

    def effort(self) -> Effort:
        """The effort of measurements in turns."""
        usual = QUICK if self.quick else FULL
        return usual if self.seconds is None else usual._replace(seconds=self.seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments: `BenchOptions(**vars(arguments))` takes them."""
    add = parser.add_argument
    add("--quick", action="store_true", help="a short run with small sizes, to see that all works")
    add(
        "--modes",
        type=_names,
        default=DEFAULT_MODES,
        metavar="NAME,...",
        help="memories to measure beside LangGraph's in-memory classes, of "
        f"{', '.join(MODES)} (default: all but {FLOOR})",
    )
    add(
        "--workloads",
        type=_names,
        default=DEFAULT,
        metavar="NAME,...",
        help=f"groups, beginnings of names, or all (default: {','.join(DEFAULT)}); see --list",
    )
    add(
        "--list",
        dest="listing",
        action="store_true",
        help="list memories and workloads, and measure nothing",
    )
    add("--seconds", type=float, metavar="N", help="time for what is measured in turns")
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="measure in N processes, and in N more pinned to one core: medians with their spread",
    )
    add("--postgres", metavar="DSN", help=f"a Postgres server (default: ${POSTGRES_VARIABLE})")
    add("--redis", metavar="URL", help=f"a Redis server (default: ${REDIS_VARIABLE})")
    add(
        "--scratch",
        type=user_path,
        metavar="FOLDER",
        help="folder on the disk to measure, for journals and database files",
    )
    add(
        "--json", type=user_path, metavar="FILE", help="write everything that was found out to FILE"
    )
    add("--markdown", type=user_path, metavar="FILE", help="write the tables to FILE")
    add("--plots", type=user_path, metavar="FOLDER", help="draw plots in FOLDER (needs matplotlib)")
    add(
        "--results",
        type=user_path,
        metavar="FILE",
        help="measure nothing: show what an earlier run wrote with --json",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


# ---------------------------------------------------------------------- the command


def run_bench(options: BenchOptions) -> int:
    """Run the benchmark and print the results on standard output.

    Args:
        options: What to measure, and how thoroughly.

    Returns:
        0 when all went well, 1 when a memory failed, 2 when a file cannot be read or written.
    """
    console = Console()
    if options.listing:
        _print_list(console, options)
        return 0
    report: Report | None = None
    if options.results is not None:
        try:
            report = read(options.results)
        except (OSError, ValueError) as error:
            return _complain(f"Cannot read the results (--results): {error}", 2)
    try:
        _try_outputs(options)
    except OSError as error:
        return _complain(f"Cannot write the results: {error}", 2)
    if report is not None:
        _show(console, report, options)
        for line in missing(report):
            say(console, line)
        return 0
    if options.processes > 1:
        report, trouble = _measure_repeatedly(console, options)
    else:
        report, trouble = _measure_all(console, options)
    _show(console, report, options)
    for line in trouble:
        _complain(line, 1)
    return 1 if trouble else 0


def _try_outputs(options: BenchOptions) -> None:
    """Check in advance whether the results can be written."""
    for file in (options.json, options.markdown):
        if file is not None:
            file.open("a").close()
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)


def _show(console: Console, report: Report, options: BenchOptions) -> None:
    print_report(console, report)
    if options.json is not None:
        write(report, options.json)
    if options.markdown is not None:
        write_markdown(report, options.markdown)
    if options.plots is not None:
        for plot in draw(report, options.plots):
            say(console, f"Drawn: {plot}")


def _measure_all(console: Console, options: BenchOptions) -> tuple[Report, list[str]]:
    """Measure the selection; returns a line for each failure."""
    start = time.perf_counter()
    report = Report(quick=options.quick, environment=environment())
    places = Places.found(options.scratch, options.postgres, options.redis)
    able: dict[str, Contender] = {}
    known = contenders(places)
    for name in (REFERENCE, *options.modes):
        reason = known[name].why_not()
        if reason is None:
            able[name] = known[name]
        else:
            report.left_out[name] = reason
            say(console, f"Left out: {name}. {reason}")
    unable = len(report.left_out)
    trouble: list[str] = []
    try:
        with progress(console) as begin:
            asyncio.run(_run(report, able, options, places, begin))
    except KeyboardInterrupt:
        trouble.append("The run was interrupted: what is above is what was measured until then")
    except Exception as error:  # noqa: BLE001 - the same
        trouble.append(f"The run ended early: {type(error).__name__}: {error}")
    report.environment["load_after"] = load()
    report.seconds = time.perf_counter() - start
    trouble += [f"Left out: {n}. {why}" for n, why in list(report.left_out.items())[unable:]]
    trouble += [f"No figure: {what}. {why}" for what, why in report.failed.items()]
    return report, trouble


def _measure_repeatedly(console: Console, options: BenchOptions) -> tuple[Report, list[str]]:
    """Measure the selection in several processes; returns a line for each failure."""
    with progress(console) as begin:
        measured = partial(_measure_quietly, options)
        return repeat(measured, options.processes, begin("the processes"))


def _measure_quietly(options: BenchOptions) -> tuple[Report, list[str]]:
    with Path(os.devnull).open("w") as nowhere:
        return _measure_all(Console(file=nowhere), options)


async def _run(
    report: Report,
    able: dict[str, Contender],
    options: BenchOptions,
    places: Places,
    begin: Phase,
) -> None:
    workloads, studies = options.selection()
    quick, scratch = options.quick, places.scratch
    about = report.environment
    about["sync"] = await asyncio.to_thread(sync_time, scratch)
    about["scratch_in_memory"] = await asyncio.to_thread(is_in_memory, scratch)
    if workloads or conversation.GROUP in studies:
        async with opened(report, able, begin("opening")) as subjects:
            if workloads:
                show = begin("the turns")
                await measure(report, subjects, workloads, options.effort(), show)
            if conversation.GROUP in studies:
                length = conversation.QUICK if quick else conversation.FULL
                await conversation.converse(report, subjects, length, begin("the conversation"))
    if growth.GROUP in studies:
        sizes = growth.QUICK if quick else growth.FULL
        await growth.grow(report, able, sizes, begin("the growth"))
    if cold.GROUP in studies:
        modes = [name for name in ("subprocess", "dragon") if name in able]
        if "dragon" in options.modes and "dragon" not in modes:
            report.notes.append(
                f"NO COLD READS FROM A DDICT: {report.left_out.get('dragon', 'no Dragon')}"
            )
        amount = cold.QUICK if quick else cold.FULL
        await cold.read_cold(report, modes, amount, scratch, begin("the cold reads"))
    weighed = [group for group in (footprint.MEMORY, footprint.IDLE) if group in studies]
    if weighed:
        names = [name for name in (REFERENCE, *OURS) if name in able]
        extent = footprint.QUICK if quick else footprint.FULL
        show = begin("the footprint")
        await footprint.weigh(report, names, weighed, extent, scratch=scratch, show=show)


def _print_list(console: Console, options: BenchOptions) -> None:
    """Print what can be measured here."""
    places = Places.found(options.scratch, options.postgres, options.redis)
    who = Table(box=None, pad_edge=False)
    who.add_column("--modes")
    who.add_column("", overflow="fold")
    for name, contender in contenders(places).items():
        reason = contender.why_not()
        who.add_row(name, "can be measured" if reason is None else f"left out: {reason}")
    what = Table(box=None, pad_edge=False)
    for heading in ("--workloads", "group", ""):
        what.add_column(heading, overflow="fold")
    for workload in WORKLOADS:
        what.add_row(workload.name, workload.group, "not in --quick" if workload.heavy else "")
    for name, about in STUDIES.items():
        what.add_row(name, name, about + ("" if name in DEFAULT else "; when asked for"))
    console.print(who)
    console.print()
    console.print(what)


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(Text(message, "bold red"), soft_wrap=True)
    return code
