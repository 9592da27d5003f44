"""What tests of the engine against models share."""

from __future__ import annotations

import pytest

from flowgentic_actors.engine import values


@pytest.fixture
def no_value_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "SMALL", -1)
    monkeypatch.setattr(values, "_AROUND", 1)
