"""The results of a run: figures and their environment, as in the JSON file."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from flowgentic_actors.bench.machine import cpus, load
from flowgentic_actors.bench.workloads import Workload

Unit = Literal["s", "1/s", "B", "B/B", "%"]

_PACKAGES = (
    "flowgentic-actors",
    "langgraph",
    "langgraph-checkpoint",
    "msgspec",
    "dragonhpc",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "psycopg",
    "langgraph-checkpoint-redis",
    "redis",
    "redisvl",
)


class Figure(Struct, frozen=True, kw_only=True):
    """The figure of one contender for one workload.

    Attributes:
        group: The part of the results that it belongs to.
        workload: What was done.
        contender: Who did it.
        unit: `s`: seconds, the less the better. `1/s`: a rate, the more the better. `B`: bytes.
            `B/B`: bytes for each byte stored. `%`: of one core.
        median: Half of the samples are at least as good.
        p99: 99 % of the samples are at least as good; None where there is one sample.
        ratio: The median divided by `against` in the same run; None when there is no such thing.
        against: What the ratio is to: a contender, or the smallest size of a growth.
        samples: How many samples they rest on.
        size: What was stored meanwhile, where that is what is varied.
        spread: The least and the most of the ratio, where it is the median of several processes.
    """

    group: str
    workload: str
    contender: str
    unit: Unit
    median: float
    p99: float | None
    ratio: float | None
    against: str
    samples: int
    size: int | None = None
    spread: tuple[float, float] | None = None


class Report(Struct, kw_only=True):
    """The report of a run.

    Attributes:
        quick: Whether it was a short one.
        environment: The machine, its load averages before and after, and the versions.
        durability: Of each contender: what survives what, read from the live server where it is
            one.
        opened: Seconds that opening each contender took.
        left_out: Why contenders did not take part.
        failed: Why there is no figure for something that was to be measured.
        notes: What else a reader must know.
        rounds: Rounds measured; one more went before them to warm up.
        seconds: Time that all of it took.
        figures: In the order of the table.
        processes: How many measured, of which the figures are medians.
        pinned: The same run, pinned to one core.
    """

    quick: bool
    environment: dict[str, Any]
    durability: dict[str, str] = {}
    opened: dict[str, float] = {}
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    notes: list[str] = []
    rounds: int = 0
    seconds: float = 0.0
    figures: list[Figure] = []
    processes: int = 1
    pinned: Report | None = None

    def fail(self, what: str, who: str, error: BaseException) -> None:
        """Note the reason of a missing figure."""
        text = " ".join(str(error).split())[:300]
        self.failed[f"{what}: {who}"] = f"{type(error).__name__}: {text}"


Samples = dict[tuple[str, str], list[float]]
"""Seconds of each operation, by (workload, contender)."""


def figures(samples: Samples, workloads: Sequence[Workload], reference: str) -> list[Figure]:
    """Summarize the samples as figures."""
    found: list[Figure] = []
    for workload in workloads:
        of = {who: t for (what, who), t in samples.items() if what == workload.name and t}
        usual = percentile(of[reference], 0.5) if reference in of else None
        for contender, times in of.items():
            median = _amount(workload, percentile(times, 0.5))
            found.append(
                Figure(
                    group=workload.group,
                    workload=workload.name,
                    contender=contender,
                    unit=workload.unit,
                    median=median,
                    p99=_amount(workload, percentile(times, 0.99)),
                    ratio=None if usual is None else median / _amount(workload, usual),
                    against=reference,
                    samples=len(times),
                )
            )
    return found


def summary(times: Sequence[float]) -> tuple[float, float | None]:
    """The median and 99th percentile of samples."""
    return percentile(times, 0.5), percentile(times, 0.99) if len(times) > 1 else None


def percentile(samples: Sequence[float], fraction: float) -> float:
    """The value that this fraction of the samples does not exceed, between two neighbours."""
    ordered = sorted(samples)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _amount(workload: Workload, seconds: float) -> float:
    return seconds if workload.unit == "s" else workload.per_sample / seconds


def by_cell(found: Sequence[Figure]) -> Mapping[tuple[str, str], Figure]:
    """Figures by (workload, contender)."""
    return {(figure.workload, figure.contender): figure for figure in found}


def environment() -> dict[str, Any]:
    """The environment of the figures: machine, load average (1 min), versions. Blocks."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": cpus(),
        "load_before": load(),
        "versions": versions,
    }


def write(report: Report, file: Path) -> None:
    """Write a report as JSON. Blocks."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def read(file: Path) -> Report:
    """Read a report that was written as JSON. Blocks.

    Raises:
        ValueError: If the file is no such report.
        OSError: If it cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except msgspec.DecodeError as error:
        raise ValueError(f"{file} is not what `bench --json` writes: {error}") from error
