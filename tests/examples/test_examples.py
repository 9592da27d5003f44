"""Every example and every Python block of the documentation runs as printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowgentic_actors.cluster.persistence.memory_lock import MemoryLock
from tests.conftest import NEEDS_DRAGON, NO_DRAGON
from tests.support.processes import run_in_runtime

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]
DRAGON = NEEDS_DRAGON
SLOW_DRAGON = [*DRAGON, pytest.mark.slow]


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


# A shell starts what is in the background with SIGINT ignored; Ctrl-C is for the foreground.
FOREGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from flowgentic_actors.cli.main import main
sys.exit(main())
"""

INTERRUPTIONS = [
    pytest.param(MODES[0].values[0], signal.SIGKILL, 30, id="local-killed", marks=pytest.mark.slow),
    pytest.param(MODES[0].values[0], signal.SIGINT, 90, id="local-ctrl-c"),
    pytest.param(MODES[1].values[0], signal.SIGKILL, 40, id="subprocess-killed"),
    pytest.param(MODES[2].values[0], signal.SIGKILL, 40, id="dragon-killed", marks=SLOW_DRAGON),
]


@pytest.mark.parametrize(("options", "sent", "files"), INTERRUPTIONS)
def test_an_interrupted_demo_is_resumed(
    options: list[str], sent: signal.Signals, files: int, tmp_path: Path
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(120):
        lines = "\n\n".join(f"Note {n} of text {number} is about tea." for n in range(30))
        (texts / f"{number:03}.txt").write_text(lines)
    demo = ["-c", FOREGROUND, "demo", *options, "--persist", str(tmp_path / "p")]
    environ = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    command = [sys.executable, *demo, str(texts)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            read, of, _ = line.partition(" of 120 files")
            if of and int(read) >= files:
                break
        first.send_signal(sent)
        _, told = first.communicate(timeout=60)
    assert first.returncode != 0
    assert ("--resume" in told) == (sent == signal.SIGINT)
    printed = run(*demo, "--resume")
    found = re.search(r"From before: (\d+) notes, .* New: (\d+) notes", printed)
    assert found is not None, printed
    before, new = map(int, found.groups())
    assert before >= files * 30
    assert before + new == 120 * 31  # a summary each
    assert new > 0
    assert f"Nothing was lost: {before + new} notes" in printed


def test_a_demo_that_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        command = [sys.executable, "-m", "flowgentic_actors.cli.main", "demo", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stdout
        return done.stderr

    (tmp_path / "tea.txt").write_text("Ada drinks tea.\n")
    options = ["--mode", "local", "--persist", str(tmp_path / "memory")]
    assert "--resume needs --persist" in refused("--resume")
    assert "nothing to resume" in refused(*options, "--resume")
    run("-m", "flowgentic_actors.cli.main", "demo", str(tmp_path), *options)
    assert "there is a study" in refused(str(tmp_path), *options)
    assert "finished already" in run(
        "-m", "flowgentic_actors.cli.main", "demo", *options, "--resume"
    )
    hold = MemoryLock(tmp_path / "memory")
    hold.take("another", "", lambda: None)
    assert "'another'" in refused(*options, "--resume")
    hold.release()


# The demo runs the same with Dragon.
@pytest.mark.parametrize(
    "options", [*MODES[:2], pytest.param(MODES[2].values[0], id="dragon", marks=SLOW_DRAGON)]
)
def test_example_studies_a_folder_of_ones_own(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "tea.txt").write_text("Ada drinks tea.\n\nTea is brewed with boiling water.\n")
    (tmp_path / "rain.md").write_text("# Weather\n\nIt rained for a week in Brest.\n")
    printed = run(
        "examples/01_research_team.py", str(tmp_path), *options, "--question", "How is tea brewed?"
    )
    assert "tea.txt:3" in printed
    assert "Nothing was lost" in printed


@pytest.mark.slow
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


def test_the_distributed_memory_example_shows_its_four_parts() -> None:
    printed = run("examples/02_distributed_memory.py")
    assert "1. local: ['hello', 'that was message 1', 'again', 'that was message 3']" in printed
    assert f'2. distributed: {NO_DRAGON is None} ["ada\'s tea"]' in printed
    assert "3. auto: {'mode': 'auto', 'is_distributed': False" in printed
    assert "4. integration: ['I am ada', 'that was message 1']" in printed


@pytest.mark.slow
@pytest.mark.dragon
@pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or "")
def test_the_distributed_memory_example_runs_inside_a_dragon_runtime(tmp_path: Path) -> None:
    done = run_in_runtime((ROOT / "examples/02_distributed_memory.py").read_text(), tmp_path)
    assert "2. distributed: True" in done.stdout, done.stdout + done.stderr
    assert "3. auto: {'mode': 'auto', 'is_distributed': True" in done.stdout
    assert "4. integration: ['I am ada', 'that was message 1']" in done.stdout


SERVER = """
import asyncio, importlib.util, sys
sys.path.insert(0, sys.argv[1])

def loaded(name, number):  # as the server does, once for each provider
    spec = importlib.util.spec_from_file_location(f"loaded{number}", f"{sys.argv[1]}/providers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)

from blockbuster import BlockBuster
from agent import builder

async def main():
    checkpointer, store = loaded("checkpointer", 1), loaded("store", 2)
    BlockBuster().activate()
    async with checkpointer() as saver, store() as items:
        graph = builder.compile(checkpointer=saver, store=items)
        config = {"configurable": {"thread_id": "t"}}
        for text in ("hello", "x" * 20_000_000, "again"):  # more than a segment of the journal
            state = await graph.ainvoke({"said": [text]}, config)
        assert state["said"][-1] == "3 notes"
        assert saver._client is items._client

asyncio.run(main())
"""


def test_a_langgraph_server_has_one_memory_and_no_blocking_call(tmp_path: Path) -> None:
    environ = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(ROOT / "examples" / "langgraph_server")],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["agent-memory"]
