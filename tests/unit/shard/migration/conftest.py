"""What tests of moving slots share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowgentic_actors.engine import pace
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.migration import migrator
from flowgentic_actors.shard.migration import source as source_module
from flowgentic_actors.shard.migration import target as target_module


@pytest.fixture(autouse=True)
def whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are compared as they are, so none may end because this machine is busy."""
    monkeypatch.setattr(pace, "PAGE_SECONDS", 60.0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much is asked for little, nothing is compacted by itself, and what waits waits shortly."""
    monkeypatch.setattr(Compactor, "start", lambda self: None)
    monkeypatch.setattr(source_module, "PIECE", 1500)
    monkeypatch.setattr(target_module, "NEAR", 3000)
    monkeypatch.setattr(target_module, "_IDLE", 0.002)
    monkeypatch.setattr(target_module, "_PAUSE", 0.02)
    monkeypatch.setattr(migrator, "_FULL", 0.05)
