"""The tables of a run in Markdown, for a page of documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flowgentic_actors.bench.report import (
    PINNED,
    amount,
    few,
    head,
    legend,
    missing,
    ratio,
    spread,
)
from flowgentic_actors.bench.results import Figure, Report, by_cell


def write_markdown(report: Report, file: Path) -> None:
    """Write the tables to a file. Blocks."""
    file.write_text(markdown(report))


def markdown(report: Report) -> str:
    """The tables, the medians and the 99th percentiles in tables of their own."""
    parts = [f"{head(report)}."]
    if report.durability:
        rows = [[name, kind] for name, kind in report.durability.items()]
        parts.append(_table(["memory", "durability"], rows))
    for group in dict.fromkeys(figure.group for figure in report.figures):
        found = [figure for figure in report.figures if figure.group == group]
        parts.append(f"### {group.capitalize()}")
        if any(figure.size is not None for figure in found):
            parts.append(_sizes(found))
            continue
        parts.append(_group(found, _median))
        if any(figure.p99 is not None for figure in found):
            parts.append("99th percentiles:")
            parts.append(_group([f for f in found if f.p99 is not None], _p99))
    parts.append(
        "\n".join(f"- {line}" for line in [*legend(report), *report.notes, *missing(report)])
    )
    if report.pinned is not None:
        parts += [f"**{PINNED}**", markdown(report.pinned).rstrip()]
    return "\n\n".join(parts) + "\n"


def _group(found: Sequence[Figure], cell: Callable[[Figure], str]) -> str:
    cells = by_cell(found)
    names = list(dict.fromkeys(figure.contender for figure in found))
    rows = []
    for workload in dict.fromkeys(figure.workload for figure in found):
        row = [cells.get((workload, name)) for name in names]
        rows.append([workload, *("" if figure is None else cell(figure) for figure in row)])
    return _table(["", *names], rows)


def _sizes(found: Sequence[Figure]) -> str:
    sizes = sorted({figure.size for figure in found if figure.size is not None})
    cells = {(f.workload, f.contender, f.size): f for f in found}
    rows = []
    for workload, contender in dict.fromkeys((f.workload, f.contender) for f in found):
        row = [cells.get((workload, contender, size)) for size in sizes]
        rows.append(
            [workload, contender, *("" if figure is None else _median(figure) for figure in row)]
        )
    return _table(["", "memory", *(f"{size:,}" for size in sizes)], rows)


def _median(figure: Figure) -> str:
    text = amount(figure.median, figure.unit) + (r"\*" if few(figure) else "")
    return f"{text}, {shown} {spread(figure)}".rstrip() if (shown := ratio(figure)) else text


def _p99(figure: Figure) -> str:
    return "" if figure.p99 is None else amount(figure.p99, figure.unit)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
