"""What tests of rebalancing share."""

from __future__ import annotations

import pytest

from flowgentic_actors.cluster.nodes import rebalancing


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalancing, "_PAUSE", 0.0)
    monkeypatch.setattr(rebalancing, "_FAREWELL", 0.0)
