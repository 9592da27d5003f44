"""Every example and every Python block of the documentation runs as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_DRAGON

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]
DRAGON = [pytest.mark.dragon, pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or "")]


def run(*command: str) -> str:
    """Run a program as a user would, warnings being errors; return what it printed."""
    environ = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", BLOCKS)
def test_documentation_runs_as_printed(block: str) -> None:
    run("-c", block)


MODES = [
    pytest.param(["--mode", "local"], id="local"),
    pytest.param(["--mode", "distributed", "--spawner", "subprocess"], id="subprocess"),
    pytest.param(["--mode", "distributed"], id="dragon", marks=DRAGON),
]


@pytest.mark.parametrize("options", MODES)
def test_demo_answers_and_loses_nothing(options: list[str]) -> None:
    printed = run("-m", "flowgentic_actors.cli.main", "demo", *options)
    assert "asyncio/tasks.py:" in printed
    assert "Nothing was lost" in printed
    assert ("with SIGKILL" in printed) == ("distributed" in options)


@pytest.mark.parametrize("options", MODES)
def test_example_studies_a_folder_of_ones_own(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "tea.txt").write_text("Ada drinks tea.\n\nTea is brewed with boiling water.\n")
    (tmp_path / "rain.md").write_text("# Weather\n\nIt rained for a week in Brest.\n")
    printed = run(
        "examples/01_research_team.py", str(tmp_path), *options, "--question", "How is tea brewed?"
    )
    assert "tea.txt:3" in printed
    assert "Nothing was lost" in printed


@pytest.mark.dragon
@pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or "")
def test_demo_runs_inside_a_dragon_runtime(tmp_path: Path) -> None:
    launcher = Path(sys.executable).parent / "dragon"
    done = subprocess.run(
        [launcher, "-s", ROOT / "examples/01_research_team.py", "--mode", "distributed"],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(
            os.environ,
            PYTHONPATH=str(ROOT),
            PATH=f"{launcher.parent}{os.pathsep}{os.environ['PATH']}",
        ),
        cwd=tmp_path,
        check=False,
    )
    # the launcher exits with 0 whatever the program did: what it printed decides
    assert "Nothing was lost" in done.stdout, done.stdout + done.stderr
    assert "with SIGKILL" in done.stdout
