"""Exceptions at any instruction of a blocking call leave the memory whole; short forms.

The long one is `python -m flowgentic_actors.testing.interrupted`.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.store.base import PutOp

from flowgentic_actors import MemoryCluster
from flowgentic_actors.shard.sweeper import Sweeper
from flowgentic_actors.testing import interrupted
from flowgentic_actors.testing.cancellation import held_sockets
from flowgentic_actors.testing.interrupted import MODES, Mode, settings_of
from flowgentic_actors.testing.interrupts import (
    Injector,
    Interruption,
    Signals,
    interrupt_at_every_instruction,
)
from tests.conftest import amounts

NAMESPACE = ("a", "b")
PREFIX = NAMESPACE[:1]
CONFIG: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
CACHED = [(("c",), f"k{n}") for n in range(3)]

# What is interrupted while it makes a socket leaves that to Python, which warns and closes it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def sockets_left_to_python() -> Iterator[None]:
    yield
    gc.collect()  # where its warning is expected


QUICK = {"local", "subprocess"}
"""Modes of a quick run, which has other tests of what is interrupted beside a journal."""


@pytest.fixture(
    params=[pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODES],
    scope="module",
)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture(scope="module")
def cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCluster]:
    index = {"dims": 2, "embed": lambda texts: [[len(text), 1.0] for text in texts]}
    settings = settings_of(mode, tmp_path_factory.mktemp(mode)) | {"keep_last": 3, "index": index}
    with MemoryCluster(**settings) as memory:
        yield memory


def put(memory: MemoryCluster, n: int) -> None:
    checkpoint: Checkpoint = empty_checkpoint()
    checkpoint["id"] = f"{n:08d}"
    checkpoint["channel_values"] = {"n": n}
    checkpoint["channel_versions"] = {"n": str(n)}
    versions = dict(checkpoint["channel_versions"])
    memory.checkpointer.put(
        CONFIG, checkpoint, {"source": "loop", "step": n, "parents": {}}, versions
    )


def state(memory: MemoryCluster) -> dict[str, Any]:
    """Everything that is stored, read in each of the ways in which it can be."""
    searched = {i.key: i.value["n"] for i in memory.store.search(PREFIX, limit=99)}
    ranked = {i.key: i.value["n"] for i in memory.store.search(PREFIX, query="x", limit=99)}
    got = {key: memory.store.get(NAMESPACE, key) for key in ("k0", "k1", "k2", "k3")}
    assert searched == ranked == {key: item.value["n"] for key, item in got.items() if item}
    assert memory.store.list_namespaces() == ([NAMESPACE] if searched else [])
    listed = {
        each.checkpoint["id"]: (
            each.checkpoint["channel_values"]["n"],
            sorted(each.pending_writes or []),
        )
        for each in memory.checkpointer.list(CONFIG)
    }
    latest = memory.checkpointer.get_tuple(CONFIG)
    assert (latest and latest.checkpoint["id"]) == max(listed, default=None)
    cached = {key[1]: value for key, value in memory.cache.get(CACHED).items()}
    return {"items": searched, "checkpoints": listed, "cached": cached}


def counted(memory: MemoryCluster) -> tuple[int, ...] | None:
    """What a local cluster counts; an actor tells its counts now and then only."""
    if memory.is_distributed:
        return None
    actor = asyncio.run(memory.status()).actors[0]
    return actor.items, actor.threads, actor.checkpoints, actor.blob_bytes


def two(memory: MemoryCluster) -> None:
    """Begin the thread anew, with two checkpoints."""
    memory.checkpointer.delete_thread("t")
    put(memory, 1)
    put(memory, 2)


Work = Callable[[MemoryCluster, int], object]

OPERATIONS: dict[str, tuple[Work, Work]] = {
    # what is interrupted, and what makes the state before it anew
    "put": (
        lambda m, n: m.store.put(NAMESPACE, "k0", {"n": n}, ttl=60),
        lambda m, n: m.store.delete(NAMESPACE, "k0") if n % 2 else None,
    ),
    "delete": (
        lambda m, n: m.store.delete(NAMESPACE, "k0"),
        lambda m, n: m.store.put(NAMESPACE, "k0", {"n": n}, ttl=60),
    ),
    "search": (
        lambda m, n: m.store.search(PREFIX, query="x", limit=99),
        lambda m, n: m.store.put(NAMESPACE, f"k{n % 4}", {"n": n}),
    ),
    "list_namespaces": (lambda m, n: m.store.list_namespaces(), lambda m, n: None),
    "get": (lambda m, n: m.store.get(NAMESPACE, "k1"), lambda m, n: None),
    "saver put": (put, lambda m, n: m.checkpointer.delete_thread("t") if n % 5 == 0 else None),
    "put_writes": (
        lambda m, n: m.checkpointer.put_writes(
            {"configurable": {"thread_id": "t", "checkpoint_id": "00000001"}},
            [("a", n), ("b", n)],
            f"task-{n}",
        ),
        lambda m, n: two(m) if n % 9 == 0 else None,
    ),
    "get_tuple": (lambda m, n: m.checkpointer.get_tuple(CONFIG), lambda m, n: None),
    "list": (lambda m, n: list(m.checkpointer.list(CONFIG)), lambda m, n: None),
    "delete_thread": (
        lambda m, n: m.checkpointer.delete_thread("t"),
        lambda m, n: two(m),
    ),
    "prune": (
        lambda m, n: m.checkpointer.prune(["t"]),
        lambda m, n: two(m),
    ),
    "cache set": (lambda m, n: m.cache.set(dict.fromkeys(CACHED, (n, None))), lambda m, n: None),
    "cache get": (lambda m, n: m.cache.get(CACHED), lambda m, n: None),
    "cache clear": (
        lambda m, n: m.cache.clear([("c",)]),
        lambda m, n: m.cache.set(dict.fromkeys(CACHED, (n, None))),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_interrupted_at_any_instruction_is_whole_or_not_at_all(
    cluster: MemoryCluster, mode: Mode, name: str
) -> None:
    work, prepare = OPERATIONS[name]
    memory = cluster
    before: dict[str, Any] = {}
    for n in range(3):
        memory.store.put(NAMESPACE, f"k{n}", {"n": n})
        put(memory, n)
    work(memory, 0)  # what is imported or connected when it is first used
    sockets = len(held_sockets())

    def prepared(run: int) -> None:
        prepare(memory, run)
        before.clear()
        before.update(state(memory))

    def check(run: int) -> None:
        found = state(memory)
        if found != before:
            work(memory, run)  # whole: it makes no difference to do it again
            assert state(memory) == found
        assert len(held_sockets()) <= sockets + 1
        prepared(run + 1)

    prepared(0)
    assert interrupt_at_every_instruction(lambda run: work(memory, run), check)
    memory.store.batch([PutOp(NAMESPACE, f"k{n}", None) for n in range(4)])
    memory.checkpointer.delete_thread("t")
    assert counted(memory) in (None, (0, 0, 0, 0))


@pytest.mark.parametrize("mode", ["journal", "journal-disk"])
def test_what_was_interrupted_is_the_same_after_reopening(mode: Mode, tmp_path: Path) -> None:
    settings = settings_of(mode, tmp_path)
    found: list[dict[str, Any]] = []
    for first in range(0, 80, 10):  # a put has some 90 instructions at which one can arrive
        with MemoryCluster(**settings) as memory:
            if found:
                assert state(memory) == found[-1]
            for n in range(first, first + 10):
                with pytest.raises(Interruption), Injector(n, Interruption("now")).on():
                    memory.store.put(NAMESPACE, f"k{n % 4}", {"n": n})
            found.append(state(memory) | {"cached": {}})


def test_a_sweeper_whose_start_is_interrupted_is_started_by_the_next_write() -> None:
    swept = threading.Event()
    sweeper = Sweeper(swept.set, 0.01)

    def check(_run: int) -> None:
        nonlocal sweeper
        sweeper.start()
        assert swept.wait(10)
        sweeper.close()
        swept.clear()
        sweeper = Sweeper(swept.set, 0.01)

    assert interrupt_at_every_instruction(lambda _run: sweeper.start(), check)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_collected_during_the_work_loses_no_interruption() -> None:
    signals, alive = Signals(1), weakref.WeakValueDictionary[int, Any]()

    def work() -> None:
        for n in range(300):
            alive[n] = Sweeper(lambda: None, 1.0)  # and forgotten, by a callback in Python
            left_open: list[Any] = [socket.socket(socket.AF_UNIX)]
            left_open.append(left_open)  # for the collector
            if n % 10 == 0:
                gc.collect(0)

    assert sum(signals.run(work, 0.001) is not None for _ in range(100)) > 30


@pytest.mark.parametrize("count", amounts(40, 150))
def test_interruptions_at_random_times_lose_nothing(mode: Mode, count: int) -> None:
    """In a process where nothing but the campaign runs on the thread that signals interrupt."""
    command = ["-m", interrupted.__name__, "--mode", mode, "--count", str(count), "--seed", "4"]
    run = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{count} interruptions" in run.stdout


def test_threads_that_are_interrupted_leave_the_connections_to_others(tmp_path: Path) -> None:
    settings = settings_of("subprocess", tmp_path) | {"connection_pool": 2, "request_timeout": 5}
    with MemoryCluster(**settings) as memory:

        def interrupted(at: int) -> None:
            injector = Injector(at, Interruption("now"))
            with pytest.raises(Interruption), injector.on():
                memory.store.put(NAMESPACE, "k0", {"n": at})

        for at in range(40, 120, 4):  # each in the middle of a call, on a thread that ends
            thread = threading.Thread(target=interrupted, args=(at,))
            thread.start()
            thread.join()
        memory.store.put(NAMESPACE, "k0", {"n": 1})
        assert memory.store.search(PREFIX)[0].value == {"n": 1}
