"""Plots of a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tests.simulation.report import Report

_BLUE, _RED, _GREEN, _BLACK = "#0072b2", "#d55e00", "#009e73", "#000000"


def why_no_plots() -> str | None:
    """Why nothing can be drawn, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "--plots needs matplotlib: pip install 'flowgentic-actors[bench]'"
    return None


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw everything. Blocks.

    Returns:
        The files that were written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow, and optional

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "scale-balance": _balance,
        "scale-losses": _losses,
        "scale-pauses": _pauses,
        "scale-cut": _cut,
        "scale-fan-out": _fan_out,
    }
    return [_save(plot(report), folder / f"{name}.png") for name, plot in plots.items()]


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    figure, axes = plt.subplots(figsize=(6.0, 3.2))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#ececec")
    return figure, axes


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    figure.axes[0].legend(frameon=False)
    figure.savefig(file, bbox_inches="tight", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return file


def _balance(report: Report) -> Any:
    figure, axes = _axes("shards", "busiest shard, max / mean")
    shards = [one.shards for one in report.balances]
    axes.plot(shards, [one.slots for one in report.balances], "o-", color=_BLACK, label="slots")
    axes.plot(
        shards, [o.uniform for o in report.balances], "s-", color=_BLUE, label="threads alike"
    )
    for exponent, colour in (("1.1", _GREEN), ("1.3", _RED)):
        loads = [one.zipf[exponent] for one in report.balances]
        alone = [one.alone[exponent] for one in report.balances]
        axes.plot(shards, loads, "^-", color=colour, label=f"Zipf {exponent}")
        axes.plot(shards, alone, ":", color=colour, label="its busiest thread alone")
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure


def _losses(report: Report) -> Any:
    figure, axes = _axes("seconds after the loss of power", "share of (client, shard) that know")
    colours = iter((_BLUE, _RED, _GREEN, _BLACK))
    for policy, one in report.losses:
        shares = [(n + 1) / len(one.samples) for n in range(len(one.samples))]
        label = f"{one.at_once} of {report.nodes}, told {policy}"
        axes.plot(one.samples, shares, color=next(colours), label=label)
    return figure


def _pauses(report: Report) -> Any:
    figure, axes = _axes("seconds", "share of nodes counted as lost")
    for shares, colour, label in (
        (report.paused, _BLUE, "length of a pause"),
        (report.resumed, _RED, "going on later than the host"),
    ):
        axes.plot(*zip(*shares, strict=True), ".-", color=colour, label=label)
    axes.axvline(report.day.longest_silence, color=_BLACK, linewidth=0.9, linestyle="--")
    axes.annotate(
        f" longest silence in {report.hours:g} h", (report.day.longest_silence, 0.5), ha="left"
    )
    return figure


def _cut(report: Report) -> Any:
    policy, one = report.cuts[0]
    figure, axes = _axes("seconds after the cut", "shards")
    times, two, single, none = zip(*one.curve, strict=True)
    axes.plot(times, two, color=_GREEN, label="two whole copies")
    axes.plot(times, single, color=_BLUE, label="one")
    axes.plot(times, none, color=_RED, label="none that is reached")
    axes.axvline(one.seconds, color=_BLACK, linewidth=0.9, linestyle="--")
    axes.set_title(f"{one.cut} of {one.nodes} nodes cut off, told {policy}", fontsize=9)
    return figure


def _fan_out(report: Report) -> Any:
    figure, axes = _axes("shards asked", "ms")
    shards = [one.shards for one in report.fans]
    for values, colour, label in (
        ([one.slowest for one in report.fans], _BLUE, "slowest answer, mean"),
        ([one.slowest_p99 for one in report.fans], _RED, "slowest answer, p99"),
        ([one.asking for one in report.fans], _BLACK, "asking, in the client"),
    ):
        axes.plot(shards, [value * 1e3 for value in values], "o-", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure
