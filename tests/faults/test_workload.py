"""The campaign's workers find what a broken memory does, and nothing in one that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import Op, PutOp, Result
from langgraph.store.memory import InMemoryStore

from flowgentic_actors.errors import OutcomeUnknownError
from flowgentic_actors.testing.workload import Bench, Fill, ItemWriter, Reader, ThreadWriter

pytestmark = pytest.mark.anyio


class BrokenStore(InMemoryStore):
    """A store that breaks in one way every so many operations."""

    def __init__(self, breakage: str) -> None:
        super().__init__()
        self._breakage = breakage
        self._count = 0

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        ops = list(ops)
        self._count += 1
        if self._breakage and self._count > 40 and self._count % 10 == 0:
            match self._breakage:
                case "lost":
                    ops = [op for op in ops if not isinstance(op, PutOp)] or []
                    if not ops:
                        return [None]
                case "damaged":
                    ops = [damaged(op) for op in ops]
                case "untyped":
                    raise OSError("the disk is on fire")
                case "hung":
                    await asyncio.sleep(1)
        return await super().abatch(ops)


def damaged(op: Any) -> Any:
    if not isinstance(op, PutOp) or op.value is None:
        return op
    return op._replace(value={**op.value, "text": "other"})


class BrokenSaver(InMemorySaver):
    """A checkpointer that forgets some checkpoints, and may say so."""

    said = False
    count = 0

    async def aput(self, config: Any, *rest: Any) -> Any:
        self.count += 1
        if self.count % 10:
            return await super().aput(config, *rest)
        if self.said:
            raise OutcomeUnknownError("it may have happened")
        return config


async def work(store: InMemoryStore, saver: InMemorySaver, bound: float = 5.0) -> set[str]:
    """The kinds of findings after some work."""
    bench = Bench(store, saver, seed=1, bound=bound)
    fill = Fill(bench, 100)
    await fill.write()
    items, threads = [ItemWriter(bench, 0)], [ThreadWriter(bench, 0)]
    reader, stop = Reader(bench, 0, fill, items, threads), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for worker in (items[0].run, threads[0].run, reader.run):
            tasks.create_task(worker(stop))
        await asyncio.sleep(0.6)
        stop.set()
    await items[0].check_all()
    await threads[0].read()
    if not bench.findings.count:
        assert await fill.check_all() == 100
    assert bench.outcomes["put: good"] > 10
    assert bench.outcomes["put checkpoint: good"] > 10
    return {finding.kind for finding in bench.findings.list}


@pytest.mark.parametrize("breakage", ["lost", "damaged", "untyped", "hung"])
async def test_a_broken_store_is_found(breakage: str) -> None:
    assert breakage in await work(BrokenStore(breakage), InMemorySaver(), bound=0.1)


async def test_forgotten_checkpoints_are_found_unless_that_was_said() -> None:
    saver = BrokenSaver()
    assert await work(InMemoryStore(), saver) == {"lost"}
    saver = BrokenSaver()
    saver.said = True
    assert await work(InMemoryStore(), saver) == set()


async def test_nothing_is_found_in_a_good_memory() -> None:
    assert await work(InMemoryStore(), InMemorySaver()) == set()
