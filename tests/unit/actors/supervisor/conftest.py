"""What tests of supervision share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.counter import REPOSITORY


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is where the tests are, for the actors' processes too."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def folder(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A private folder whose path is short enough for sockets."""
    made = scratch / f"o{abs(hash(request.node.nodeid)) % 10**8}"
    made.mkdir(mode=0o700)
    yield made
    if getattr(request.node, "failed", False):
        for log in made.glob("*.log"):
            print(log.read_text())
