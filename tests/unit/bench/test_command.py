"""What a user of the benchmark relies on, on its short form."""

import argparse
import asyncio
import contextlib
import importlib.util
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

from flowgentic_actors.bench import command as bench
from flowgentic_actors.bench import contenders as who_module
from flowgentic_actors.bench import peers
from flowgentic_actors.bench.command import DEFAULT_MODES, MODES, BenchOptions
from flowgentic_actors.bench.contenders import REFERENCE, Contender, Places, contenders
from flowgentic_actors.bench.measuring import Course, Effort, measure, opened
from flowgentic_actors.bench.results import Report, figures, percentile, read
from flowgentic_actors.bench.selection import GROUPS, WORKLOADS, select
from flowgentic_actors.bench.subjects import Raw, Subject, messages, subject
from flowgentic_actors.bench.workloads import Operations, Workload
from flowgentic_actors.cli.main import main
from flowgentic_actors.errors import ClusterOpenError

QUICK = [workload for workload in WORKLOADS if not workload.heavy]
ONE = ("aput 1 KB",)


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", Effort(1, 0.0, 0.0))
    monkeypatch.delenv(who_module.POSTGRES_VARIABLE, raising=False)
    monkeypatch.delenv(who_module.REDIS_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The results of one short run over two modes, what it printed, and its JSON file."""
    file = tmp_path_factory.mktemp("bench") / "results.json"
    printed = io.StringIO()
    wanted = "checkpoints,graphs,store"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bench, "QUICK", Effort(1, 10.0, 0.01))
        patch.setenv("COLUMNS", "120")
        arguments = ["bench", "--quick", "--modes", "local,subprocess", "--workloads", wanted]
        assert main([*arguments, "--json", str(file)]) == 0
    results: dict[str, Any] = json.loads(file.read_text())
    return results, printed.getvalue(), file


# ---------------------------------------------------------------------- the whole


def test_there_is_a_figure_for_every_workload_and_contender(
    run: tuple[dict[str, Any], str, Path],
) -> None:
    results, _, _ = run
    found = Counter((figure["workload"], figure["contender"]) for figure in results["figures"])
    assert found == Counter(
        (w.name, who) for w in QUICK for who in (REFERENCE, "local", "subprocess")
    )
    most = {workload.name: workload.samples for workload in QUICK}
    for figure in results["figures"]:
        assert 1 <= figure["samples"] <= most[figure["workload"]]
        assert figure["median"] > 0
        better = figure["median"] <= figure["p99"]
        assert better if figure["unit"] == "s" else figure["median"] >= figure["p99"]


def test_ratios_are_relative_to_the_reference_of_the_same_run(
    run: tuple[dict[str, Any], str, Path],
) -> None:
    results, _, _ = run
    medians = {(f["workload"], f["contender"]): f["median"] for f in results["figures"]}
    for figure in results["figures"]:
        usual = medians[figure["workload"], REFERENCE]
        assert figure["against"] == REFERENCE
        assert figure["ratio"] == pytest.approx(figure["median"] / usual)
        assert figure["contender"] != REFERENCE or figure["ratio"] == 1


def test_the_json_says_what_the_figures_depend_on(run: tuple[dict[str, Any], str, Path]) -> None:
    results, _, _ = run
    assert results["quick"] is True
    assert results["rounds"] == 1
    assert results["seconds"] > 0
    assert results["left_out"] == {}
    assert results["failed"] == {}
    assert results["durability"][REFERENCE] == "none, in this process"
    assert "survives the death of any process" in results["durability"]["subprocess"]
    assert set(results["opened"]) == {REFERENCE, "local", "subprocess"}
    about = results["environment"]
    assert about["cpus"] >= 1
    assert about["python"].startswith("3.")
    assert about["load_before"] >= 0
    assert about["load_after"] >= 0
    assert about["sync"] > 0
    assert about["versions"]["langgraph"]


def test_the_table_shows_every_workload_and_the_durability(
    run: tuple[dict[str, Any], str, Path],
) -> None:
    _, printed, _ = run
    for workload in QUICK:
        assert workload.name in printed
    assert "survives the death of any process" in printed
    assert "of the turns" in printed


def test_results_are_read_back_and_shown_again(
    run: tuple[dict[str, Any], str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _, file = run
    again, tables = tmp_path / "again.json", tmp_path / "tables.md"
    arguments = ["bench", "--results", str(file), "--json", str(again), "--markdown", str(tables)]
    assert main(arguments) == 0
    assert json.loads(again.read_text()) == results
    assert read(again) == read(file)
    assert "aput 1 KB" in capsys.readouterr().out
    text = tables.read_text()
    for workload in QUICK:
        assert f"| {workload.name} |" in text
    assert "| subprocess | journal in the page cache" in text


def test_what_is_no_report_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"figures": "none"}')
    assert main(["bench", "--results", str(file)]) == 2
    assert "not what `bench --json` writes" in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------- what is selected


def test_groups_names_and_all_select_workloads() -> None:
    assert [w.name for w in select(["store"], quick=False).workloads] == [
        w.name for w in WORKLOADS if w.group == "store"
    ]
    both = select(["AINVOKE", "aput 1"], quick=False).workloads
    assert [w.name for w in both] == ["aput 1 KB", "aput 100 KB", "aput 1 MB", "ainvoke 3 nodes"]
    everything = select(["all"], quick=False)
    assert everything.workloads == WORKLOADS
    assert {w.group for w in WORKLOADS} | set(everything.studies) == set(GROUPS)


def test_a_quick_run_takes_heavy_workloads_only_by_name() -> None:
    assert list(select(["all"], quick=True).workloads) == QUICK
    (heavy,) = select(["256 graphs"], quick=True).workloads
    assert heavy.heavy


def test_a_study_runs_only_when_it_is_selected() -> None:
    assert BenchOptions().selection().studies == ("conversation",)
    assert BenchOptions(workloads=("growth",)).selection() == ((), ("growth",))


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown mode 'mysql': choose from floor, local, local-j"):
        BenchOptions(modes=("local", "mysql"))
    with pytest.raises(SystemExit) as end:
        main(["bench", "--modes", "lokal"])
    assert end.value.code == 2
    assert "unknown mode 'lokal': choose from floor, local" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["bench", "--workloads", "stor,blah"])
    assert end.value.code == 2
    assert "unknown workload 'blah': give a group (checkpoints" in capsys.readouterr().err


def test_a_mode_named_twice_runs_once() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = BenchOptions(**vars(parser.parse_args(["--modes", "local,local"])))
    assert options.modes == ("local",)
    assert BenchOptions(**vars(parser.parse_args([]))).modes == DEFAULT_MODES


def test_the_list_tells_what_can_run_and_why_the_rest_cannot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "--list"]) == 0
    told = capsys.readouterr().out
    for name in (*MODES, *GROUPS, *(workload.name for workload in WORKLOADS)):
        assert name in told
    assert "--postgres DSN" in told
    assert "--redis URL" in told


# ---------------------------------------------------------------------- what may go wrong


def _only(monkeypatch: pytest.MonkeyPatch, **changed: Contender) -> None:
    monkeypatch.setattr(bench, "contenders", lambda places: contenders(places) | changed)


def test_dragon_that_cannot_run_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    known = contenders(Places(tmp_path))
    _only(monkeypatch, dragon=known["dragon"]._replace(why_not=lambda: "no dragons here"))
    file = tmp_path / "results.json"
    options = BenchOptions(quick=True, modes=("dragon",), workloads=ONE, json=file)
    assert bench.run_bench(options) == 0
    assert "Left out: dragon. no dragons here" in capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["left_out"] == {"dragon": "no dragons here"}
    assert {figure["contender"] for figure in results["figures"]} == {REFERENCE}


def test_a_mode_that_fails_to_open_is_an_error_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(contextlib.AbstractAsyncContextManager[Subject | Raw]):
        async def __aenter__(self) -> Subject:
            raise ClusterOpenError("out of luck")

        async def __aexit__(self, *error: object) -> None:
            raise AssertionError("it was never open")

    _only(monkeypatch, subprocess=Contender(Fails))
    options = BenchOptions(quick=True, modes=("local", "subprocess"), workloads=ONE)
    assert bench.run_bench(options) == 1
    said = capsys.readouterr()
    assert "subprocess. it could not be opened: out of luck" in " ".join(said.err.split())
    assert ONE[0] in said.out


@pytest.mark.parametrize(("file", "option"), [("results.json", "json"), ("tables.md", "markdown")])
def test_a_file_that_cannot_be_written_is_said_at_once(
    file: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {option: tmp_path / "missing" / file}
    options = BenchOptions(quick=True, modes=("local",), **place)  # type: ignore[arg-type]
    assert bench.run_bench(options) == 2
    assert "Cannot write the results" in capsys.readouterr().err


class _Forgetful(InMemorySaver):
    """Gives back a state that is one message short."""

    async def aget_tuple(self, config: Any) -> Any:
        found = await super().aget_tuple(config)
        if found is not None and "messages" in found.checkpoint["channel_values"]:
            found.checkpoint["channel_values"]["messages"].pop()
        return found


@pytest.mark.anyio
async def test_a_memory_that_forgets_gets_no_figure() -> None:
    report = Report(quick=True, environment={})
    subjects = {
        REFERENCE: subject(InMemorySaver(), InMemoryStore()),
        "forgetful": subject(_Forgetful(), InMemoryStore()),
    }
    wanted = select(["aget_tuple 1 KB", "aput 1 KB", "ainvoke", "store get"], quick=True)
    await measure(report, subjects, wanted.workloads, Effort(1, 0.0))
    by = {(figure.workload, figure.contender) for figure in report.figures}
    assert by == {(w.name, REFERENCE) for w in wanted.workloads} | {("store get", "forgetful")}
    assert set(report.failed) == {
        f"{name}: forgetful" for name in ("aget_tuple 1 KB", "aput 1 KB", "ainvoke 3 nodes")
    }
    assert "WrongAnswerError" in report.failed["aget_tuple 1 KB: forgetful"]


@pytest.mark.anyio
async def test_a_memory_that_is_gone_does_not_hold_up_the_others() -> None:
    asked = Counter[str]()

    class Gone(InMemorySaver):
        async def aput(self, *args: Any, **kwargs: Any) -> Any:
            asked["aput"] += 1
            raise ConnectionError("it is gone")

    report = Report(quick=True, environment={})
    subjects = {
        REFERENCE: subject(InMemorySaver(), InMemoryStore()),
        "gone": subject(Gone(), InMemoryStore()),
    }
    workloads = select(["checkpoints"], quick=False).workloads
    await measure(report, subjects, workloads, Effort(2, 5.0, 0.0))
    assert asked["aput"] == 3
    assert {figure.contender for figure in report.figures} == {REFERENCE}
    assert "no further part" in report.failed["everything further: gone"]


# ---------------------------------------------------------------------- peers


def test_peers_without_a_server_name_the_option(tmp_path: Path) -> None:
    known = contenders(Places(tmp_path))
    for name in ("postgres", "postgres-async"):
        assert "--postgres DSN" in str(known[name].why_not())
    for name in ("redis", "redis-plain"):
        assert "--redis URL" in str(known[name].why_not())


def test_servers_come_from_options_or_else_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(who_module.POSTGRES_VARIABLE, "dbname=environment")
    monkeypatch.setenv(who_module.REDIS_VARIABLE, "")
    assert Places.found(None, None, None).postgres == "dbname=environment"
    assert Places.found(None, "dbname=option", None).postgres == "dbname=option"
    assert Places.found(None, None, None).redis is None


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for reason in (
        peers.why_no_sqlite(),
        peers.why_no_postgres("dbname=x"),
        peers.why_no_redis("redis://x"),
    ):
        assert "pip install 'flowgentic-actors[bench]'" in str(reason)


@pytest.mark.parametrize(
    ("mode", "option", "module"),
    [("postgres", "postgres", "psycopg"), ("redis", "redis", "redis")],
)
def test_a_server_that_cannot_be_reached_is_left_out_with_the_option(
    mode: str, option: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'flowgentic-actors[bench]'")
    nowhere = {
        "postgres": f"host={tmp_path} dbname=bench",
        "redis": f"unix://{tmp_path}/nothing.sock",
    }
    options = BenchOptions(
        quick=True,
        modes=(mode,),
        workloads=ONE,
        **{option: nowhere[option]},  # type: ignore[arg-type]
    )
    assert bench.run_bench(options) == 1
    said = capsys.readouterr()
    assert f"the server of --{option} cannot be reached" in " ".join(said.err.split())
    assert ONE[0] in said.out


# ---------------------------------------------------------------------- statistics


def test_percentiles_of_known_samples() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([float(n) for n in range(101)], 0.99) == 99.0
    assert percentile([0.0, 1.0], 0.99) == pytest.approx(0.99)
    assert percentile([5.0, 1.0], 1.0) == 5.0


def test_figures_of_known_samples() -> None:
    times = Workload("wait", "x", _nothing, 3)
    rates = Workload("many", "x", _nothing, 3, per_sample=100)
    samples = {
        ("wait", REFERENCE): [0.002, 0.001, 0.003],
        ("wait", "local"): [0.003, 0.003, 0.003],
        ("many", REFERENCE): [1.0, 2.0, 3.0],
        ("many", "local"): [1.0, 1.0, 1.0],
    }
    found = {(f.workload, f.contender): f for f in figures(samples, [times, rates], REFERENCE)}
    wait, many = found["wait", "local"], found["many", "local"]
    assert (wait.unit, wait.median) == ("s", 0.003)
    assert wait.ratio == pytest.approx(1.5)
    assert (many.unit, many.median, many.ratio) == ("1/s", 100.0, 2.0)
    usual = found["many", REFERENCE]
    assert (usual.median, usual.ratio) == (50.0, 1.0)
    assert usual.p99 == pytest.approx(100 / 2.98)  # of rates, the slow end


def test_without_a_reference_there_are_figures_and_no_ratios() -> None:
    (figure,) = figures({("w", "local"): [1.0]}, [Workload("w", "x", _nothing, 1)], REFERENCE)
    assert (figure.median, figure.ratio) == (1.0, None)


# ---------------------------------------------------------------------- turns


@asynccontextmanager
async def _nothing(_: Subject) -> AsyncIterator[Operations]:
    yield (asyncio.sleep(0) for _ in iter(int, 1))


@pytest.mark.anyio
async def test_contenders_take_turns_and_none_always_comes_first() -> None:
    turns: list[tuple[str, str]] = []
    subjects = {n: subject(InMemorySaver(), InMemoryStore()) for n in (REFERENCE, "b", "c")}
    who = {id(memory.saver): name for name, memory in subjects.items()}

    def workload(name: str) -> Workload:
        @asynccontextmanager
        async def turn(memory: Subject) -> AsyncIterator[Operations]:
            turns.append((name, who[id(memory.saver)]))
            async with _nothing(memory) as operations:
                yield operations

        return Workload(name, "x", turn, 2)

    report = Report(quick=True, environment={})
    await measure(report, subjects, [workload("x"), workload("y")], Effort(2, 10.0))
    rounds = ["c b in-memory", "in-memory b c", "c b in-memory"]  # the first warms up
    assert turns == [(what, name) for order in rounds for what in "xy" for name in order.split()]
    assert report.rounds == 2
    assert {figure.samples for figure in report.figures} == {4}


@pytest.mark.anyio
async def test_no_round_begins_when_the_time_is_up(tmp_path: Path) -> None:
    report = Report(quick=True, environment={})
    reference = {REFERENCE: contenders(Places(tmp_path))[REFERENCE]}
    async with opened(report, reference) as subjects:
        await measure(report, subjects, [Workload("x", "x", _nothing, 2)], Effort(1000, 0.0))
    assert report.rounds == 1  # never none


@pytest.mark.anyio
async def test_what_is_slow_gets_fewer_samples_but_some() -> None:
    @asynccontextmanager
    async def slow(_: Subject) -> AsyncIterator[Operations]:
        yield (asyncio.sleep(0.1) for _ in iter(int, 1))

    subjects = {REFERENCE: subject(InMemorySaver(), InMemoryStore())}
    workloads = [Workload("quick", "x", _nothing, 1), Workload("slow", "x", slow, 1)]
    course = Course(Report(quick=True, environment={}), subjects, workloads, Effort(9, 0.2))
    for _ in range(9):
        for workload in workloads:
            await course.turn(workload, REFERENCE, warm=True)
    samples = {what: len(times) for (what, _), times in course.samples.items()}
    assert samples["slow"] == 3
    assert samples["quick"] >= 3


@pytest.mark.anyio
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_a_turn_stores_something_and_leaves_nothing_behind(workload: Workload) -> None:
    saver, store = InMemorySaver(), InMemoryStore()
    async with workload.turn(subject(saver, store)) as operations:
        for operation in islice(operations, 2 if workload.per_sample == 1 else 1):
            await operation
        assert saver.blobs or store.search((), limit=1)
    assert not any((saver.storage, saver.writes, saver.blobs))
    assert not store.search((), limit=1)


@pytest.mark.anyio
@pytest.mark.parametrize("flat", [False, True])
async def test_a_store_may_have_namespaces_of_one_label(*, flat: bool) -> None:
    for workload in select(["store"], quick=True).workloads:
        store = InMemoryStore()
        memory = subject(InMemorySaver(), store, flat=flat)
        async with workload.turn(memory) as operations:
            await next(operations)
            (namespace,) = store.list_namespaces()
            assert (len(namespace) == 1) is flat


def test_the_sizes_are_what_the_names_say() -> None:
    saver = InMemorySaver()
    for count, characters, size in ((4, 100, 1_000), (48, 2_000, 100_000), (48, 20_700, 1_000_000)):
        _, data = saver.serde.dumps_typed(messages(count, characters))
        assert 0.9 * size <= len(data) <= 1.2 * size
