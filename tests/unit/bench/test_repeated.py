"""Runs in several processes: medians, their spread, and the same pinned to one core."""

from __future__ import annotations

import gc
import json
import os
from functools import partial
from pathlib import Path

import pytest

from flowgentic_actors.bench.machine import cpus
from flowgentic_actors.bench.markdown import markdown
from flowgentic_actors.bench.repeated import Measured, repeat, summarize
from flowgentic_actors.bench.results import Figure, Report
from flowgentic_actors.cli.main import main


def report_of(median: float, ratio: float | None, **environment: object) -> Report:
    figure = Figure(
        group="graphs",
        workload="ainvoke",
        contender="local",
        unit="s",
        median=median,
        p99=2 * median,
        ratio=ratio,
        against="in-memory",
        samples=10,
    )
    about = {"cpus": cpus(), "load_before": 0, "python": "3", "versions": {"langgraph": "1"}}
    return Report(
        quick=True, environment=about | environment, rounds=2, seconds=1.0, figures=[figure]
    )


def test_figures_of_several_processes_are_medians_with_their_spread() -> None:
    reports = [
        report_of(1.0, 1.5, load_after=0.1),
        report_of(9.0, 4.0, load_after=0.2),
        report_of(2.0, 2.0, load_after=0.3),
    ]
    reports[1].failed["ainvoke: sqlite"] = "it was locked"
    whole = summarize(reports)
    (figure,) = whole.figures
    assert (figure.median, figure.p99, figure.samples) == (2.0, 4.0, 30)
    assert (figure.ratio, figure.spread) == (2.0, (1.5, 4.0))
    assert (whole.processes, whole.rounds, whole.seconds) == (3, 6, 3.0)
    assert whole.environment["load_after"] == 0.3
    assert whole.failed == {"ainvoke: sqlite": "it was locked"}
    assert "2 s, 2.00x [1.50-4.00]" in markdown(whole)


def test_without_a_ratio_there_is_no_spread() -> None:
    (figure,) = summarize([report_of(1.0, None), report_of(2.0, None)]).figures
    assert (figure.ratio, figure.spread) == (None, None)


def measured(folder: Path) -> Measured:
    (folder / f"{sum(1 for _ in folder.iterdir())} {cpus()}").touch()
    return report_of(1.0, 1.0, pid=os.getpid()), ["the same"]


@pytest.mark.skipif(cpus() == 1, reason="there is one core only")
def test_processes_on_all_cores_and_on_one_take_turns(tmp_path: Path) -> None:
    shown: list[str] = []
    whole, trouble = repeat(partial(measured, tmp_path), 2, lambda _, what: shown.append(what))
    assert [int(path.name.split()[1]) for path in sorted(tmp_path.iterdir())] == [
        cpus(),
        1,
        1,
        cpus(),
    ]
    assert len(shown) == 4
    assert trouble == ["the same"]
    assert whole.pinned is not None
    assert whole.processes == whole.pinned.processes == 2
    assert os.getpid() not in (whole.environment["pid"], whole.pinned.environment["pid"])


@pytest.mark.slow
def test_the_command_repeats_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    options = ["--modes", "local", "--workloads", "store get", "--seconds", "0", "--quick"]
    assert main(["bench", *options, "--processes", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert ("Pinned to one core" in printed) == (cpus() > 1)
    results = json.loads(file.read_text())
    assert results["processes"] == 2
    assert {f["contender"]: len(f["spread"] or ()) for f in results["figures"]} == {
        "in-memory": 2,
        "local": 2,
    }
    gc.unfreeze()


def test_a_number_of_processes_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--processes", "0"])
    assert "--processes must be between" in capsys.readouterr().err
