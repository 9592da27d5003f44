"""Memories whose files were damaged or shortened: opened right, or refused in words."""

from __future__ import annotations

from flowgentic_actors.testing import damage


def test_nothing_is_lost_in_silence_when_files_are_damaged() -> None:
    outcomes, findings = damage.run(150, seed=3)
    assert findings == []
    assert outcomes["opened right"] > 0
    assert outcomes["refused: JournalDamagedError"] > 0
