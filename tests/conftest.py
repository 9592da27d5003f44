"""What every test shares: the modes, clusters to use, and a watch on what is left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from blockbuster import BlockBuster

from flowgentic_actors import MemoryCluster
from flowgentic_actors.environment import why_no_dragon

MODES = ["inline", "subprocess", "dragon"]
"""Every way to run the memory."""

SETTINGS: dict[str, dict[str, object]] = {
    "inline": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
    "dragon": {"mode": "distributed", "spawner": "dragon", "fallback_to_local": False},
}

NO_DRAGON = why_no_dragon()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NO_DRAGON is not None:
        terminalreporter.section("DRAGON TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.write_line(NO_DRAGON)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---------------------------------------------------------------------- scratch and leftovers


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[Path]:
    """A private, short scratch folder for the whole run: nothing of it may outlive the run."""
    folder = Path(tempfile.mkdtemp(prefix="fga-", dir="/tmp"))
    old = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    yield folder
    tempfile.tempdir = None
    if old is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = old
    shutil.rmtree(folder)


def our_processes() -> dict[int, str]:
    """Hosts, actors, Dragon services of this user that are alive, by pid."""
    found: dict[int, str] = {}
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        ours = "flowgentic_actors." in command or "dragon" in command
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            if process.pid != os.getpid() and "pytest" not in command:
                found[process.pid] = command
    return found


def leftovers(scratch: Path) -> dict[str, str]:
    """Everything of ours that exists now: processes, scratch files, shared memory."""
    found = {f"process {pid}": command for pid, command in our_processes().items()}
    root = scratch / f"flowgentic-{os.geteuid()}"
    if root.exists():
        found |= {f"folder {p.name}": str(p) for p in root.iterdir() if p.name != ".lock"}
    shm = Path("/dev/shm")
    if shm.exists():
        found |= {f"shared memory {p.name}": str(p) for p in shm.iterdir()}
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, scratch: Path) -> Iterator[None]:
    """After each test: no process, socket, scratch file or shared memory that was not there."""
    for name in request.fixturenames:
        if name in {"shared_clusters", "memory"}:
            request.getfixturevalue("shared_clusters")  # opened before the snapshot
    if "mode" in request.fixturenames and "memory" in request.fixturenames:
        request.getfixturevalue("shared_clusters").get(request.getfixturevalue("mode"))
    before = set(leftovers(scratch))
    yield
    deadline = time.monotonic() + 15
    while extra := {k: v for k, v in leftovers(scratch).items() if k not in before}:
        # a shared cluster's restarted actor is a new process of a known cluster
        extra = {k: v for k, v in extra.items() if not _of_a_shared_cluster(v)}
        if not extra or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert not extra, f"left behind: {extra}"


def _of_a_shared_cluster(command: str) -> bool:
    return any(folder in command for folder in SharedClusters.folders)


# ---------------------------------------------------------------------- the event loop is free


@pytest.fixture(autouse=True)
def never_block_the_loop() -> Iterator[None]:
    """Fail a test in which our code blocks the event loop."""
    guard = BlockBuster("flowgentic_actors")
    for function in guard.functions.values():
        # Sync calls block the thread that makes them, be it a loop's own: that is their contract.
        function.can_block_in("flowgentic_actors/wire/blocking.py", {"request", "close"})
        function.can_block_in("flowgentic_actors/cluster/client.py", {"ask_sync", "status"})
        # The actor's append to its node-local journal is direct: 0.5 us, 100 us through a thread.
        function.can_block_in("flowgentic_actors/storage/journal.py", {"append"})
    guard.activate()
    yield
    guard.deactivate()


# ---------------------------------------------------------------------- clusters


class SharedClusters:
    """One cluster a mode for the whole run, opened when a test first asks for it."""

    folders: set[str] = set()

    def __init__(self) -> None:
        self._open: dict[str, MemoryCluster] = {}

    def get(self, mode: str) -> MemoryCluster:
        if mode not in self._open:
            memory = MemoryCluster(**SETTINGS[mode])
            asyncio.run(memory.__aenter__())
            self._open[mode] = memory
            if memory.is_distributed:
                self.folders.add(str(Path(memory.handle.descriptor).parent))
        return self._open[mode]

    def close(self) -> None:
        for memory in self._open.values():
            asyncio.run(memory.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def shared_clusters(scratch: Path) -> Iterator[SharedClusters]:
    clusters = SharedClusters()
    yield clusters
    clusters.close()


def _mode_params() -> list[object]:
    return [
        pytest.param(
            mode,
            marks=[
                pytest.mark.dragon,
                pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or ""),
            ]
            if mode == "dragon"
            else [],
        )
        for mode in MODES
    ]


@pytest.fixture(params=_mode_params())
def mode(request: pytest.FixtureRequest) -> str:
    """Runs a test in every mode."""
    return str(request.param)


@pytest.fixture
def memory(mode: str, shared_clusters: SharedClusters) -> MemoryCluster:
    """The shared cluster of the mode: use thread ids and namespaces of your own."""
    return shared_clusters.get(mode)


@pytest.fixture
async def fresh_memory(mode: str) -> AsyncIterator[MemoryCluster]:
    """A cluster of the mode for this test alone."""
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        yield memory


def pytest_report_header() -> str:
    version = "not installed"
    if importlib.util.find_spec("dragon"):
        from importlib.metadata import version as of

        version = of("dragonhpc")
    return f"dragonhpc {version}, python {sys.version.split()[0]}"
