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
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from _pytest.mark import ParameterSet
from blockbuster import BlockBuster

from flowgentic_actors import MemoryCluster
from flowgentic_actors.environment import why_no_dragon

pytest.register_assert_rewrite("tests.support")

from tests.support.wired import wire  # noqa: E402 - rewritten as it is imported

MODES = ["inline", "subprocess", "dragon"]
"""Every way to run the memory."""

SETTINGS: dict[str, dict[str, Any]] = {
    "inline": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
    "dragon": {"mode": "distributed", "spawner": "dragon", "fallback_to_local": False},
    "several-actors": {"mode": "distributed", "spawner": "subprocess", "actors_per_node": 3},
    "nodes": {
        "mode": "distributed",
        "spawner": "subprocess",
        "n_nodes": 2,
        "replicas": 2,
        "ack": "replica",
    },
    "dragon-nodes": {  # within a runtime of several nodes
        "mode": "distributed",
        "spawner": "dragon",
        "fallback_to_local": False,
        "replicas": 2,
        "ack": "replica",
    },
}

ONLY_MODE = os.environ.get("FLOWGENTIC_TEST_MODE")
"""Run what runs over all modes in this one instead."""


def settings_of(mode: str) -> dict[str, Any]:
    """The settings of a mode; a local cluster's journal gets a folder of its own."""
    if mode == "inline-journal":
        return {"mode": "local", "persist_path": Path(tempfile.mkdtemp()) / "memory"}
    return SETTINGS["inline" if mode == "inline-wire" else mode]


NO_DRAGON = why_no_dragon()

NEEDS_DRAGON = (
    pytest.mark.dragon,
    pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or ""),
)
"""Marks of a test that starts a Dragon runtime."""

_SHM = Path("/dev/shm")

_TRACKER = "from multiprocessing.resource_tracker import main;main"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NO_DRAGON is not None:
        terminalreporter.section("DRAGON TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.write_line(NO_DRAGON)


def pytest_report_header() -> str:
    dragon = version("dragonhpc") if importlib.util.find_spec("dragon") else "not installed"
    return f"dragonhpc {dragon}, python {sys.version.split()[0]}"


LOOPS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
"""The event loops that a program may have, as parameters of a fixture `anyio_backend`."""

USE_UVLOOP = os.environ.get("FLOWGENTIC_TEST_LOOP") == "uvloop"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of awaited tests: asyncio's, or uvloop, as web servers bring it."""
    return "asyncio", {"use_uvloop": USE_UVLOOP}


# ---------------------------------------------------------------------- scratch and leftovers


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[Path]:
    """A private, short scratch folder for the whole run: nothing of it may outlive the run."""
    folder = Path(tempfile.mkdtemp(prefix="fga-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        if sys.dont_write_bytecode:
            # Containers often say so. Hundreds of programs would compile all that they import.
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(folder / "bytecode"))
        yield folder
    shutil.rmtree(folder)


def our_processes(pids: set[int], scratch: Path) -> dict[int, str]:
    """Those of these processes that are alive and that this run started: command lines by pid.

    Hosts, actors and Dragon's services are known by the scratch folder in their environment,
    wherever in the process tree they end up; forks of this process are its descendants.
    """
    found: dict[int, str] = {}
    descendants = {child.pid for child in psutil.Process().children(recursive=True)}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            ours = pid in descendants or process.environ().get("TMPDIR") == str(scratch)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                command = " ".join(process.cmdline())
                if _TRACKER not in command:  # multiprocessing's own: it ends with this process
                    found[pid] = command
        except psutil.Error:
            continue  # it is gone, or another user's
    return found


def _files(scratch: Path) -> dict[str, str]:
    """Paths by name: the scratch folders of this run, and the shared memory of everybody."""
    found: dict[str, str] = {}
    root = scratch / f"flowgentic-{os.geteuid()}"
    if root.exists():
        found |= {f"folder {p.name}": str(p) for p in root.iterdir() if p.name != ".lock"}
    if _SHM.exists():
        found |= {f"shared memory {p.name}": str(p) for p in _SHM.iterdir()}
    return found


class Snapshot:
    """Everything that exists now; what is not in it was made later.

    Every process of the machine is in it, unexamined: that is one listing. Only new ones are looked
    at, and most tests make none.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._pids = set(psutil.pids())
        self._files = set(_files(scratch))

    def leftovers(self) -> dict[str, str]:
        """What of ours was made since and is there now: processes, scratch files, shared memory."""
        found = {k: v for k, v in _files(self._scratch).items() if k not in self._files}
        if new := set(psutil.pids()) - self._pids:
            processes = our_processes(new, self._scratch)
            found |= {f"process {pid}": command for pid, command in processes.items()}
        if any(what.startswith(f"{_SHM}/") for what in found.values()):
            mapped = _mapped()  # whether a process of ours is left is told by the process
            found = {name: what for name, what in found.items() if what not in mapped}
        return {k: v for k, v in found.items() if _is_left(k, v)}


def _mapped() -> set[str]:
    """The shared memory that live processes have mapped, be they of another run or worker."""
    found: set[str] = set()
    for pid in psutil.pids():
        try:
            # Not psutil's, which has the kernel count the pages of gigabytes.
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue  # it is gone, or another user's
        found |= {line[line.index("/") :] for line in maps.splitlines() if f" {_SHM}/" in line}
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, scratch: Path) -> Iterator[None]:
    """After each test: no process, socket, scratch file or shared memory that was not there."""
    if "memory" in request.fixturenames:  # a shared cluster is opened before the snapshot
        request.getfixturevalue("shared_clusters").get(request.getfixturevalue("mode"))
    before = Snapshot(scratch)
    yield
    _expect_only(before, scratch)


def _expect_only(before: Snapshot, scratch: Path) -> None:
    """Fail when more than what was there before is still there after a while."""
    deadline = time.monotonic() + 45  # a Dragon runtime that was left while it came up takes some
    while extra := before.leftovers():
        if time.monotonic() > deadline:
            logs = "".join(log.read_text() for log in scratch.glob("flowgentic-*/*/*.log"))
            pytest.fail(f"left behind: {extra}\nThe logs there:\n{logs[-5000:]}")
        time.sleep(0.05)


def _is_left(name: str, what: str) -> bool:
    if what.startswith(f"{_SHM}/"):
        return True
    # A shared cluster's restarted actor is a new process of a known cluster, and so is a DDict's,
    # which is made with the first values that are worth it.
    if any(folder in what for folder in SharedClusters.folders):
        return False
    return not _is_of_a_shared_runtime(name)


def _is_of_a_shared_runtime(name: str) -> bool:
    kind, _, pid = name.partition(" ")
    if kind != "process":
        return False
    try:
        return os.getpgid(int(pid)) in SharedClusters.groups
    except ProcessLookupError:
        return False


# ---------------------------------------------------------------------- the event loop is free


@pytest.fixture(scope="session")
def blocking_guard() -> BlockBuster:
    """What finds calls in our code that block an event loop, except where they are meant."""
    guard = BlockBuster("flowgentic_actors")
    for function in guard.functions.values():
        # Sync calls block the thread that makes them, be it a loop's own: that is their contract.
        function.can_block_in(
            "flowgentic_actors/wire/blocking_connection.py", {"begin", "finish", "close"}
        )
        for client in ("remote", "inline"):
            blocking = {"ask_sync", "ask_each_sync"}
            function.can_block_in(f"flowgentic_actors/cluster/client/{client}.py", blocking)
        function.can_block_in("flowgentic_actors/actors/daemon_threads.py", {"run_blocking"})
        # An event loop removes the file of a socket that it replaces; asyncio's is excepted anyway.
        function.can_block_in("flowgentic_actors/wire/server.py", {"listen"})
        # The append to a node-local journal is direct: 0.5 us, 100 us through a thread.
        function.can_block_in("flowgentic_actors/storage/journal.py", {"append"})
    return guard


@pytest.fixture(autouse=True)
def never_block_the_loop(blocking_guard: BlockBuster) -> Iterator[None]:
    """Fail a test in which our code blocks the event loop."""
    blocking_guard.activate()
    yield
    blocking_guard.deactivate()


# ---------------------------------------------------------------------- clusters


class SharedClusters:
    """One cluster a mode for the whole run, opened when a test first asks for it."""

    folders: ClassVar[set[str]] = set()
    groups: ClassVar[set[int]] = set()  # process groups of their hosts: a whole Dragon runtime

    def __init__(self) -> None:
        self._open: dict[str, MemoryCluster] = {}

    def get(self, mode: str) -> MemoryCluster:
        if mode not in self._open:
            memory = MemoryCluster(**settings_of(mode))
            asyncio.run(memory.__aenter__())
            if mode == "inline-wire":
                wire(memory)
            self._open[mode] = memory
            if memory.is_distributed:
                self.folders.add(str(Path(memory.handle.descriptor).parent))
                self.groups.add(os.getpgid(asyncio.run(memory.status()).host_pid))
        return self._open[mode]

    def close(self) -> None:
        for memory in self._open.values():
            asyncio.run(memory.__aexit__(None, None, None))
        self.folders.clear()
        self.groups.clear()


@contextmanager
def shared_by_module(**settings: Any) -> Iterator[MemoryCluster]:
    """A cluster for a fixture of a module: its processes are no leftovers of single tests."""
    with MemoryCluster(**settings) as memory:
        folder = str(Path(memory.handle.descriptor).parent)
        SharedClusters.folders.add(folder)
        yield memory
    SharedClusters.folders.discard(folder)


@pytest.fixture(scope="session")
def shared_clusters(scratch: Path) -> Iterator[SharedClusters]:
    before = Snapshot(scratch)
    clusters = SharedClusters()
    yield clusters
    clusters.close()
    _expect_only(before, scratch)


def mode_params(*modes: str, slow: tuple[str, ...] = ()) -> list[ParameterSet]:
    """Parameters of a fixture or test that needs Dragon in some of them.

    Opening a Dragon runtime of one's own takes the CPU of a hundred other tests: where the spawner
    makes no difference to what is tested, it is one of the `slow` modes.
    """
    marks = {mode: [*(NEEDS_DRAGON if mode == "dragon" else ())] for mode in modes}
    for mode in slow:
        marks[mode].append(pytest.mark.slow)
    return [pytest.param(mode, marks=marks[mode]) for mode in modes]


def seeds(count: int, quick: int = 2) -> list[ParameterSet]:
    """Seeds of a test that does something else with each: a quick run takes the first ones."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, count)]
    return [*map(pytest.param, range(quick)), *slow]


def amounts(quick: int, slow: int) -> list[ParameterSet]:
    """How often a test does something: few times in a quick run, many times in a slow one."""
    return [pytest.param(quick, id="few"), pytest.param(slow, id="many", marks=pytest.mark.slow)]


@pytest.fixture(params=mode_params(*MODES))
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
    async with MemoryCluster(**settings_of(mode)) as memory:
        yield memory
