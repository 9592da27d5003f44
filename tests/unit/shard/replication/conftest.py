"""What tests of replication share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors.shard.journaling.compactor import Compactor


@pytest.fixture
def place() -> Any:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def compaction_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are compacted by `compacted` alone, which does it at once."""
    monkeypatch.setattr(Compactor, "start", lambda self: None)
