"""What tests of a client whose slots move share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowgentic_actors import AsyncCheckpointSaver, AsyncStore
from flowgentic_actors.engine import item_queries, thread_queries
from tests.support.faces import checkpoint_of, config_of
from tests.support.moved_slots import EACH, THREADS
from tests.support.slots import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Three shards whose pages are short."""
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 3)
    monkeypatch.setattr(item_queries, "MAX_PAGE", 3)
    world = World(3)
    world.connect(monkeypatch)
    yield world
    world.end()


@pytest.fixture
def saver(world: World) -> AsyncCheckpointSaver:
    saver = AsyncCheckpointSaver(world.client)
    for number in range(THREADS * EACH):
        thread = f"t{number * 5 % THREADS}"
        saved = checkpoint_of({"c": number}, id=f"{number:03}")
        saver.put(config_of(thread), saved, {"run_id": f"r{number % 2}"}, {"c": saved["id"]})
    return saver


@pytest.fixture
def store(world: World) -> AsyncStore:
    store = AsyncStore(
        world.client, index={"dims": 2, "embed": lambda texts: [[1.0, len(t)] for t in texts]}
    )
    for number in range(40):
        store.put(("a", f"n{number % 13}", "x"), f"k{number:02}", {"text": "m" * number})
    return store
