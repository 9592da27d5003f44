"""A follower that becomes the leader of a shard."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine.replies import Done
from flowgentic_actors.errors import InvalidRequestError, JournalDamagedError
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard.replication import follower as follower_module
from flowgentic_actors.shard.replication.follower import is_incomplete, read_term
from tests.support.counter import until
from tests.support.replica_pairs import (
    check_equal,
    client_of,
    compacted_leader,
    contents,
    noted,
    pair,
    put,
    value,
    write_some,
)
from tests.support.replicas import Copy, compacted, follows, leads

pytestmark = pytest.mark.anyio

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


async def promoted(follower: Copy, term: int = 2) -> None:
    follower.tell(leads(term, follower=False, allow_single_copy=True))
    await follower.until_it_leads()


async def test_a_write_that_is_sent_again_after_a_promotion_happens_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(place) as (leader, follower, client):
        await client.put("key")
        unsent: list[Any] = []
        monkeypatch.setattr(leader.runtime, "_send", unsent.extend)
        writing = [asyncio.create_task(client.ask(put("key"))) for _ in range(3)]
        await until(lambda: len(unsent) == 3)
        before = await contents(leader.core)
        await follower.until_it_has_all_of(leader)
        position = follower.core.position
        await promoted(follower)
        client.move(follower)
        assert [await reply for reply in writing] == [Done()] * 3
        assert follower.core.position == position  # nothing was done twice
        assert await contents(follower.core) == before
        assert await client.get("key") == value("key")
        await client.put("key-2")
        assert follower.core.position > position


async def test_a_promoted_follower_remembers_what_is_in_the_set_it_copied(place: Path) -> None:
    async with compacted_leader(place) as (leader, _):
        body = Raw(_encode(put("once")))
        call = Call(b"c" * 16, 5, 5, body)
        reply = leader.core.handle(call)
        leader.core.commit()
        async with client_of(leader) as client:
            await write_some(client, 40, seed=3)
        await compacted(leader.core)
        follower = Copy(place / "b")
        leader.tell(leads(2))
        await follower.begin(follows(leader, 2))
        await noted(leader, leads(2))
        await promoted(follower, 3)
        position = follower.core.position
        assert follower.core.handle(call) == reply
        follower.core.commit()
        assert follower.core.position == position
        with pytest.raises(InvalidRequestError, match="was finished before"):
            follower.core.handle(Call(b"c" * 16, 4, 4, body))
        await follower.end()


async def test_copies_take_turns_and_nothing_is_lost(place: Path) -> None:
    copies = [Copy(place / name) for name in "ab"]
    await copies[0].begin(leads(1, follower=False, allow_single_copy=True))
    await copies[0].until_it_leads()
    async with client_of(copies[0]) as client:
        for turn in range(4):
            leader, other = copies if turn % 2 == 0 else reversed(copies)
            part = leads(2 * turn + 2)
            leader.tell(part)
            await other.begin(follows(leader, part.term))
            await noted(leader, part)
            await client.put(f"turn-{turn}")
            await check_equal(leader, other)
            await (leader.crash() if turn % 2 else leader.end())
            await promoted(other, part.term + 1)
            client.move(other)
        for turn in range(4):
            assert await client.get(f"turn-{turn}") == value(f"turn-{turn}")
        await copies[0].end()


async def test_a_copy_that_was_never_whole_does_not_lead(place: Path) -> None:
    follower = Copy(place / "b")
    await follower.begin(follows(str(place / "nobody.sock")))
    await until((follower.folder / follower_module.INCOMPLETE).exists)
    assert await asyncio.to_thread(is_incomplete, follower.folder)
    assert await asyncio.to_thread(read_term, follower.folder) is None
    follower.tell(leads(2))
    await until(lambda: follower.actor._broken)
    assert isinstance(follower.actor._broken, JournalDamagedError)
    await until(lambda: follower.broken)
    assert "was never whole" in follower.broken[0]
    assert not follower.leads
    await follower.end()
