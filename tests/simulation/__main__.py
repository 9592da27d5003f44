"""The command. Exit code 0: nothing happened that must not happen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.simulation.plots import draw, why_no_plots
from tests.simulation.report import markdown, simulate


def main() -> int:
    """Simulate, and print a Markdown table of what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="A cluster of many nodes in this process: the real coordinator, leases and "
        "slots, in a model of nodes and networks.",
    )
    parser.add_argument("--nodes", type=int, default=1000, help="nodes, at least 10")
    parser.add_argument("--hours", type=float, default=24.0, help="hours of pauses")
    parser.add_argument("--seed", type=int, default=1, help="the same one finds the same")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw plots there")
    chosen = parser.parse_args()
    if not 10 <= chosen.nodes <= 4096:
        parser.error("--nodes: 10 to 4096")
    if chosen.plots is not None and (why := why_no_plots()):
        parser.error(why)
    report = simulate(chosen.nodes, chosen.hours, chosen.seed, _say)
    sys.stdout.write(f"{markdown(report)}\n")
    if chosen.plots is not None:
        for file in draw(report, chosen.plots):
            _say(f"written: {file}")
    return 0 if report.sound else 1


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    sys.exit(main())
