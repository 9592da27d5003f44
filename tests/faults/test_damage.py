"""Memories whose files were damaged or shortened: opened right, or refused in words."""

from __future__ import annotations

import pytest

from flowgentic_actors.testing import damage
from tests.conftest import amounts


@pytest.mark.parametrize("count", amounts(40, 150))
def test_nothing_is_lost_in_silence_when_files_are_damaged(count: int) -> None:
    outcomes, findings = damage.run(count, seed=3)
    assert findings == []
    assert outcomes["opened right"] > 0
    assert outcomes["refused: JournalDamagedError"] > 0
