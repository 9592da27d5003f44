"""Moves of slots between shards that have two copies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowgentic_actors.engine.commands import PutItem
from flowgentic_actors.shard.migration import target as target_module
from flowgentic_actors.shard.migration.ownership import SlotOwnership
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from tests.support.counter import until
from tests.support.migrating_shards import BLOB, RATE, Side, Two, namespace_in, owned, stored, two
from tests.support.replicas import Copy, caught_up, follows, leads

pytestmark = pytest.mark.anyio


class LeadingSide(Side):
    """A target of which there is to be a second copy."""

    def __init__(self, copy: Copy) -> None:
        super().__init__(copy.folder, 1)
        self.copy = copy
        self.part = leads(allow_single_copy=True)

    async def begin(self, ownership: SlotOwnership | None) -> None:
        self.part = msgspec.structs.replace(self.part, ownership=ownership)
        if not hasattr(self.copy, "actor"):
            await self.copy.begin(self.part)
        self.copy.tell(self.part)
        await self.copy.until_it_leads()
        self.core, self.ownership, self.serves = self.copy.core, ownership, True

    def tell(self, ownership: SlotOwnership | None) -> None:
        if ownership != self.ownership:
            self.ownership, self.part = (
                ownership,
                msgspec.structs.replace(self.part, ownership=ownership),
            )
            self.copy.tell(self.part)

    async def end(self) -> None:
        self.serves = False
        await self.copy.end()


@asynccontextmanager
async def with_copies(place: Path, **changes: Any) -> AsyncIterator[tuple[Two, LeadingSide, Copy]]:
    """A target that leads, with a follower that has caught up."""
    both = Two(place)
    target = LeadingSide(Copy(place / "b", "node", **changes))
    both.target, both.sides = target, (both.source, target)
    await both.begin()
    follower = Copy(place / "c", "node", **changes)
    await follower.begin(follows(target.copy))
    await caught_up(target.copy)
    try:
        yield both, target, follower
    finally:
        await both.end()
        await follower.end()


async def test_slots_are_taken_over_when_the_second_copy_has_them(place: Path) -> None:
    async with with_copies(place) as (both, target, follower):
        await both.do_some(200)
        await follower.crash()
        both.start_move()
        await both.near()
        both.hold()
        end = both.source.core.position
        await until(lambda: target.take("position") == end)
        await asyncio.sleep(0.2)
        assert target.take("done") == target.take("failed") == 0
        await follower.begin(follows(target.copy))
        await both.done()
        before = await stored(both, both.source)
        both.commit()
        both.order(both.source)
        await target.copy.crash()

        promoted = LeadingSide(follower)
        promoted.part = leads(2, follower=False, allow_single_copy=True)
        await promoted.begin(both.ownership(target))
        both.sides = both.source, promoted
        both.clients[1].connection.move(promoted.address)
        assert await stored(both, promoted) == before
        await both.check()
        await both.forgotten()
        both.sides = (both.source,)  # type: ignore[assignment]


async def test_a_second_copy_that_is_always_a_little_behind_is_good_enough(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to have what was taken over, and not all that was written since."""
    monkeypatch.setattr(target_module, "_WHOLE", 1.0)
    send = ReplicationLeader._send_from

    def late(self: ReplicationLeader, position: int, answer: Callable[[bytes], None]) -> None:
        asyncio.get_running_loop().call_later(0.1, send, self, position, answer)

    monkeypatch.setattr(ReplicationLeader, "_send_from", late)
    async with with_copies(place) as (both, target, _):
        await both.do_some(50)
        own = namespace_in(owned(both, target))

        async def write() -> None:
            while True:
                await both.do(PutItem(own, "k", BLOB))

        writing = asyncio.create_task(write())
        try:
            both.start_move()
            await both.near()
            both.hold()
            await both.done()
        finally:
            writing.cancel()
            await asyncio.wait([writing])


async def test_slots_that_are_held_for_one_attempt_end_no_other_one(place: Path) -> None:
    """The source may go on in between, and write what the other one would not hear of."""
    async with two(place) as both:
        source, target = both.sides

        def holds() -> tuple[int, int]:
            source_module = source.core.migrator._source
            assert source_module is not None
            return source_module.frozen_for, source_module.held_from

        await both.do_some(50)
        assert holds() == (0, 0)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        assert holds() == (both.number, source.core.position)
        assert target.take("position") == source.core.position

        both.host.moves.give_up(both.number, "again")
        both.number = both.host.moves.begin(0, 1, both.slots, RATE)
        both.order(target)
        await until(lambda: target.take("move") == both.number and target.take("near"))
        await asyncio.sleep(0.2)
        assert holds()[0] != both.number
        assert not target.take("done")
        stay = owned(both, source) - set(both.slots)
        await both.do(PutItem(namespace_in(stay), "k", BLOB))
        both.hold()
        assert holds() == (both.number, source.core.position)
        await both.done()
        assert target.take("position") == source.core.position

        both.give_up()
        assert holds()[0] == 0
