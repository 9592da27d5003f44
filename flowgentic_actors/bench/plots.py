"""Plots of a run: ratios of every memory, and growth with the stored amount."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flowgentic_actors.bench.contenders import NAMES, REFERENCE
from flowgentic_actors.bench.growth import GROUP as GROWTH
from flowgentic_actors.bench.results import Figure, Report

CORE: Final = ("checkpoints", "graphs", "store")
"""Groups whose ratios are drawn."""

GOAL: Final = 1.5
"""Growth that the design allows from 1,000 to the largest size."""

_COLOURS = {  # told apart by people who are colour-blind (Okabe and Ito)
    "in-memory": "#000000",
    "floor": "#bbbbbb",
    "local": "#0072b2",
    "local-journal": "#56b4e9",
    "subprocess": "#009e73",
    "subprocess-disk": "#73c6a8",
    "dragon": "#d55e00",
    "sqlite": "#8c6d1f",
    "postgres": "#6a3d9a",
    "postgres-async": "#b79bd1",
    "redis": "#cc2f2f",
    "redis-plain": "#e78f8f",
    "ddict": "#999999",
}
_MARKS = dict(zip(NAMES, "o|^v<>sDPXdph", strict=True))


def why_no_plots() -> str | None:
    """The reason why nothing can be drawn, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "--plots needs matplotlib: pip install 'flowgentic-actors[bench]'"
    return None


def draw(report: Report, folder: Path, suffix: str = "svg") -> list[Path]:
    """Draw all plots that have figures. Blocks.

    Returns:
        The files that were written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow, and optional

    mpl.use("Agg")
    # The same figures make the same file; text stays text, which is small and can be searched.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "flowgentic", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    ratios = [f for f in report.figures if f.group in CORE and f.ratio]
    if ratios:
        drawn.append(_save(_ratios(ratios), folder / f"ratios.{suffix}"))
    growth = [f for f in report.figures if f.group == GROWTH]
    if growth:
        drawn.append(_save(_growth(growth, relative=True), folder / f"growth-ratios.{suffix}"))
        drawn.append(_save(_growth(growth, relative=False), folder / f"growth-times.{suffix}"))
    return drawn


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, bbox_inches="tight", dpi=110, metadata=metadata)
    plt.close(figure)
    return file


def _ratios(found: Sequence[Figure]) -> Any:
    """Plot ratios to the in-memory reference; those of rates inverted, so that left is better."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415 - as above

    workloads = list(dict.fromkeys(figure.workload for figure in found))
    names = [n for n in dict.fromkeys(f.contender for f in found) if n != REFERENCE]
    figure, axes = plt.subplots(figsize=(8.0, 0.33 * len(workloads) + 1.4))
    for row in range(len(workloads)):
        axes.axhline(row, color="#e6e6e6", linewidth=0.8, zorder=0)
    for name in names:
        own = [f for f in found if f.contender == name]
        axes.plot(
            [f.ratio if f.unit == "s" else 1 / (f.ratio or 1.0) for f in own],
            [workloads.index(f.workload) for f in own],
            linestyle="",
            marker=_MARKS.get(name, "o"),
            markersize=6,
            color=_COLOURS.get(name),
            label=name,
            alpha=0.9,
        )
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()
    axes.set_xlabel(
        "time, as a multiple of LangGraph's in-memory classes (line: 1x); left is better"
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=6, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _growth(found: Sequence[Figure], *, relative: bool) -> Any:
    """One small plot for each operation, one line for each memory."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415 - as above

    workloads = list(dict.fromkeys(figure.workload for figure in found))
    names = list(dict.fromkeys(figure.contender for figure in found))
    columns = 3
    rows = -(-len(workloads) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(9.0, 2.9 * rows), squeeze=False)
    every = list(grid.flat)
    for axes, workload in zip(every, workloads, strict=False):
        for name in names:
            own = [f for f in found if f.workload == workload and f.contender == name]
            axes.plot(
                [f.size for f in own],
                [f.ratio if relative else f.median * 1e6 for f in own],
                marker=_MARKS.get(name, "o"),
                markersize=4,
                linewidth=1.4,
                color=_COLOURS.get(name),
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.4g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda _y, _: ""))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.set_title(workload, fontsize=9)
        axes.grid(color="#ececec")
        if relative:
            axes.axhline(GOAL, color="black", linewidth=0.9, linestyle="--")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.5), max(high, 2.0))
            ticks = (0.5, 1, 1.5, 2, 5) if high <= 10 else (1, 10, 100, 1000)
            axes.set_yticks([tick for tick in ticks if tick <= max(high, 2.0)])
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in every[len(workloads) :]:
        axes.set_axis_off()
    handles, labels = every[0].get_legend_handles_labels()
    spare = every[len(workloads) :]
    if spare:
        spare[0].legend(handles, labels, loc="center", frameon=False)
    else:
        figure.legend(handles, labels, loc="lower center", ncol=6, frameon=False)
    what = f"ratio to the smallest size (dashed: {GOAL}x)" if relative else "median, µs"
    figure.supylabel(what, fontsize=9)
    figure.supxlabel("items, or threads, stored", fontsize=9)
    figure.tight_layout()
    return figure


def _short(count: float, _place: int) -> str:
    for scale, name in ((1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:g}{name}"
    return f"{count:g}"
