"""The leader of a shard, over real sockets and journals: it waits for its follower."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowgentic_actors.errors import (
    ActorUnavailableError,
    InvalidRequestError,
    OutcomeUnknownError,
    ReplicaUnavailableError,
)
from flowgentic_actors.shard.peer_protocol import Follow, GetSnapshotChunk, LogEntries, encode_peer
from flowgentic_actors.shard.replication import leader as leader_module
from flowgentic_actors.wire.async_connection import AsyncConnection
from tests.support.counter import PATIENCE, SECRET, until
from tests.support.replica_pairs import check_equal, client_of, noted, pair, peer_of, value
from tests.support.replicas import LIMIT, Copy, caught_up, follows, leads

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- waiting for the follower


async def test_without_its_follower_writes_wait_unapplied_and_reads_are_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "SILENCE", 0.4)
    async with pair(place) as (leader, follower, client):
        await client.put("key")
        await follower.crash()
        await until(lambda: not leader.leading.follows)
        position = leader.core.position
        waiting = [asyncio.create_task(client.put("key", size)) for size in (1, 2, 3)]
        given_up = asyncio.create_task(client.put("given up"))
        with pytest.raises(ReplicaUnavailableError, match=r"request_timeout.*does not answer"):
            await client.put("refused", timeout=1.0)
        given_up.cancel()
        assert await client.get("key") == value("key")
        assert leader.core.position == position
        monkeypatch.setattr(leader_module, "SILENCE", PATIENCE)
        await follower.begin(follows(leader))
        await asyncio.gather(*waiting)
        assert await client.get("key") == value("key", 3)  # in the order in which they were sent
        assert [await client.get(key) for key in ("refused", "given up")] == [None, None]
        await check_equal(leader, follower)


async def test_writes_that_wait_unapplied_are_bounded_by_the_mailbox(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "SILENCE", 0.2)
    async with pair(place) as (leader, follower, client):
        await follower.crash()
        await until(lambda: not leader.leading.follows)
        mailbox = leader.runtime._mailbox
        monkeypatch.setattr(mailbox, "_max_bytes", 200_000)
        waiting = [asyncio.create_task(client.put(f"key-{n}", 20_000)) for n in range(300)]
        await until(lambda: mailbox.full)
        await asyncio.sleep(0.2)
        assert mailbox.bytes < 3_000_000  # half of it: the bound, and what one frame brings
        monkeypatch.setattr(leader_module, "SILENCE", PATIENCE)
        await follower.begin(follows(leader))
        await asyncio.gather(*waiting)
        assert await client.get("key-299") == value("key-299", 20_000)
        assert mailbox.bytes == len(mailbox) == 0
        assert not mailbox.full


@pytest.mark.parametrize("then", ["another follower", "one copy is enough", "no other node"])
async def test_what_becomes_of_writes_under_way_when_the_follower_is_lost(
    place: Path, then: str
) -> None:
    async with pair(place) as (leader, follower, client):
        await follower.crash()
        writing = asyncio.create_task(client.put("key"))
        reading = asyncio.create_task(client.get("key"))
        await until(lambda: leader.leading._waiting)
        assert not writing.done()
        if then == "no other node":
            leader.tell(leads(2, follower=False))
            with pytest.raises(OutcomeUnknownError, match="no other"):
                await writing
            with pytest.raises(OutcomeUnknownError):  # a client asks again: this one is simple
                await reading
            with pytest.raises(ReplicaUnavailableError, match="no other node"):
                await client.put("refused")
            assert await client.get("key") == value("key")
        elif then == "one copy is enough":
            leader.tell(leads(2, allow_single_copy=True))
            await writing
            assert await reading == value("key")
        else:
            leader.tell(leads(2))
            await until(lambda: leader.leading._term == 2)
            later = asyncio.create_task(client.put("later"))
            reading_too = asyncio.create_task(client.get("key"))
            await asyncio.sleep(0.2)
            assert not any(t.done() for t in (writing, reading, later, reading_too))
        allow_single_copy = then == "one copy is enough"
        other = Copy(place / "c")
        await other.begin(follows(leader, 2))
        leader.tell(leads(2, allow_single_copy=allow_single_copy))
        await noted(leader, leads(2, allow_single_copy=allow_single_copy))
        if then == "another follower":
            await asyncio.gather(writing, later)
            assert await reading == await reading_too == value("key")
        await client.put("more")
        await check_equal(leader, other)
        await other.end()


async def test_nothing_is_acknowledged_before_the_host_has_noted_the_follower(place: Path) -> None:
    """It would not promote it yet, if the leader were lost now."""
    leader, follower = Copy(place / "a"), Copy(place / "b")
    await leader.begin(leads())
    await follower.begin(follows(leader))
    await caught_up(leader)
    async with client_of(leader) as client:
        writing = asyncio.create_task(client.put("key"))
        await until(lambda: follower.core.position and follower.has_all_of(leader))
        await asyncio.sleep(0.1)
        assert not writing.done()
        leader.tell(leads(follower_in_sync=True))
        await writing
    await follower.end()
    await leader.end()


async def test_a_leader_that_goes_on_alone_waits_for_no_follower_that_went_away(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "SILENCE", 0.4)
    leader = Copy(place / "a")
    await leader.begin(leads(allow_single_copy=True))
    await leader.until_it_leads()
    async with client_of(leader) as client, peer_of(leader) as ask:
        await client.put("key")
        assert isinstance(await ask(Follow(1, 0)), LogEntries)
        writing = asyncio.create_task(client.put("waits"))
        await until(lambda: leader.leading._waiting)
        await writing  # once the one that asked is silent
        assert not leader.leading.caught_up
        await client.put("more")
    await leader.end()


async def test_after_its_restart_a_leader_acknowledges_nothing_alone(place: Path) -> None:
    async with pair(place, allow_single_copy=True) as (leader, follower, client):
        await client.put("key")
        await follower.crash()
        await leader.crash()
        await leader.begin(leads(allow_single_copy=True, follower_in_sync=True))
        await leader.until_it_leads()
        assert leader.leading.caught_up
        writing = asyncio.create_task(client.put("joint"))
        await until(lambda: leader.leading._waiting)
        assert not writing.done()
        await follower.begin(follows(leader))
        await writing
        await check_equal(leader, follower)


# ---------------------------------------------------------------------- who may ask


async def test_peers_of_another_term_and_without_a_leader_are_refused(place: Path) -> None:
    async with pair(place) as (leader, follower, client), peer_of(leader) as ask:
        for question in (Follow(2, 0), Follow(0, 0), GetSnapshotChunk(2, 0)):
            with pytest.raises(InvalidRequestError, match="no follower of term"):
                await ask(question)
        async with peer_of(follower) as ask_follower:
            with pytest.raises(InvalidRequestError, match="leads nobody"):
                await ask_follower(Follow(1, 0))
        beyond = leader.core.position + 1
        assert await ask(Follow(1, beyond)) == LogEntries(beyond, [])
        assert leader.status.sent_back
        leader.tell(leads(2))
        follower.tell(follows(leader, 2))
        await noted(leader, leads(2))
        await client.put("key")
        leader.tell(leads(3, follower=False, allow_single_copy=True))
        await until(lambda: leader.leading._term == 3)
        with pytest.raises(InvalidRequestError, match="no follower of term 3"):
            await ask(Follow(3, 0))


async def test_what_is_no_question_is_refused_and_the_leader_goes_on(place: Path) -> None:
    leader = Copy(place / "a")
    await leader.begin(leads(follower=False, allow_single_copy=True))
    await leader.until_it_leads()
    connection = AsyncConnection(leader.address, SECRET, "the leader", LIMIT, "peer")
    for body in (b"\xc0", encode_peer([9, 1]), encode_peer([1, 1, -5]), encode_peer("text")):
        with pytest.raises(InvalidRequestError, match="not a question"):
            await connection.request(body, PATIENCE)
    await connection.close()
    async with client_of(leader) as client:
        await client.put("key")
    await leader.end()


async def test_a_follower_takes_no_clients(place: Path) -> None:
    async with pair(place) as (_, follower, _), client_of(follower) as client:
        with pytest.raises(ActorUnavailableError, match="could not be reached"):
            await client.put("key", timeout=0.5)
        assert follower.core.position == 0


@pytest.mark.parametrize("turns", range(4))
async def test_a_copy_that_ends_while_it_begins_leaves_its_folder(place: Path, turns: int) -> None:
    async with pair(place) as (leader, follower, client):
        await client.put("key")
        await follower.end()
        await follower.begin(follows(leader))
        for _ in range(turns):
            await asyncio.sleep(0)
        await follower.actor.drained()
        core = follower.core_or_none
        await asyncio.sleep(0.1)
        assert follower.core_or_none is core  # what it was told and had not begun stays undone
        await asyncio.to_thread(follower.actor.close)
        await follower.server.close()
        await follower.begin(follows(leader))
        await check_equal(leader, follower)
        assert not follower.broken


async def test_a_follower_goes_with_its_leader_to_another_address(place: Path) -> None:
    async with pair(place) as (leader, follower, client):
        await leader.crash()
        leader.address = str(place / "elsewhere.sock")
        await leader.begin(leads(follower_in_sync=True))
        follower.tell(follows(leader))
        await leader.until_it_leads()
        client.move(leader)
        await client.put("key")
        await check_equal(leader, follower)
