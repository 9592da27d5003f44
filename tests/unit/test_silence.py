"""The counter of a peer's silence."""

from __future__ import annotations

import time

import pytest

from flowgentic_actors.silence import SilenceCounter


def test_waits_count_until_a_sign_of_life() -> None:
    silence = SilenceCounter()
    assert silence.tick(0.5) == 0.5
    assert silence.tick(0.25) == silence.seconds == 0.75
    silence.heard()
    assert silence.seconds == 0.0
    assert silence.tick(0.5) == 0.5


def test_time_that_passes_between_ticks_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    silence = SilenceCounter()
    silence.tick(0.5)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600.0)
    assert silence.tick(0.5) == 1.0
