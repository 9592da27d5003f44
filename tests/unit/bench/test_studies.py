"""The benchmark's studies, on tiny sizes."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from flowgentic_actors.bench import command as bench
from flowgentic_actors.bench import conversation, footprint, growth, plots, raw_ddict
from flowgentic_actors.bench.command import BenchOptions
from flowgentic_actors.bench.contenders import REFERENCE, Contender, Places, contenders
from flowgentic_actors.bench.conversation import Length, converse
from flowgentic_actors.bench.footprint import Extent, weigh
from flowgentic_actors.bench.growth import Sizes, grow
from flowgentic_actors.bench.markdown import markdown
from flowgentic_actors.bench.peers import PeerError
from flowgentic_actors.bench.results import Figure, Report
from flowgentic_actors.bench.subjects import Subject, Written, subject
from flowgentic_actors.dragon import host_launcher

pytestmark = pytest.mark.anyio

ENVIRONMENT: dict[str, Any] = {
    "cpus": 2,
    "load_before": 0.0,
    "load_after": 0.0,
    "python": "3",
    "versions": {"langgraph": "1"},
}


def _report() -> Report:
    return Report(quick=True, environment=ENVIRONMENT)


def _show(_done: float, _what: str) -> None:
    pass


def _by(report: Report) -> dict[tuple[str, str], Figure]:
    return {(figure.workload, figure.contender): figure for figure in report.figures}


# ---------------------------------------------------------------------- conversation


async def test_a_conversation_is_timed_at_both_ends_and_forgotten() -> None:
    saver = InMemorySaver()
    report = _report()
    subjects = {REFERENCE: subject(saver, InMemoryStore())}
    await converse(report, subjects, Length(6, 2, 1, 60.0), _show)
    assert set(_by(report)) == {
        (f"a turn ({kind}), turns {edge}", REFERENCE)
        for kind in ("list", "delta")
        for edge in ("1 to 2", "5 to 6")
    }
    assert report.failed == {}
    assert {figure.samples for figure in report.figures} == {2}
    assert {figure.ratio for figure in report.figures} == {1.0}
    assert not any((saver.storage, saver.writes, saver.blobs))


async def test_bytes_of_a_turn_are_those_of_this_contender() -> None:
    written = {"a": 0, "b": 0}

    class Counting(InMemorySaver):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def aput(self, *args: Any, **kwargs: Any) -> Any:
            written["a" if self.name == "a" else "b"] += 100
            return await super().aput(*args, **kwargs)

    async def total(names: str) -> int:
        return sum(written[name] for name in names)

    shared = {  # b's probe also counts what a writes, as that of a shared server does
        "a": subject(Counting("a"), InMemoryStore(), written=Written(partial(total, "a"), 0, "x")),
        "b": subject(Counting("b"), InMemoryStore(), written=Written(partial(total, "ab"), 0, "x")),
    }
    report = _report()
    await converse(report, shared, Length(4, 2, 2, 60.0), _show)
    told = {cell: f for cell, f in _by(report).items() if cell[0].startswith("written")}
    assert len(told) == 8
    assert {figure.median for figure in told.values()} == {500.0}  # five checkpoints a turn
    assert {figure.unit for figure in told.values()} == {"B"}
    assert "a, b: bytes x" in report.notes[0]


async def test_a_conversation_that_takes_too_long_is_given_up_and_said() -> None:
    saver = InMemorySaver()
    report = _report()
    subjects = {REFERENCE: subject(saver, InMemoryStore())}
    await converse(report, subjects, Length(1000, 2, 1, 0.0), _show)
    assert report.figures == []
    assert "given up: 1 turns" in report.failed[f"conversation (list): {REFERENCE}"]
    assert not saver.storage


# ---------------------------------------------------------------------- growth


SIZES = Sizes((100, 300), (10, 20), 2, 60.0)


async def test_growth_is_relative_to_the_smallest_size(tmp_path: Path) -> None:
    report = _report()
    known = contenders(Places(tmp_path))
    await grow(report, {name: known[name] for name in (REFERENCE, "local")}, SIZES, _show)
    found = {(f.workload, f.contender, f.size): f for f in report.figures}
    items = ("store get", "store put", "store search 10 of 100")
    assert set(found) == {
        (what, who, size)
        for who in (REFERENCE, "local")
        for names, sizes in ((items, SIZES.items), (("aget_tuple", "aput"), SIZES.threads))
        for what in names
        for size in sizes
    }
    assert report.failed == {}
    for (what, who, size), figure in found.items():
        smallest = min(s for w, c, s in found if (w, c) == (what, who) if s is not None)
        assert figure.against == f"{smallest:,}"
        assert figure.ratio == pytest.approx(figure.median / found[what, who, smallest].median)
        assert figure.samples == 20
        assert (figure.ratio == 1.0) or size != smallest
    tables = markdown(report)
    assert "| | memory | 10 | 20 | 100 | 300 |".replace("| |", "|  |") in tables


async def test_what_cannot_be_filled_in_time_is_noted() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[Subject]:
        class Slow(InMemoryStore):
            async def abatch(self, ops: Any) -> Any:
                await asyncio.sleep(0.1 * (len(ops) > 100))
                return await super().abatch(ops)

        yield subject(InMemorySaver(), Slow())

    report = _report()
    await grow(report, {"slow": Contender(slow)}, Sizes((10, 3_000), (), 1, 0.2), _show)
    assert {figure.size for figure in report.figures} == {10}
    assert report.notes == [
        "growth of slow: 3,000 items and more were left out, as storing them took longer than 0.2 s"
    ]


async def test_an_item_that_is_gone_is_no_figure() -> None:
    @asynccontextmanager
    async def leaky() -> AsyncIterator[Subject]:
        class Leaky(InMemoryStore):
            async def aget(self, *_: Any, **__: Any) -> None:
                return None

        yield subject(InMemorySaver(), Leaky())

    report = _report()
    await grow(report, {"leaky": Contender(leaky)}, Sizes((10,), (), 1, 60.0), _show)
    assert report.figures == []
    assert "store get with 10 stored is None" in report.failed["growth: leaky"]


# ---------------------------------------------------------------------- footprint


async def test_the_footprint_is_taken_in_a_process_of_its_own(tmp_path: Path) -> None:
    report = _report()
    groups = (footprint.MEMORY, footprint.IDLE)
    extent = Extent(20_000, 0.2, 0.1)  # much more than what a heap has to spare after its start
    await weigh(report, ["local"], groups, extent, scratch=tmp_path, show=_show)
    assert report.failed == {}
    found = _by(report)
    assert 0.9 < found["held a byte stored", "local"].median < 3
    assert found["resident with a tenth", "local"].median > 1 << 20
    assert 0 <= found["processor, who holds it", "local"].median <= 100
    assert ("journal a byte stored", "local") not in found


async def test_a_child_that_fails_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "_CHILD", "json.nothing")
    report = _report()
    extent = Extent(1, 0.1, 0.1)
    await weigh(report, ["local"], (footprint.IDLE,), extent, scratch=tmp_path, show=_show)
    assert "No module named 'json.nothing'" in report.failed["memory and idle time: local"]


# ---------------------------------------------------------------------- plots


def _figures() -> list[Figure]:
    def figure(**changed: Any) -> Figure:
        usual: dict[str, Any] = {
            "group": "store",
            "workload": "store get",
            "contender": "local",
            "unit": "s",
            "median": 1e-5,
            "p99": 2e-5,
            "ratio": 2.0,
            "against": REFERENCE,
            "samples": 20,
        }
        return Figure(**(usual | changed))

    growing = [
        figure(group=growth.GROUP, median=1e-5 * n, ratio=n, against="10", size=10**n)
        for n in (1, 2, 3)
    ]
    return [
        figure(),
        figure(contender=REFERENCE, ratio=1.0),
        figure(workload="many", unit="1/s", median=5e4, p99=4e4, ratio=0.5),
        *growing,
    ]


def test_plots_are_small_files_that_say_what_they_show(tmp_path: Path) -> None:
    if reason := plots.why_no_plots():
        pytest.skip(reason)
    report = Report(quick=True, environment=ENVIRONMENT, figures=_figures())
    drawn = plots.draw(report, tmp_path / "images")
    assert [file.name for file in drawn] == [
        "ratios.svg",
        "growth-ratios.svg",
        "growth-times.svg",
    ]
    for file in drawn:
        text = file.read_text()
        assert len(text) < 200_000
        assert "store get" in text
        assert "local" in text
    again = plots.draw(report, tmp_path / "again")
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in drawn]


def test_without_matplotlib_plots_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="--plots needs matplotlib: pip install"):
        BenchOptions(plots=Path("images"))


# ---------------------------------------------------------------------- what may hang


async def test_a_dragon_that_never_comes_up_is_killed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "dragon"
    launcher.write_text("#!/bin/sh\necho dragons sleep\nsleep 600\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(host_launcher, "dragon_launcher", lambda: str(launcher))
    monkeypatch.setattr(raw_ddict, "OPEN_TIMEOUT", 0.3)
    monkeypatch.setattr(raw_ddict, "_END_TIMEOUT", 0.1)
    with pytest.raises(PeerError, match=r"did not come up within 0.3 s; .* dragons sleep"):
        async with raw_ddict.opened(tmp_path):
            raise AssertionError("it never opens")


async def test_a_dragon_that_ends_at_once_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_launcher, "dragon_launcher", lambda: "/bin/false")
    with pytest.raises(PeerError, match="ended before it came up"):
        async with raw_ddict.opened(tmp_path):
            raise AssertionError("it never opens")


def test_the_whole_of_a_study_runs_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conversation, "QUICK", Length(4, 2, 1, 60.0))
    monkeypatch.setattr(growth, "QUICK", SIZES)
    options = BenchOptions(
        quick=True,
        modes=("local-journal",),
        workloads=("conversation", "growth"),
        scratch=tmp_path,
        markdown=tmp_path / "tables.md",
    )
    assert bench.run_bench(options) == 0
    assert "local-journal: bytes in its journal" in capsys.readouterr().out
    tables = (tmp_path / "tables.md").read_text()
    assert "### Conversation" in tables
    assert "### Growth" in tables
    assert [file.name for file in tmp_path.iterdir()] == ["tables.md"]
