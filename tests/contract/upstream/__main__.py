"""Run LangGraph's own tests with our memory, and tell what is different from theirs.

    python -m tests.contract.upstream FOLDER

The tests come from the source distributions of the versions that are installed here, and run in a
virtual environment of their own. Both are made in FOLDER and found there again by the next run. A
suite runs once with LangGraph's in-memory saver, store and cache, as the reference, and once with
each of our modes: `upstream_plugin` puts ours into their places. What passes with theirs and not
with ours is listed with the reason: a test that failed, one that failed and passed when repeated
(unsteady), or one that looks inside LangGraph's own classes (skipped). The exit code is 1 if a test
failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import venv
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table

from tests.contract.upstream.upstream_plugin import MODES, REFERENCE

HERE = Path(__file__).parent
PROJECT = HERE.parents[2]
SUITES = ("langgraph", "langgraph-checkpoint", "langgraph-prebuilt")
PINNED = (*SUITES, "langchain-core")

USES_MEMORY = re.compile(r"InMemory(Saver|Store|Cache)|MemorySaver|a?sync_(checkpointer|store)\b")


class Result(NamedTuple):
    """How a test went, and why."""

    outcome: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome in ("passed", "unsteady")


class Difference(NamedTuple):
    """A test that passes with LangGraph's memory and not with ours."""

    mode: str
    test: str
    result: Result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to keep sources, environment and logs")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("-k", dest="select", default="", help="only these tests, as pytest's -k")
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)

    python = environment(folder)
    modes = (REFERENCE, *args.modes)
    table = Table("tests", *(f"{mode}\npassed/failed/skipped" for mode in modes))
    different: list[Difference] = []
    for suite in args.suites:
        root = sources(suite, folder)
        results = {mode: run(python, root, mode, args.select) for mode in modes}
        add_rows(table, suite, results)
        different += differences(suite, results)
    Console(width=200).print(table)
    print_differences(different)
    return int(any(each.result.outcome in ("failed", "missing") for each in different))


def environment(folder: Path) -> Path:
    """Python of a virtual environment with this project and what LangGraph's tests import."""
    home = folder / "venv"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    pins = [f"{name}=={version(name)}" for name in PINNED]
    wanted = [str(PROJECT), "-r", str(HERE / "requirements.txt"), *pins]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    return python


def sources(name: str, folder: Path) -> Path:
    """The folder with a package's tests, and without the package: the installed one is tested."""
    root = folder / f"{name.replace('-', '_')}-{version(name)}"
    if not root.exists():
        # Only the package itself: what builds it may come as wheels.
        wanted = ["--no-deps", "--no-binary", name, "-d", str(folder), f"{name}=={version(name)}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted], check=True)
        with tarfile.open(root.with_name(root.name + ".tar.gz")) as archive:
            parts = (f"{root.name}/tests/", f"{root.name}/pyproject.toml")
            members = [member for member in archive if member.name.startswith(parts)]
            archive.extractall(folder, members, filter="data")
    return root


def run(python: Path, root: Path, mode: str, select: str) -> dict[str, Result]:
    """Run the tests of a suite that have to do with memory: results by the tests' names.

    Some of them measure time and fail on a busy machine: what failed is repeated once.
    """
    results = run_pytest(python, root, mode, mode, "-k", select)
    if any(result.outcome == "failed" for result in results.values()):
        again = run_pytest(python, root, mode, f"{mode}-again", "-k", select, "--last-failed")
        for name, result in again.items():
            if result.outcome == "passed":
                results[name] = Result("unsteady", results[name].reason)
    return results


def run_pytest(python: Path, root: Path, mode: str, name: str, *options: str) -> dict[str, Result]:
    """Run it once; `name` is that of the report and the log."""
    files = sorted(root.glob("tests/test_*.py"))
    files = [file for file in files if USES_MEMORY.search(file.read_text())]
    report = root / f"{name}.xml"
    command: list[Any] = [python, "-m", "pytest", "-p", "upstream_plugin", f"--memory={mode}", "-q"]
    command += ["--tb=short", "--timeout=120", f"--junitxml={report}", "-o", f"cache_dir={mode}"]
    with (root / f"{name}.log").open("w") as log:
        print(f"{root.name} with {mode}: see {log.name}", flush=True)
        settings = {**os.environ, "PYTHONPATH": str(HERE), "NO_DOCKER": "false"}
        command += [*options, *files]
        ended = subprocess.run(command, cwd=root, env=settings, stdout=log, stderr=log, check=False)
    if ended.returncode not in (0, 1, 5):  # all passed, some failed, none was selected
        raise SystemExit(f"pytest did not get to its end: {log.name}")
    return results_of(report)


def results_of(report: Path) -> dict[str, Result]:
    """The worst result of each test: its teardown may be reported by itself."""
    results: dict[str, Result] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found = [Result(child.tag, child.get("message", "").partition("\n")[0]) for child in case]
        for result in found:
            if result.outcome in ("failure", "error"):
                results[name] = Result("failed", result.reason)
            elif result.outcome == "skipped":
                results.setdefault(name, result)
        results.setdefault(name, Result("passed"))
    return results


def add_rows(table: Table, suite: str, results: dict[str, dict[str, Result]]) -> None:
    """Add a row for each of a suite's files, and one for all of them."""
    counts = {mode: Counter[tuple[str, str]]() for mode in results}
    for mode, found in results.items():
        for name, result in found.items():
            file = name.split("::")[0].split(".")[1]
            outcome = "passed" if result.passed else result.outcome
            counts[mode].update([(file, outcome), ("", outcome)])
    for file in sorted({file for count in counts.values() for file, _ in count}):
        cells = [
            "/".join(str(count[file, outcome]) for outcome in ("passed", "failed", "skipped"))
            for count in counts.values()
        ]
        table.add_row(f"  {file}" if file else suite, *cells, style=None if file else "bold")


def differences(suite: str, results: dict[str, dict[str, Result]]) -> list[Difference]:
    """What passes with LangGraph's memory and not with ours."""
    passed = [name for name, result in results[REFERENCE].items() if result.passed]
    return [
        Difference(mode, f"{suite}: {name}", result)
        for mode, found in results.items()
        for name in passed
        if (result := found.get(name, Result("missing"))).outcome != "passed"
    ]


def print_differences(found: list[Difference]) -> None:
    """Print the tests in question under their reasons."""
    tests: dict[Result, dict[str, list[str]]] = {}
    for mode, test, result in found:
        tests.setdefault(result, {}).setdefault(test, []).append(mode)
    for result, modes in sorted(tests.items()):
        print(f"{result.outcome}: {result.reason}")
        for test in modes:
            print(f"    {test} ({', '.join(modes[test])})")


if __name__ == "__main__":
    sys.exit(main())
