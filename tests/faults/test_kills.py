"""The short form of the kill campaign; `python -m flowgentic_actors.testing.kills` is the long."""

from __future__ import annotations

import statistics

import pytest

from flowgentic_actors.testing.kills import KillPlan, run_kills
from tests.conftest import NO_DRAGON

pytestmark = pytest.mark.anyio


async def test_killed_subprocess_actors_lose_no_acknowledged_write() -> None:
    report = await run_kills(KillPlan(kills=15, seed=1))
    assert report.clean, str(report)
    assert report.restarts == 15
    assert report.acknowledged > 100
    assert statistics.median(report.outages) < 5  # a bound on hanging, not on speed


@pytest.mark.dragon
@pytest.mark.skipif(NO_DRAGON is not None, reason=NO_DRAGON or "")
async def test_killed_dragon_actors_lose_no_acknowledged_write() -> None:
    report = await run_kills(KillPlan(kills=4, seed=2, spawner="dragon"))
    assert report.clean, str(report)
    assert report.restarts == 4
    assert report.acknowledged > 100
