"""Slots move between two shards that serve meanwhile: anything in any order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors.errors import SlotsMovedError
from tests.conftest import seeds
from tests.support.migrating_shards import RATE, owned, refused, shown, stored, two
from tests.support.replicas import compacted
from tests.support.slot_commands import fan_outs, some_commands

pytestmark = pytest.mark.anyio

VARIANTS: list[dict[str, Any]] = [
    {},
    {"hot_bytes": 2000},
    {"appends": "thread"},
    {"ack": "disk"},
    {"hot_bytes": 2000, "segment_bytes": 4 << 10},
]


@pytest.mark.parametrize("seed", seeds(15, quick=3))
async def test_what_is_acknowledged_is_found_once_at_every_moment(place: Path, seed: int) -> None:
    async with two(place, seed, **VARIANTS[seed % len(VARIANTS)]) as both:
        rng, source, target = both.rng, both.source, both.target
        await both.do_some(rng.randrange(20, 250))
        for side in both.sides:
            if rng.random() < 0.5:
                await compacted(side.core)
                await both.do_some(rng.randrange(60))

        both.start_move(rng.choice((100_000, 400_000, RATE)))
        while not target.take("near"):
            await both.do_some(rng.randrange(4))
            assert shown(target) <= owned(both, target)
            if rng.random() < 0.3:
                await both.check_union()
            await asyncio.sleep(0.002)

        both.hold()
        while not target.take("done"):
            for command in some_commands(rng, 3):
                if both.moves(command):
                    with pytest.raises(SlotsMovedError, match="changes hands"):
                        await both.do(command)
                else:
                    await both.do(command)
        await both.check_union()
        assert shown(target) <= owned(both, target)
        before = await stored(both, source)

        old = both.table.version
        both.commit()
        first, second = rng.sample(both.sides, 2)
        both.order(first)
        for table in (old, old + 1):
            for query in fan_outs(table):
                replies = [await refused(client.ask(query)) for client in both.clients]
                assert any(replies)
        for command in some_commands(rng, 10):
            if both.moves(command) and first is source:
                assert await refused(both.do(command))
        both.order(second)
        assert await stored(both, target) == before
        assert shown(source) <= owned(both, source)
        await both.check()

        await both.forgotten()
        assert shown(source) <= owned(both, source)
        await both.do_some(30)
        await both.check()
        for side in both.sides:
            await (side.end() if rng.random() < 0.5 else side.crash())
            await side.begin(both.ownership(side))
        await both.check()
