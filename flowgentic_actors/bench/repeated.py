"""A run repeated in several processes, on all cores and pinned to one.

Within a process the heap, the places of things in memory and the cores that the scheduler chose
stay as they are: what differs between processes is as large as what is to be measured.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec

from flowgentic_actors.bench.machine import cpus
from flowgentic_actors.bench.results import Figure, Report

_Cell = tuple[str, str, int | None]


Measured = tuple[Report, list[str]]
"""A report, and a line for each failure."""


def repeat(
    measured: Callable[[], Measured], times: int, show: Callable[[float, str], None]
) -> Measured:
    """Measure again and again, each time in a new process.

    All cores and one core take turns; which comes first alternates.

    Args:
        measured: What is called in each process; picklable.
        times: How often, on all cores and, if there are several, on one.
        show: Told how far it is.
    """
    places = (False, True) if cpus() > 1 and hasattr(os, "sched_setaffinity") else (False,)
    found: dict[bool, list[Report]] = {pinned: [] for pinned in places}
    trouble: dict[str, None] = {}
    for number in range(times):
        for index, pinned in enumerate(places[::-1] if number % 2 else places):
            what = f"process {number + 1} of {times}, {'one core' if pinned else 'all cores'}"
            show((number + index / len(places)) / times, what)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                report, lines = pool.submit(_measure, measured, pinned).result()
            found[pinned].append(report)
            trouble |= dict.fromkeys(lines)
    whole = summarize(found[False])
    if True in found:
        whole.pinned = summarize(found[True])
    return whole, list(trouble)


def _measure(measured: Callable[[], Measured], pinned: bool) -> Measured:
    if pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return measured()


def summarize(reports: Sequence[Report]) -> Report:
    """One report of several: medians of their figures, with the least and the most of the ratios.

    Args:
        reports: Reports of the same measurement.
    """
    cells: dict[_Cell, list[Figure]] = {}
    for report in reports:
        for figure in report.figures:
            cell = (figure.workload, figure.contender, figure.size)
            cells.setdefault(cell, []).append(figure)
    whole = msgspec.structs.replace(reports[0], processes=len(reports), figures=[])
    whole.figures = [_summary(figures) for figures in cells.values()]
    whole.rounds = sum(report.rounds for report in reports)
    whole.seconds = sum(report.seconds for report in reports)
    last = reports[-1].environment
    whole.environment = {**reports[0].environment, "load_after": last.get("load_after", "?")}
    for report in reports:
        whole.failed |= report.failed
        whole.left_out |= report.left_out
    return whole


def _summary(figures: Sequence[Figure]) -> Figure:
    ratios = [figure.ratio for figure in figures if figure.ratio is not None]
    slowest = [figure.p99 for figure in figures if figure.p99 is not None]
    return msgspec.structs.replace(
        figures[0],
        median=statistics.median(figure.median for figure in figures),
        p99=statistics.median(slowest) if slowest else None,
        ratio=statistics.median(ratios) if ratios else None,
        spread=(min(ratios), max(ratios)) if len(ratios) > 1 else None,
        samples=sum(figure.samples for figure in figures),
    )
