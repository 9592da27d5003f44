"""The follower of a shard, over real sockets and journals: it gets what the leader has."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.errors import ReplicaUnavailableError
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard.peer_protocol import (
    Follow,
    GetSnapshotChunk,
    PeerAnswer,
    PeerRequest,
    SnapshotChunk,
)
from flowgentic_actors.shard.replication import leader as leader_module
from flowgentic_actors.shard.replication.follower import ReplicationFollower, read_term
from tests.support.counter import until
from tests.support.replica_pairs import (
    check_equal,
    client_of,
    compacted_leader,
    noted,
    pair,
    peer_of,
    put,
    value,
    write_some,
)
from tests.support.replicas import LIMIT, Copy, caught_up, compacted, follows, leads

pytestmark = pytest.mark.anyio

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


async def test_a_follower_has_what_the_leader_acknowledges(place: Path) -> None:
    async with pair(place) as (leader, follower, client):
        for number in range(50):
            await client.put(f"key-{number}")
            assert follower.has_all_of(leader)
        await check_equal(leader, follower)
        assert (await client.get("key-7")) == value("key-7")
        assert leader.status.caught_up
        assert leader.status.leads
        assert leader.actor.stats()["replica_lag"] == 0
        assert follower.status.term == 1
        assert not follower.status.leads


async def test_with_ack_node_a_follower_is_not_waited_for_and_gets_there(place: Path) -> None:
    async with pair(place, ack="node", allow_single_copy=True) as (leader, follower, client):
        await follower.crash()
        for number in range(50):
            await client.put(f"key-{number}")
        assert leader.leading.lag > 0
        await follower.begin(follows(leader))
        await check_equal(leader, follower)


async def test_a_follower_from_nothing_gets_a_log_that_was_there_before(place: Path) -> None:
    leader, follower = Copy(place / "a"), Copy(place / "b")
    await leader.begin(leads(follower=False, allow_single_copy=True))
    await leader.until_it_leads()
    async with client_of(leader) as client:
        await write_some(client, 60)
        leader.tell(leads(2))
        await follower.begin(follows(leader, 2))
        await noted(leader, leads(2))
        await write_some(client, 5, seed=1)
        await check_equal(leader, follower)
    await follower.end()
    await leader.end()


async def test_a_follower_from_nothing_gets_the_set_and_the_sessions_in_it(place: Path) -> None:
    async with compacted_leader(place) as (leader, client):
        assert len(leader.core._sessions)
        follower = Copy(place / "b")
        leader.tell(leads(2))
        await follower.begin(follows(leader, 2))
        await noted(leader, leads(2))
        await check_equal(leader, follower)
        assert follower.core._journal.compacted_to == leader.core._journal.compacted_to
        await write_some(client, 5, seed=7)
        await check_equal(leader, follower)
        await follower.end()


async def test_a_copy_that_is_killed_at_any_step_is_whole_in_the_end(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "_SET_PIECE", 6000)
    monkeypatch.setattr(leader_module, "PIECE", 6000)
    left = 0

    async def ask(self: ReplicationFollower, question: PeerRequest) -> PeerAnswer:
        nonlocal left
        left -= 1
        if not left:
            await asyncio.sleep(math.inf)
        return await real(self, question)

    real = ReplicationFollower._ask
    monkeypatch.setattr(ReplicationFollower, "_ask", ask)
    async with compacted_leader(place) as (leader, _):
        leader.tell(leads(2))
        follower = Copy(place / "b")
        number = 0

        def stopped_or_done() -> bool:
            return left <= 0 or leader.leading.caught_up

        while not leader.leading.caught_up:
            number += 1
            left = number
            await follower.begin(follows(leader, 2))
            await until(stopped_or_done)
            if not leader.leading.caught_up:
                await follower.crash()
        assert number > 5
        await check_equal(leader, follower)
        await follower.end()


async def test_a_follower_that_restarts_goes_on_where_it_was(place: Path) -> None:
    async with pair(place) as (leader, follower, client):
        await write_some(client, 20)
        for end in (follower.end, follower.crash):
            await end()
            before = await asyncio.to_thread(follower.folder.stat)
            await follower.begin(follows(leader))
            await client.put("more")
            await check_equal(leader, follower)
            after = await asyncio.to_thread(follower.folder.stat)
            assert after.st_ino == before.st_ino  # it was not made anew


async def test_a_follower_that_is_too_far_behind_starts_over_in_another_term(place: Path) -> None:
    async with pair(place, ack="node", allow_single_copy=True) as (leader, follower, client):
        await follower.crash()
        for seed in range(2):
            await write_some(client, 40, seed)
            await compacted(leader.core)
        leader.leading._recent.clear()
        await follower.begin(follows(leader))
        await until(lambda: leader.leading.resync_required)
        assert leader.status.sent_back
        term = await asyncio.to_thread(read_term, follower.folder)
        assert term == 1  # the host still counts on what it has
        leader.tell(leads(2, allow_single_copy=True))
        follower.tell(follows(leader, 2))
        await until(lambda: leader.leading._term == 2)
        await check_equal(leader, follower)


async def test_nothing_is_acknowledged_while_the_other_copy_has_to_be_made_anew(
    place: Path,
) -> None:
    async with pair(place, allow_single_copy=True) as (leader, _, client), peer_of(leader) as ask:
        await client.put("before")
        await ask(Follow(1, leader.core.position + 1))
        with pytest.raises(ReplicaUnavailableError, match="made anew"):
            await client.put("meanwhile", timeout=1)
        leader.tell(leads(2, allow_single_copy=True))
        await until(lambda: leader.leading._term == 2)
        await client.put("after")


async def test_the_log_stays_while_a_copy_of_it_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with compacted_leader(place) as (leader, client), peer_of(leader) as ask:
        started = asyncio.Event()
        monkeypatch.setattr(leader.core._compactor, "start", started.set)
        monkeypatch.setattr(leader.core._maintenance, "_look_after", 1)
        leader.tell(leads(2, allow_single_copy=True))
        await until(lambda: leader.leading._term == 2)
        piece = await ask(GetSnapshotChunk(2, 0))
        assert isinstance(piece, SnapshotChunk)
        assert piece.size >= len(piece.data) > 0
        await write_some(client, 60, seed=5, size=6000)
        assert not started.is_set()
        await ask(Follow(2, leader.core.position))
        await caught_up(leader)
        leader.tell(leads(3, follower=False, allow_single_copy=True))
        await write_some(client, 5, seed=6)
        assert started.is_set()


async def test_a_set_that_changes_while_it_is_copied_is_copied_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "_SET_PIECE", 4000)
    async with compacted_leader(place) as (leader, client):
        await write_some(client, 40, seed=9)
        leader.tell(leads(2, allow_single_copy=True))
        changed = asyncio.Event()

        async def ask(self: ReplicationFollower, question: PeerRequest) -> PeerAnswer:
            if isinstance(question, GetSnapshotChunk) and question.offset and not changed.is_set():
                changed.set()
                await compacted(leader.core)  # it had begun before
            return await real(self, question)

        real = ReplicationFollower._ask
        monkeypatch.setattr(ReplicationFollower, "_ask", ask)
        follower = Copy(place / "b")
        await follower.begin(follows(leader, 2))
        await caught_up(leader)
        assert changed.is_set()
        await check_equal(leader, follower)
        assert not follower.broken
        await follower.end()


async def test_the_largest_write_gets_to_the_follower_whatever_is_before_it(place: Path) -> None:
    async with pair(place, ack="node", allow_single_copy=True, segment_bytes=16 << 20) as opened:
        leader, follower, client = opened
        await follower.crash()
        small = [client.ask(put(f"small-{number}", 20_000)) for number in range(13)]
        await asyncio.gather(*small)
        largest = LIMIT - len(_encode(put("largest", 0))) - 16
        await client.put("largest", largest)
        await follower.begin(follows(leader))
        await check_equal(leader, follower)
