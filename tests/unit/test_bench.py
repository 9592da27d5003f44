"""The benchmark's own correctness, on its short form."""

import argparse
import asyncio
import contextlib
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from flowgentic_actors.cli import bench
from flowgentic_actors.cli.bench import (
    CONTENDERS,
    MODES,
    REFERENCE,
    BenchOptions,
    Contender,
    Effort,
    Report,
    figures,
    measure,
    percentile,
)
from flowgentic_actors.cli.main import main
from flowgentic_actors.cli.workloads import WORKLOADS, Operations, Subject, Workload, subject
from flowgentic_actors.errors import ClusterOpenError


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", Effort(1, 0.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results of one short run over local mode, and what it printed."""
    file = tmp_path_factory.mktemp("bench") / "results.json"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bench, "QUICK", Effort(2, 10.0))
        patch.setenv("COLUMNS", "100")
        assert main(["bench", "--quick", "--modes", "local", "--json", str(file)]) == 0
    results: dict[str, Any] = json.loads(file.read_text())
    return results, printed.getvalue()


# ---------------------------------------------------------------------- the whole


def test_there_is_a_figure_for_every_workload_and_contender(
    run: tuple[dict[str, Any], str],
) -> None:
    results, _ = run
    found = Counter((figure["workload"], figure["contender"]) for figure in results["figures"])
    assert found == Counter((w.name, who) for w in WORKLOADS for who in (REFERENCE, "local"))
    samples = {workload.name: workload.samples for workload in WORKLOADS}
    for figure in results["figures"]:
        assert figure["samples"] == 2 * samples[figure["workload"]]
        assert figure["median"] > 0
        better = figure["median"] <= figure["p99"]
        assert better if figure["unit"] == "s" else figure["median"] >= figure["p99"]


def test_ratios_are_relative_to_the_reference_of_the_same_run(
    run: tuple[dict[str, Any], str],
) -> None:
    results, _ = run
    medians = {(f["workload"], f["contender"]): f["median"] for f in results["figures"]}
    for figure in results["figures"]:
        usual = medians[figure["workload"], REFERENCE]
        assert figure["ratio"] == pytest.approx(figure["median"] / usual)
        assert figure["contender"] != REFERENCE or figure["ratio"] == 1


def test_the_json_says_what_the_figures_depend_on(run: tuple[dict[str, Any], str]) -> None:
    results, _ = run
    assert results["quick"] is True
    assert results["rounds"] == 2
    assert results["seconds"] > 0
    assert results["left_out"] == {}
    assert results["durability"] == {REFERENCE: "none", "local": "none, in process"}
    assert set(results["opened"]) == {REFERENCE, "local"}
    about = results["environment"]
    assert about["cpus"] >= 1
    assert about["python"].startswith("3.")
    assert about["load_before"] >= 0
    assert about["load_after"] >= 0
    assert about["versions"]["langgraph"]


def test_the_table_shows_every_workload_and_the_durability(
    run: tuple[dict[str, Any], str],
) -> None:
    _, printed = run
    for workload in WORKLOADS:
        assert workload.name in printed
    assert "none, in process" in printed
    assert "100% measured" in printed


# ---------------------------------------------------------------------- what may go wrong


def test_an_unknown_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown mode 'redis': choose from local, subprocess"):
        BenchOptions(modes=("local", "redis"))
    with pytest.raises(SystemExit) as end:
        main(["bench", "--modes", "lokal"])
    assert end.value.code == 2
    assert "unknown mode 'lokal': choose from local, subprocess, dragon" in capsys.readouterr().err


def test_a_mode_named_twice_runs_once() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = BenchOptions(**vars(parser.parse_args(["--modes", "local,local"])))
    assert options.modes == ("local",)
    assert BenchOptions(**vars(parser.parse_args([]))).modes == MODES


def test_dragon_that_cannot_run_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cannot = CONTENDERS["dragon"]._replace(why_not=lambda: "no dragons here")
    monkeypatch.setitem(CONTENDERS, "dragon", cannot)
    monkeypatch.setattr(bench, "WORKLOADS", WORKLOADS[:1])
    file = tmp_path / "results.json"
    assert bench.run_bench(BenchOptions(quick=True, modes=("dragon",), json=file)) == 0
    assert "Left out: dragon. no dragons here" in capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["left_out"] == {"dragon": "no dragons here"}
    assert {figure["contender"] for figure in results["figures"]} == {REFERENCE}


def test_a_mode_that_fails_to_open_is_an_error_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(contextlib.AbstractAsyncContextManager[Subject]):
        async def __aenter__(self) -> Subject:
            raise ClusterOpenError("out of luck")

        async def __aexit__(self, *error: object) -> None:
            raise AssertionError("it was never open")

    monkeypatch.setitem(CONTENDERS, "subprocess", Contender(Fails, "none"))
    monkeypatch.setattr(bench, "WORKLOADS", WORKLOADS[:1])
    assert bench.run_bench(BenchOptions(quick=True, modes=("local", "subprocess"))) == 1
    said = capsys.readouterr()
    assert "subprocess. it could not be opened: out of luck" in " ".join(said.err.split())
    assert WORKLOADS[0].name in said.out


def test_a_file_that_cannot_be_written_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "results.json"
    assert bench.run_bench(BenchOptions(quick=True, modes=("local",), json=file)) == 2
    assert "Cannot write the results" in capsys.readouterr().err


# ---------------------------------------------------------------------- statistics


def test_percentiles_of_known_samples() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([float(n) for n in range(101)], 0.99) == 99.0
    assert percentile([0.0, 1.0], 0.99) == pytest.approx(0.99)
    assert percentile([5.0, 1.0], 1.0) == 5.0


def test_figures_of_known_samples() -> None:
    times = Workload("wait", _nothing, 3)
    rates = Workload("many", _nothing, 3, per_sample=100)
    samples = {
        ("wait", REFERENCE): [0.002, 0.001, 0.003],
        ("wait", "local"): [0.003, 0.003, 0.003],
        ("many", REFERENCE): [1.0, 2.0, 3.0],
        ("many", "local"): [1.0, 1.0, 1.0],
    }
    found = {(f.workload, f.contender): f for f in figures(samples, [times, rates])}
    wait, many = found["wait", "local"], found["many", "local"]
    assert (wait.unit, wait.median) == ("s", 0.003)
    assert wait.ratio == pytest.approx(1.5)
    assert (many.unit, many.median, many.ratio) == ("1/s", 100.0, 2.0)
    usual = found["many", REFERENCE]
    assert (usual.median, usual.ratio) == (50.0, 1.0)
    assert usual.p99 == pytest.approx(100 / 2.98)  # of rates, the slow end


# ---------------------------------------------------------------------- turns


@asynccontextmanager
async def _nothing(_: Subject) -> AsyncIterator[Operations]:
    yield (asyncio.sleep(0) for _ in iter(int, 1))


@pytest.mark.anyio
async def test_contenders_take_turns_and_none_always_comes_first() -> None:
    turns: list[tuple[str, str]] = []
    who: dict[int, str] = {}

    def contender(name: str) -> Contender:
        @asynccontextmanager
        async def open_it() -> AsyncIterator[Subject]:
            made = subject(InMemorySaver(), InMemoryStore())
            who[id(made.saver)] = name
            yield made

        return Contender(open_it, "none")

    def workload(name: str) -> Workload:
        @asynccontextmanager
        async def turn(memory: Subject) -> AsyncIterator[Operations]:
            turns.append((name, who[id(memory.saver)]))
            async with _nothing(memory) as operations:
                yield operations

        return Workload(name, turn, 2)

    names = (REFERENCE, "b", "c")
    report = Report(quick=True, environment={})
    contenders = {name: contender(name) for name in names}
    await measure(report, contenders, [workload("x"), workload("y")], Effort(2, 10.0))
    rounds = ["in-memory b c", "b c in-memory", "c in-memory b"]  # the first warms up
    assert turns == [(what, name) for order in rounds for what in "xy" for name in order.split()]
    assert report.rounds == 2
    assert {figure.samples for figure in report.figures} == {4}


@pytest.mark.anyio
async def test_no_round_begins_when_the_time_is_up() -> None:
    report = Report(quick=True, environment={})
    contenders = {REFERENCE: CONTENDERS[REFERENCE]}
    await measure(report, contenders, [Workload("x", _nothing, 2)], Effort(1000, 0.0))
    assert report.rounds == 1  # never none


@pytest.mark.anyio
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_a_turn_stores_something_and_leaves_nothing_behind(workload: Workload) -> None:
    saver, store = InMemorySaver(), InMemoryStore()
    async with workload.turn(subject(saver, store)) as operations:
        for operation in islice(operations, 2):
            await operation
        assert saver.blobs or store.search((), limit=1)
    assert not any((saver.storage, saver.writes, saver.blobs))
    assert not store.search((), limit=1)
