"""The contract holds in every mode, with one actor and with several, awaited and blocking."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowgentic_actors import MemoryCluster
from tests.conftest import MODES, ONLY_MODE, mode_params
from tests.support.faces import SaverFace, StoreFace, unique

ALL = mode_params(*MODES, "inline-journal", "inline-wire", "several-actors", "nodes")

SLOW_SYNC = {"dragon", "inline-journal"}
"""Modes whose blocking calls go the ways of another's: quick runs make awaited ones there."""

SLOW = {"inline-wire", "several-actors", "nodes"}
"""Modes made of parts of the others: quick runs leave them to the tests that choose them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `slow` what combines a mode and a face that other combinations stand for.

    Tests that choose their modes have chosen them all for a reason.
    """
    for item in items:
        if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            chosen = any("mode" in mark.args[0] for mark in item.iter_markers("parametrize"))
            stood_for = SLOW_SYNC | SLOW if given.get("face") == "sync" else SLOW
            if given.get("mode") in stood_for - {ONLY_MODE} and not chosen:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(params=ALL if ONLY_MODE is None else [ONLY_MODE])
def mode(request: pytest.FixtureRequest) -> str:
    """Runs a test in every mode, with a local journal, encoded, several actors, several nodes."""
    return str(request.param)


@pytest.fixture(params=["async", "sync"])
def face(request: pytest.FixtureRequest) -> str:
    """Runs a test with awaiting calls and with blocking ones."""
    return str(request.param)


@pytest.fixture
def saver(memory: MemoryCluster, face: str) -> SaverFace:
    return SaverFace(memory.checkpointer, blocking=face == "sync")


@pytest.fixture
def store(memory: MemoryCluster, face: str) -> StoreFace:
    return StoreFace(memory.store, blocking=face == "sync")


@pytest.fixture
def root() -> str:
    """First label of a namespace that no other test uses."""
    return unique()
