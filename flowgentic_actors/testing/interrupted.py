"""A campaign of interruptions: operations of store, saver and cache, at random times.

python -m flowgentic_actors.testing.interrupted --mode local --count 100000

After each interruption what is stored has to be as before, or as if the operation had been carried
out whole; at the end nothing is left counted that is not stored. Exit code 0: nothing was found.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.store.base import GetOp, Op, PutOp

from flowgentic_actors.actors.daemon_threads import run_blocking
from flowgentic_actors.memory import MemoryCluster
from flowgentic_actors.testing.cancellation import held_sockets
from flowgentic_actors.testing.interrupts import Signals, Source

Mode = Literal["local", "journal", "journal-disk", "subprocess"]

MODES: Final[tuple[Mode, ...]] = ("local", "journal", "journal-disk", "subprocess")

State = Mapping[Any, Any]

_POOL: Final = 8
_KEYS: Final = 8
_NAMESPACES: Final = tuple(("items", f"n{n}") for n in range(4))
_THREADS: Final = tuple(f"thread-{n}" for n in range(4))
_CACHED: Final = tuple((("cached",), f"k{n}") for n in range(_KEYS))
_CALL: Final = {"local": 0.0003, "journal": 0.0004, "journal-disk": 0.001, "subprocess": 0.001}
_FEW: Final = 6  # checkpoints of a thread
_LOOK_EVERY: Final = 200


def settings_of(mode: Mode, folder: Path) -> dict[str, Any]:
    """The settings of a cluster with low limits, so that miscounts show soon."""
    settings: dict[str, Any] = {"thread_backlog": 1 << 16}
    if mode == "subprocess":
        return settings | {
            "mode": "distributed",
            "spawner": "subprocess",
            "connection_pool": _POOL,
            "request_timeout": 10.0,
        }
    if mode != "local":
        ack = "disk" if mode == "journal-disk" else "node"
        settings |= {"persist_path": folder / "memory", "ack": ack, "segment_bytes": 1 << 16}
    return settings | {"mode": "local"}


@dataclass
class InterruptionReport:
    """The report of a campaign.

    Attributes:
        interruptions: How often each operation was interrupted.
        calls: Calls in all.
        findings: What was wrong.
    """

    interruptions: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {n}" for name, n in sorted(self.interruptions.items()))
        return (
            f"{self.interruptions.total()} interruptions in {self.calls} calls ({kinds}): "
            f"{len(self.findings)} findings"
        )


@dataclass(frozen=True)
class Operation:
    """An operation on one object, and its effect on the object's state."""

    name: str
    target: Any
    call: Callable[[], object]
    makes: Callable[[State], State] = lambda state: state
    whole: bool = True
    """Whether it happens as a whole; otherwise each key for itself."""


class Interrupted:
    """Operations on a cluster, their expected effects, and the findings.

    Args:
        memory: The cluster, open.
        seed: Decides the operations.
        late: Whether an interrupted operation may take effect after the next read: it may be on its
            way to an actor.
    """

    def __init__(self, memory: MemoryCluster, seed: int, *, late: bool) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._late = late
        self._number = 0
        self.use(memory)
        targets = (*_NAMESPACES, *_THREADS, "cache")
        self._possible: dict[Any, list[State]] = {target: [{}] for target in targets}

    def use(self, memory: MemoryCluster) -> None:
        """Continue with a cluster that has the same memory."""
        self._store, self._saver, self._cache = memory.store, memory.checkpointer, memory.cache

    # ------------------------------------------------------------------ operations

    def next(self) -> Operation:
        """Choose the next operation."""
        self._number += 1
        return self._random.choice(
            (
                self._put, self._put, self._delete, self._get, self._search, self._namespaces,
                self._batch, self._checkpoint, self._checkpoint, self._writes, self._tuple,
                self._list, self._delete_thread, self._prune, self._set, self._cached, self._clear,
            )
        )()  # fmt: skip

    def _place(self) -> tuple[tuple[str, ...], str]:
        return self._random.choice(_NAMESPACES), f"k{self._random.randrange(_KEYS)}"

    def _put(self) -> Operation:
        (namespace, key), n = self._place(), self._number
        ttl = self._random.choice((None, None, 60.0))
        return Operation(
            "put",
            namespace,
            lambda: self._store.put(namespace, key, {"n": n}, ttl=ttl),
            lambda state: {**state, key: n},
        )

    def _delete(self) -> Operation:
        namespace, key = self._place()
        return Operation(
            "delete", namespace, lambda: self._store.delete(namespace, key), _without(key)
        )

    def _get(self) -> Operation:
        namespace, key = self._place()
        return Operation("get", namespace, lambda: self._store.get(namespace, key))

    def _search(self) -> Operation:
        return Operation("search", _NAMESPACES[0], lambda: self._store.search(("items",), limit=99))

    def _namespaces(self) -> Operation:
        return Operation("list_namespaces", _NAMESPACES[0], self._store.list_namespaces)

    def _batch(self) -> Operation:
        namespace, n = self._random.choice(_NAMESPACES), self._number
        keys = [f"k{k}" for k in self._random.sample(range(_KEYS), 3)]
        ops: list[Op] = [
            GetOp(namespace, keys[0]),
            *(PutOp(namespace, key, {"n": n}) for key in keys),
        ]
        made = dict.fromkeys(keys, n)
        return Operation(
            "batch",
            namespace,
            lambda: self._store.batch(ops),
            lambda state: {**state, **made},
            whole=False,
        )

    def _checkpoint(self) -> Operation:
        thread, n = self._random.choice(_THREADS), self._number
        checkpoint: Checkpoint = empty_checkpoint()
        checkpoint["id"] = f"{n:012d}"
        checkpoint["channel_values"] = {"n": n, "text": "x" * self._random.choice((10, 9000))}
        checkpoint["channel_versions"] = {"n": f"{n}", "text": f"{n}"}
        versions = dict(checkpoint["channel_versions"])
        return Operation(
            "saver put",
            thread,
            lambda: self._saver.put(
                _config(thread), checkpoint, {"source": "loop", "step": n, "parents": {}}, versions
            ),
            lambda state: _with_checkpoint(state, checkpoint["id"], n),
        )

    def _writes(self) -> Operation:
        thread, n = self._random.choice(_THREADS), self._number
        latest = max(self._possible[thread][0], default=None)
        if latest is None:
            return self._checkpoint()
        writes = [("a", n), ("b", n)]
        return Operation(
            "put_writes",
            thread,
            lambda: self._saver.put_writes(_config(thread, latest), writes, f"task-{n}"),
            lambda state: _with_write(state, latest, f"task-{n}", n),
        )

    def _tuple(self) -> Operation:
        thread = self._random.choice(_THREADS)
        return Operation("get_tuple", thread, lambda: self._saver.get_tuple(_config(thread)))

    def _list(self) -> Operation:
        thread = self._random.choice(_THREADS)
        config = self._random.choice((None, _config(thread)))
        return Operation("list", thread, lambda: list(self._saver.list(config)))

    def _delete_thread(self) -> Operation:
        thread = self._random.choice(_THREADS)
        return Operation(
            "delete_thread", thread, lambda: self._saver.delete_thread(thread), lambda _: {}
        )

    def _prune(self) -> Operation:
        thread = max(_THREADS, key=lambda each: len(self._possible[each][0]))
        return Operation("prune", thread, lambda: self._saver.prune([thread]), _latest)

    def _set(self) -> Operation:
        n, keys = self._number, self._random.sample(_CACHED, 2)
        made = dict.fromkeys(keys, n)
        return Operation(
            "cache set",
            "cache",
            lambda: self._cache.set(dict.fromkeys(keys, (n, None))),
            lambda state: {**state, **made},
        )

    def _cached(self) -> Operation:
        return Operation("cache get", "cache", lambda: self._cache.get(_CACHED))

    def _clear(self) -> Operation:
        return Operation("cache clear", "cache", self._cache.clear, lambda _: {})

    # ------------------------------------------------------------------ checks

    def done(self, operation: Operation) -> None:
        """Note that an operation was carried out."""
        states = self._possible[operation.target]
        self._possible[operation.target] = _different([operation.makes(s) for s in states])

    def interrupted(self, operation: Operation) -> None:
        """Note that an operation was interrupted: the state has to be that before or after it."""
        target, found = operation.target, self.find(operation.target)
        before = self._possible[target]
        after = [operation.makes(state) for state in before]
        if not operation.whole:
            after += [
                found
                for state, new in zip(before, after, strict=True)
                if _each_of(found, state, new)
            ]
        self._possible[target] = _different([*before, *after])
        self._expect(target, found)

    def check(self, *, after_reopening: bool = False) -> None:
        """Check that everything is as expected."""
        for target in self._possible:
            if target == "cache" and after_reopening:
                self._possible[target] = [{}]
            self._expect(target, self.find(target))
        for thread in _THREADS:
            latest = self._saver.get_tuple(_config(thread))
            ids = self.find(thread)
            assert (latest.config["configurable"]["checkpoint_id"] if latest else None) == max(
                (i for i in ids if ids[i][0] is not None), default=None
            ), f"the latest checkpoint of {thread}"
        for namespace in _NAMESPACES:
            for key, value in self.find(namespace).items():
                item = self._store.get(namespace, key)
                assert item is not None, (namespace, key)
                assert item.value == {"n": value}, (namespace, key)
        filled = {namespace for namespace in _NAMESPACES if self.find(namespace)}
        assert set(self._store.list_namespaces(prefix=("items",))) == filled

    def counts(self) -> tuple[int, int, int]:
        """The numbers of items, threads and checkpoints."""
        threads = [state for thread in _THREADS if (state := self.find(thread))]
        checkpoints = sum(c is not None for state in threads for c, _ in state.values())
        return (
            sum(len(self.find(namespace)) for namespace in _NAMESPACES),
            len(threads),
            checkpoints,
        )

    def clear(self) -> None:
        """Delete everything."""
        for namespace in _NAMESPACES:
            for key in self.find(namespace):
                self._store.delete(namespace, key)
        for thread in _THREADS:
            self._saver.delete_thread(thread)
        self._cache.clear()

    def find(self, target: Any) -> State:
        """Read the state of an object without interruption."""
        if target == "cache":
            return self._cache.get(_CACHED)
        if target in _NAMESPACES:
            return {item.key: item.value["n"] for item in self._store.search(target, limit=99)}
        found: dict[str, tuple[int | None, frozenset[Any]]] = {}
        for each in self._saver.list(_config(target)):
            writes = each.pending_writes or []
            found[each.checkpoint["id"]] = (
                each.checkpoint["channel_values"]["n"],
                frozenset((task, value) for task, channel, value in writes if channel == "a"),
            )
            names = Counter(task for task, _, _ in writes)
            assert all(n == 2 for n in names.values()), f"half of a task's writes: {writes}"
        return found

    def _expect(self, target: Any, found: State) -> None:
        visible = [s for s in self._possible[target] if _visible(s) == found]
        assert visible, f"{target}: found {found}, expected one of {self._possible[target]}"
        if not self._late or self._possible[target][0] not in visible:
            self._possible[target] = visible


def _config(thread: str, checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread, "checkpoint_ns": ""}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def _without(key: Any) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != key}


def _with_checkpoint(state: State, checkpoint_id: str, n: int) -> State:
    return {**state, checkpoint_id: (n, state.get(checkpoint_id, (None, frozenset()))[1])}


def _with_write(state: State, checkpoint_id: str, task: str, n: int) -> State:
    value, writes = state.get(checkpoint_id, (None, frozenset()))
    return {**state, checkpoint_id: (value, writes | {(task, n)})}


def _latest(state: State) -> State:
    ids = [i for i in state if state[i][0] is not None]
    gone = set(ids) - {max(ids, default="")}
    return {i: state[i] for i in state if i not in gone}


def _different(states: list[State]) -> list[State]:
    found: list[State] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found


def _visible(state: State) -> State:
    """The state without writes whose checkpoint is missing, which listings do not show."""
    return {k: v for k, v in state.items() if not isinstance(v, tuple) or v[0] is not None}


def _each_of(found: State, before: State, after: State) -> bool:
    keys = {*found, *before, *after}
    return all(found.get(k) in (before.get(k), after.get(k)) for k in keys)


# ---------------------------------------------------------------------- the campaign


def run_campaign(
    mode: Mode,
    count: int,
    seed: int,
    *,
    source: Source | None = None,
    say: Callable[[str], None] = lambda _: None,
    reopen_every: int = 5000,
) -> InterruptionReport:
    """Run operations until a number of interruptions is reached.

    Args:
        mode: How the memory is run.
        count: Interruptions.
        seed: Decides operations and times.
        source: Where interruptions come from. Default: a signal, so this is the main thread.
        say: Told how it goes.
        reopen_every: Interruptions after which a memory with a journal is closed and opened again.
    """
    report, folder = InterruptionReport(), Path(tempfile.mkdtemp())
    campaign = _Campaign(mode, seed, source or Signals(seed), report, folder, say, reopen_every)
    try:
        campaign.run(count)
    except Exception as error:  # noqa: BLE001 - told
        report.findings.append(f"after {report}: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder)
    return report


@dataclass(frozen=True)
class _Campaign:
    mode: Mode
    seed: int
    source: Source
    report: InterruptionReport
    folder: Path
    say: Callable[[str], None]
    reopen_every: int

    def run(self, count: int) -> None:
        memory = self._open()
        try:
            world = Interrupted(memory, self.seed, late=self.mode == "subprocess")
            world.check()
            sockets = len(held_sockets())
            reopened = looked = 0
            began = time.monotonic()
            while (interruptions := self.report.interruptions.total()) < count:
                self._interrupt(world)
                if interruptions - looked >= _LOOK_EVERY:
                    looked = interruptions
                    world.check()
                    _check_counts(memory, world)
                    extra = len(held_sockets()) - sockets
                    assert extra <= _POOL, f"{extra} sockets more than at first"
                    self.say(f"{time.monotonic() - began:.0f} s: {self.report}")
                if "journal" in self.mode and interruptions - reopened >= self.reopen_every:
                    reopened = interruptions
                    memory.__exit__(None, None, None)
                    memory = self._open()
                    world.use(memory)
                    world.check(after_reopening=True)
            world.check()
            world.clear()
            if not memory.is_distributed:
                actor = run_blocking(memory.status).actors[0]
                left = (actor.items, actor.threads, actor.checkpoints, actor.blob_bytes)
                assert left == (0, 0, 0, 0), f"counted after all was deleted: {left}"
        finally:
            memory.__exit__(None, None, None)

    def _open(self) -> MemoryCluster:
        memory = MemoryCluster(**settings_of(self.mode, self.folder))
        memory.__enter__()
        return memory

    def _interrupt(self, world: Interrupted) -> None:
        operation = world.next()
        self.report.calls += 1
        if self.source.run(operation.call, _CALL[self.mode]) is None:
            world.done(operation)
        else:
            self.report.interruptions[operation.name] += 1
            world.interrupted(operation)


def _check_counts(memory: MemoryCluster, world: Interrupted) -> None:
    if memory.is_distributed:
        return  # an actor tells its counts now and then only
    actor = run_blocking(memory.status).actors[0]
    counted, found = (actor.items, actor.checkpoints), world.counts()
    assert counted == (found[0], found[2]), f"counted {counted}, found {found}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run a campaign from the command line; exit code 0 when it is clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mode", choices=(*MODES, "all"), default="all")
    parser.add_argument("--count", type=int, default=100_000, help="interruptions of each mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    found = False
    for mode in MODES if given.mode == "all" else (given.mode,):
        report = run_campaign(
            mode,
            given.count,
            given.seed,
            say=(lambda _: None) if given.quiet else _say,
        )
        _say(f"{mode}, seed {given.seed}: {report}")
        for finding in report.findings:
            found = True
            _say(f"  {finding}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
