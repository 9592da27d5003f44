"""Writers and readers that keep a history of what they do to a memory."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    CheckpointTuple,
    empty_checkpoint,
)
from langgraph.store.base import BaseStore, PutOp, SearchItem

from flowgentic_actors.errors import RequestError
from flowgentic_actors.testing.history import (
    Findings,
    ItemHistory,
    Outcome,
    ReadCheckpoint,
    ThreadHistory,
    make_value,
    number_in,
    outcome_of,
)

R = TypeVar("R")

KEYS = 40
"""Keys of each writer."""

_PARTS = 64
_BATCH = 500
_LONGEST_THREAD = 15
_THINK = 0.005
_ATTEMPTS = 3


@dataclass
class Bench:
    """The state that all workers share.

    Attributes:
        store: The store under test.
        saver: The checkpointer under test.
        seed: Decides what every worker does.
        bound: Seconds within which a call must answer or fail.
        text: Most characters in a value.
        impatience: Share of the calls that are cancelled after a moment.
        name: First label of the namespaces, and beginning of the threads' ids, that are written.
        findings: What was found.
        outcomes: How many calls ended how, by the error's name.
        slowest: Seconds that the slowest call took.
    """

    store: BaseStore
    saver: BaseCheckpointSaver[str]
    seed: int
    bound: float
    text: int = 400
    impatience: float = 0.0
    name: str = "campaign"
    findings: Findings = field(default_factory=Findings)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self.items = ItemHistory(self.findings)
        self.threads = ThreadHistory(self.findings)
        self._rng = self.rng("impatience")

    def rng(self, name: str) -> random.Random:
        """The random numbers of a worker."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - repeatable, not secret

    async def call(
        self, what: str, where: str, awaitable: Awaitable[R]
    ) -> tuple[Outcome, R | None]:
        """Await a call that must end in time, with an answer or an error of this package.

        Returns:
            How it ended, and its answer.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        impatient = self._rng.random() < self.impatience
        try:
            async with asyncio.timeout(self._moment() if impatient else self.bound) as bound:
                answer = await awaitable
        except RequestError as error:
            self.outcomes[f"{what}: {type(error).__name__}"] += 1
            return outcome_of(error), None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            if bound.expired() and impatient:
                self.outcomes[f"{what}: cancelled"] += 1
            elif bound.expired():
                self.findings.add("hung", where, f"{what} not ended after {self.bound:g} s")
            else:
                self.findings.add("untyped", where, f"{what} failed with {error!r}")
            return Outcome.UNKNOWN, None
        finally:
            self.slowest = max(self.slowest, loop.time() - began)
        self.outcomes[f"{what}: good"] += 1
        return Outcome.DONE, answer

    def _moment(self) -> float:
        # Most answers take a millisecond; in an outage everything takes longer than this.
        return self._rng.choice((0.0, 0.001, 0.3)) * self._rng.random()


class Fill:
    """Items that are written once and never changed.

    Args:
        bench: What workers share.
        count: How many.
    """

    def __init__(self, bench: Bench, count: int) -> None:
        self._bench = bench
        self._count = count

    async def write(self) -> None:
        """Write the items in batches."""
        batches = iter(range(0, self._count, _BATCH))

        async def write_batches() -> None:
            for start in batches:
                puts = [PutOp(*_filled(n)) for n in range(start, min(start + _BATCH, self._count))]
                await self._bench.store.abatch(puts)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(write_batches())

    async def read_one(self, rng: random.Random) -> None:
        """Read one of the items and check it."""
        if not self._count:
            return
        namespace, key, value = _filled(rng.randrange(self._count))
        where = f"{'/'.join(namespace)}/{key}"
        outcome, item = await self._bench.call("get", where, self._bench.store.aget(namespace, key))
        if outcome is Outcome.DONE:
            self._check(where, value, None if item is None else item.value)

    async def check_all(self) -> int:
        """Read all items and check them; returns how many were found."""
        found = 0
        for part in range(min(_PARTS, self._count)):
            namespace = ("fill", f"part-{part}")
            expected = {str(n): _filled(n)[2] for n in range(part, self._count, _PARTS)}
            offset = 0
            while items := await self._page(namespace, offset):
                offset += len(items)
                for item in items:
                    where = f"fill/part-{part}/{item.key}"
                    if item.key not in expected:
                        self._bench.findings.add("phantom", where, "not written, or twice")
                    else:
                        self._check(where, expected.pop(item.key), item.value)
                        found += 1
            for key in expected:
                self._bench.findings.add("lost", f"fill/part-{part}/{key}", "it is not there")
        return found

    async def _page(self, namespace: tuple[str, ...], offset: int) -> list[SearchItem]:
        for _ in range(_ATTEMPTS):
            call = self._bench.store.asearch(namespace, limit=2000, offset=offset)
            outcome, items = await self._bench.call("search", "/".join(namespace), call)
            if outcome is Outcome.DONE:
                return items or []
        return []  # what is there was not shown, and counts as lost

    def _check(self, where: str, expected: dict[str, Any], value: dict[str, Any] | None) -> None:
        if value is None:
            self._bench.findings.add("lost", where, "it is not there")
        elif value != expected:
            self._bench.findings.add("damaged", where, f"read {str(value)[:200]}")


def _filled(number: int) -> tuple[tuple[str, str], str, dict[str, Any]]:
    namespace = ("fill", f"part-{number % _PARTS}")
    where = f"{namespace[0]}/{namespace[1]}/{number}"
    return namespace, str(number), make_value(where, 1, f"{number:08d}" * 5)


# ---------------------------------------------------------------------- items


class ItemWriter:
    """Writes, deletes and reads items of a namespace of its own.

    Args:
        bench: What workers share.
        number: Its number.
    """

    def __init__(self, bench: Bench, number: int) -> None:
        self._bench = bench
        self._namespace = (bench.name, f"writer-{number}")
        self._rng = bench.rng(f"writer-{number}")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        while not stop.is_set():
            key = f"key-{self._rng.randrange(KEYS)}"
            choice = self._rng.random()
            if choice < 0.80:
                await (self.delete(key) if choice < 0.06 else self.put(key))
            elif choice < 0.98:
                await self.read(key)
            else:
                await self.search()
            await asyncio.sleep(self._rng.uniform(0, 2 * _THINK))

    async def check_all(self) -> None:
        """Read all items and check them."""
        await self.search()
        for number in range(KEYS):
            await self.read(f"key-{number}")

    async def put(self, key: str) -> None:
        """Write an item."""
        where = self._where(key)
        number = self._bench.items.begin_write(where)
        text = f"{number:06d}" * self._rng.randrange(1, self._bench.text // 6)
        call = self._bench.store.aput(self._namespace, key, make_value(where, number, text))
        outcome, _ = await self._bench.call("put", where, call)
        self._bench.items.end_write(where, number, outcome)

    async def delete(self, key: str) -> None:
        """Delete an item."""
        where = self._where(key)
        number = self._bench.items.begin_write(where, delete=True)
        call = self._bench.store.adelete(self._namespace, key)
        outcome, _ = await self._bench.call("delete", where, call)
        self._bench.items.end_write(where, number, outcome)

    async def read(self, key: str) -> None:
        """Read one item and check it."""
        where = self._where(key)
        read = self._bench.items.begin_read(where)
        outcome, item = await self._bench.call(
            "get", where, self._bench.store.aget(self._namespace, key)
        )
        if outcome is not Outcome.DONE:
            return
        if item is None:
            self._bench.items.end_read(read, None)
        else:
            self._bench.items.end_read(read, item.value, item.updated_at)

    async def search(self) -> None:
        """Search for all its items and check them."""
        keys = [f"key-{number}" for number in range(KEYS)]
        reads = {key: self._bench.items.begin_read(self._where(key)) for key in keys}
        place = self._where("*")
        outcome, items = await self._bench.call(
            "search", place, self._bench.store.asearch(self._namespace, limit=10 * KEYS)
        )
        if outcome is not Outcome.DONE or items is None:
            return
        for item in items:
            read = reads.pop(item.key, None)
            if read is None:
                kind = "duplicate" if item.key in keys else "phantom"
                self._bench.findings.add(kind, place, f"the search shows {item.key}")
            else:
                self._bench.items.end_read(read, item.value, item.updated_at)
        for read in reads.values():
            self._bench.items.end_read(read, None)

    def _where(self, key: str) -> str:
        return f"{self._namespace[1]}/{key}"


# ---------------------------------------------------------------------- threads


class ThreadWriter:
    """Writes, deletes and reads the checkpoints of a thread of its own.

    Args:
        bench: What workers share.
        number: Its number.
    """

    def __init__(self, bench: Bench, number: int) -> None:
        self._bench = bench
        self._thread = f"{bench.name}-thread-{number}"
        self._rng = bench.rng(f"thread-{number}")
        self._last: str | None = None
        self._count = 0
        self._length = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        while not stop.is_set():
            choice = self._rng.random()
            if self._length >= _LONGEST_THREAD or choice < 0.02:
                await self.delete()
            elif choice < 0.55 or self._last is None:
                await self.put()
            elif choice < 0.80:
                await self.put_writes()
            else:
                await self.read(latest=choice > 0.9)
            await asyncio.sleep(self._rng.uniform(0, 2 * _THINK))

    async def read(self, *, latest: bool = False) -> None:
        """Read the thread, or its latest checkpoint, and check it."""
        bench, config = self._bench, self._config(None)
        read = bench.threads.begin_read(self._thread, latest=latest)
        found: list[CheckpointTuple] | None
        if latest:
            outcome, one = await bench.call(
                "get_tuple", self._thread, bench.saver.aget_tuple(config)
            )
            found = [] if one is None else [one]
        else:
            listing = bench.saver.alist(config)
            outcome, found = await bench.call("list", self._thread, _listed(listing))
        if outcome is Outcome.DONE and found is not None:
            bench.threads.end_read(read, [self._as_read(row) for row in found])

    async def put(self) -> None:
        """Store a checkpoint after the last one."""
        self._count += 1
        self._length += 1
        checkpoint_id, parent = f"{self._count:012d}", self._last
        text = "x" * self._rng.randrange(self._bench.text)
        checkpoint = empty_checkpoint()
        checkpoint["id"] = checkpoint_id
        checkpoint["channel_values"] = {
            "new": make_value(self._thread, self._count, text),
            "kept": make_value(self._thread, 1, "kept"),
        }
        checkpoint["channel_versions"] = {"new": checkpoint_id, "kept": "1"}
        versions: ChannelVersions = {"new": checkpoint_id}
        if parent is None:
            versions["kept"] = "1"
        step = self._bench.threads.begin_put(self._thread, checkpoint_id, parent, (self._count, 1))
        call = self._bench.saver.aput(
            self._config(parent), checkpoint, {"step": self._count}, versions
        )
        outcome, _ = await self._bench.call("put checkpoint", self._thread, call)
        self._bench.threads.end(self._thread, step, outcome)
        if outcome is not Outcome.FAILED:
            self._last = checkpoint_id

    async def put_writes(self) -> None:
        """Store pending writes on the last checkpoint, if there is one."""
        checkpoint_id = self._last
        if checkpoint_id is None:
            return
        self._count += 1
        self._length += 1
        task = f"task-{self._count}"
        channels = ["a", "b", "c"][: self._rng.randrange(1, 4)]
        step = self._bench.threads.begin_writes(
            self._thread, checkpoint_id, task, [(channel, self._count) for channel in channels]
        )
        writes = [(channel, make_value(self._thread, self._count, "w")) for channel in channels]
        call = self._bench.saver.aput_writes(self._config(checkpoint_id), writes, task)
        outcome, _ = await self._bench.call("put writes", self._thread, call)
        self._bench.threads.end(self._thread, step, outcome)

    async def delete(self) -> None:
        """Delete the thread."""
        step = self._bench.threads.begin_delete(self._thread)
        call = self._bench.saver.adelete_thread(self._thread)
        outcome, _ = await self._bench.call("delete thread", self._thread, call)
        self._bench.threads.end(self._thread, step, outcome)
        self._last, self._length = None, 0

    def _config(self, checkpoint_id: str | None) -> RunnableConfig:
        configurable = {"thread_id": self._thread, "checkpoint_ns": ""}
        if checkpoint_id is not None:
            configurable["checkpoint_id"] = checkpoint_id
        return {"configurable": configurable}

    def _as_read(self, row: CheckpointTuple) -> ReadCheckpoint:
        values = row.checkpoint["channel_values"]
        parent = row.parent_config
        return ReadCheckpoint(
            row.config["configurable"]["checkpoint_id"],
            parent["configurable"]["checkpoint_id"] if parent else None,
            tuple(number_in(values.get(name, {}), self._thread) for name in ("new", "kept")),
            tuple(
                (task, (channel, number_in(value, self._thread)))
                for task, channel, value in row.pending_writes or ()
            ),
        )


class Reader:
    """Reads what others write.

    Args:
        bench: What workers share.
        number: Its number.
        fill: Items that do not change.
        writers: The writers of items.
        threads: The writers of threads.
    """

    def __init__(
        self,
        bench: Bench,
        number: int,
        fill: Fill,
        writers: Sequence[ItemWriter],
        threads: Sequence[ThreadWriter],
    ) -> None:
        self._rng = bench.rng(f"reader-{number}")
        self._fill, self._writers, self._threads = fill, writers, threads

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        while not stop.is_set():
            choice = self._rng.random()
            if choice < 0.6:
                await self._rng.choice(self._writers).read(f"key-{self._rng.randrange(KEYS)}")
            elif choice < 0.8:
                await self._fill.read_one(self._rng)
            elif choice < 0.82:
                await self._rng.choice(self._writers).search()
            else:
                await self._rng.choice(self._threads).read(latest=choice < 0.9)
            await asyncio.sleep(self._rng.uniform(0, 2 * _THINK))


async def _listed(listing: AsyncIterator[CheckpointTuple]) -> list[CheckpointTuple]:
    return [row async for row in listing]
