"""Memories that were made before the modules and classes got the names that they have today."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data" / "memory-before-moves"


def _maker() -> ModuleType:
    """The program that made them: it knows what is in them."""
    spec = importlib.util.spec_from_file_location("memory_before_moves", DATA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _maker()


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a memory."""
    with tarfile.open(DATA / "memories.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for each in tmp_path.rglob("*"):
        each.chmod(0o700 if each.is_dir() else 0o600)
    return tmp_path / str(request.param)


@pytest.mark.parametrize("path", made.MEMORIES, indirect=True)
async def test_a_memory_from_before_the_moves_gives_everything(path: Path) -> None:
    settings = made.MEMORIES[path.name]
    async with MemoryCluster(persist_path=path, index=made.INDEX, **settings) as memory:
        await _check_threads(memory)
        await _check_items(memory)


async def _check_threads(memory: MemoryCluster) -> None:
    saver = memory.checkpointer
    for thread in range(made.THREADS):
        config: Any = {"configurable": {"thread_id": f"thread-{thread}", "checkpoint_ns": ""}}
        found = [each async for each in saver.alist(config)]
        assert len(found) == made.STEPS
        for step, each in zip(range(made.STEPS, 0, -1), found, strict=True):
            expected = made.checkpoint_of(thread, step)
            assert each.checkpoint["id"] == expected["id"]
            assert each.checkpoint["channel_values"] == expected["channel_values"]
            assert each.checkpoint["channel_versions"] == expected["channel_versions"]
            assert each.metadata["step"] == step
            assert each.pending_writes == [
                ("task", "messages", f"write {step}"),
                ("task", "step", step),
            ]
            assert (each.parent_config is None) == (step == 1)
        within: Any = {"configurable": {"thread_id": f"thread-{thread}", "checkpoint_ns": "sub:1"}}
        (inner,) = [each async for each in saver.alist(within)]
        assert inner.metadata["step"] == 9
    gone: Any = {"configurable": {"thread_id": "gone", "checkpoint_ns": ""}}
    assert await saver.aget_tuple(gone) is None


async def _check_items(memory: MemoryCluster) -> None:
    items = await memory.store.asearch(("notes",), limit=100)
    assert {(item.namespace, item.key): item.value for item in items} == {
        (("notes", f"user-{n % 3}"), f"key-{n}"): {"text": made.text_of(n), "n": n}
        for n in range(made.ITEMS)
    }
    other = await memory.store.aget(("other",), "unindexed")
    assert other is not None
    assert other.value == {"text": "no vector"}
    best = await memory.store.asearch(("notes",), query="c" * 100, limit=3)
    assert {item.value["text"][0] for item in best} == {"c"}
    assert all(item.score is not None and item.score > 0.9 for item in best)
