"""The tables of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowgentic_actors.bench.contenders import REFERENCE
from flowgentic_actors.bench.progress import say
from flowgentic_actors.bench.results import Figure, Report, Unit, by_cell

FEW: Final = 10
"""Samples below which a figure is marked: its median may be chance, its p99 is the slowest one."""

PINNED: Final = "Pinned to one core:"
"""Heading of the second part of a report."""

_COLUMN = 19  # characters that a contender's column takes


def print_report(console: Console, report: Report) -> None:
    """Print all results."""
    say(console, head(report))
    kinds = Table(box=None, pad_edge=False)
    for heading in ("memory", "durability"):
        kinds.add_column(heading, overflow="fold")
    kinds.add_column("opened in", justify="right", no_wrap=True)
    for name, durability in report.durability.items():
        kinds.add_row(name, durability, amount(report.opened[name], "s"))
    if report.durability:
        console.print(kinds)
    for group in dict.fromkeys(figure.group for figure in report.figures):
        found = [figure for figure in report.figures if figure.group == group]
        console.print()
        if any(figure.size is not None for figure in found):
            console.print(_sizes(group, found))
        else:
            for table in _tables(group, found, console.width):
                console.print(table)
    console.print()
    for line in [*legend(report), *report.notes]:
        say(console, line)
    if report.pinned is not None:
        console.print()
        say(console, PINNED)
        print_report(console, report.pinned)


def head(report: Report) -> str:
    """The environment of the figures, in one line."""
    about = report.environment
    parts = [
        f"{about['cpus']} core{'' if about['cpus'] == 1 else 's'}",
        f"load {about['load_before']} before and {about.get('load_after', '?')} after",
        f"Python {about['python']}",
        f"langgraph {about['versions']['langgraph']}",
        f"{report.rounds} rounds in {report.seconds:.0f} s"
        + (f", {report.processes} processes" if report.processes > 1 else ""),
    ]
    if (synced := about.get("sync")) is not None:
        where = (
            "in memory, so nothing is kept there" if about.get("scratch_in_memory") else "on disk"
        )
        parts.append(f"a synced write of 4 KiB to scratch ({where}) takes {amount(synced, 's')}")
    return "; ".join(parts)


def legend(report: Report) -> list[str]:
    """The legend of the tables."""
    lines = [
        (
            f"Shown are the median and, as ...x, its ratio to {REFERENCE} in this run; then p99, "
            "which 99 % of the samples keep below. Of times the less is the better, of rates (/s) "
            f"the more. * rests on fewer than {FEW} samples."
        )
    ]
    if report.processes > 1:
        lines.append("In brackets are the least and the most of the ratio in the processes.")
    if any(figure.size is not None for figure in report.figures):
        lines.append("In tables of growth ...x is the ratio to the smallest size.")
    return lines


def missing(report: Report) -> list[str]:
    """The figures that are missing from the tables, with reasons."""
    lines = [f"Left out: {name}. {reason}" for name, reason in report.left_out.items()]
    return lines + [f"No figure: {what}. {reason}" for what, reason in report.failed.items()]


def _tables(group: str, found: Sequence[Figure], width: int) -> list[Table]:
    """A row for each workload, as many contenders beside each other as there is room for."""
    cells = by_cell(found)
    workloads = list(dict.fromkeys(figure.workload for figure in found))
    names = list(dict.fromkeys(figure.contender for figure in found))
    room = max(1, (width - max(map(len, workloads)) - 2) // _COLUMN)
    tables = []
    for start in range(0, len(names), room):
        table = Table(box=None, pad_edge=False)
        table.add_column(group)
        for name in names[start : start + room]:
            table.add_column(name, justify="right", overflow="fold")
        for workload in workloads:
            row = [cells.get((workload, name)) for name in names[start : start + room]]
            table.add_row(workload, *(_cell(figure) for figure in row))
        tables.append(table)
    return tables


def _sizes(group: str, found: Sequence[Figure]) -> Table:
    """A row for each workload and contender, the sizes beside each other."""
    sizes = sorted({figure.size for figure in found if figure.size is not None})
    cells = {(f.workload, f.contender, f.size): f for f in found}
    table = Table(box=None, pad_edge=False)
    table.add_column(group)
    table.add_column("memory")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for workload, contender in dict.fromkeys((f.workload, f.contender) for f in found):
        row = [cells.get((workload, contender, size)) for size in sizes]
        table.add_row(workload, contender, *(_cell(figure) for figure in row))
    return table


def _cell(figure: Figure | None) -> Text:
    if figure is None:
        return Text("-", "dim")
    text = Text(amount(figure.median, figure.unit))
    if few(figure):
        text.append("*")
    if shown := ratio(figure):
        text.append(f" {shown}".rjust(6), "bold")
    if between := spread(figure):
        text.append(f"\n{between}", "bold")
    if figure.p99 is not None:
        text.append(f"\n{amount(figure.p99, figure.unit)}", "dim")
    return text


def few(figure: Figure) -> bool:
    """Whether a figure is to be marked as resting on few samples."""
    return figure.unit in ("s", "1/s") and figure.samples < FEW


def ratio(figure: Figure) -> str:
    """The ratio as text, empty where it means nothing."""
    itself = figure.size is None and figure.contender == figure.against
    if figure.ratio is None or itself:
        return ""
    return f"{_ratio(figure.ratio)}x"


def spread(figure: Figure) -> str:
    """The least and the most of a ratio as text, empty where it means nothing."""
    if figure.spread is None or not ratio(figure):
        return ""
    return f"[{_ratio(figure.spread[0])}-{_ratio(figure.spread[1])}]"


def _ratio(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def amount(value: float, unit: Unit) -> str:
    """A figure as text for people."""
    if unit == "1/s":
        return f"{float(f'{value:.3g}'):,.0f}/s"
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "B/B":
        return f"{value:.2f}"
    if unit == "B":
        return _scaled(value, ((float(1 << 20), "MiB"), (float(1 << 10), "KiB")), (1.0, "B"))
    return _scaled(value, ((1.0, "s"), (1e-3, "ms")), (1e-6, "µs"))


def _scaled(value: float, larger: Sequence[tuple[float, str]], smallest: tuple[float, str]) -> str:
    for scale, name in larger:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {name}"
    scale, name = smallest
    return f"{value / scale:.3g} {name}"
