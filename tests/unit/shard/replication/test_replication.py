"""Two copies of a shard: one leads, one follows, over real sockets and journals."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from flowgentic_actors.actors.actor import Call, Postponed
from flowgentic_actors.engine.commands import (
    Command,
    GetItem,
    ListCheckpoints,
    PutItem,
    SearchItems,
)
from flowgentic_actors.engine.replies import Done, ItemReply, Reply
from flowgentic_actors.errors import (
    ActorUnavailableError,
    InvalidRequestError,
    JournalDamagedError,
    OutcomeUnknownError,
    ReplicaUnavailableError,
)
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.peer_protocol import (
    Follow,
    GetSnapshotChunk,
    LogEntries,
    PeerAnswer,
    PeerRequest,
    SnapshotChunk,
    decode_answer,
    encode_peer,
)
from flowgentic_actors.shard.replication import follower as follower_module
from flowgentic_actors.shard.replication import leader as leader_module
from flowgentic_actors.shard.replication.follower import (
    ReplicationFollower,
    is_incomplete,
    read_term,
)
from flowgentic_actors.shard.replication.replica_actor import ReplicaAssignment
from flowgentic_actors.wire.async_connection import AsyncConnection
from tests.support.counter import PATIENCE, SECRET, until
from tests.support.replicas import LIMIT, Copy, caught_up, compacted, follows, leads
from tests.support.shards import some_commands

pytestmark = pytest.mark.anyio


_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


@pytest.fixture
def place() -> Any:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def compaction_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are compacted by `compacted` alone, which does it at once."""
    monkeypatch.setattr(Compactor, "start", lambda self: None)


class Client:
    """Asks whichever copy leads, over its socket."""

    def __init__(self, copy: Copy) -> None:
        self.connection = AsyncConnection(copy.address, SECRET, copy.folder.name, LIMIT)

    async def ask(self, command: Command, timeout: float = PATIENCE) -> Reply:
        return _replies.decode(await self.connection.request(_encode(command), timeout))

    async def put(self, key: str, size: int = 100, timeout: float = PATIENCE) -> None:
        assert await self.ask(put(key, size), timeout) == Done()

    async def get(self, key: str) -> bytes | None:
        reply = await self.ask(GetItem(("n",), key))
        assert isinstance(reply, ItemReply)
        return None if reply.row is None else reply.row.value[1]

    def move(self, copy: Copy) -> None:
        self.connection.move(copy.address)


def put(key: str, size: int = 100) -> PutItem:
    return PutItem(("n",), key, ("msgpack", value(key, size)))


def value(key: str, size: int = 100) -> bytes:
    return _encode({"key": key, "pad": "x" * size})


@asynccontextmanager
async def client_of(copy: Copy) -> AsyncIterator[Client]:
    client = Client(copy)
    try:
        yield client
    finally:
        await client.connection.close()


@asynccontextmanager
async def pair(
    place: Path, *, allow_single_copy: bool = False, ack: str = "replica", **arguments: str
) -> AsyncIterator[tuple[Copy, Copy, Client]]:
    """A leader, a follower that has caught up, of which the host has heard, and a client."""
    leader, follower = (Copy(place / name, ack, **arguments) for name in ("a", "b"))
    await leader.begin(leads(allow_single_copy=allow_single_copy))
    await follower.begin(follows(leader))
    await caught_up(leader)
    leader.tell(leads(allow_single_copy=allow_single_copy, follower_in_sync=True))
    await until(lambda: leader.leading._noted)
    async with client_of(leader) as client:
        try:
            yield leader, follower, client
        finally:
            await client.connection.close()
            await follower.end()
            await leader.end()
    assert not leader.broken
    assert not follower.broken


async def noted(leader: Copy, part: ReplicaAssignment) -> None:
    """What the host does when it hears that a follower has caught up."""
    await leader.until_it_leads()
    await until(lambda: leader.leading._term == part.term)  # what is told takes a moment
    await caught_up(leader)
    leader.tell(msgspec.structs.replace(part, follower_in_sync=True))
    await until(lambda: leader.leading._noted)


@asynccontextmanager
async def peer_of(leader: Copy) -> AsyncIterator[Any]:
    """Asks a leader what a follower asks."""
    connection = AsyncConnection(leader.address, SECRET, "the leader", 2 * LIMIT, "peer")

    async def ask(question: PeerRequest) -> PeerAnswer:
        return decode_answer.decode(await connection.request(encode_peer(question), PATIENCE))

    try:
        yield ask
    finally:
        await connection.close()


# ---------------------------------------------------------------------- what copies hold


async def entries_of(core: ShardActor, lsn: int) -> list[tuple[int, bytes]]:
    """The journal's entries from an LSN on."""
    found: list[tuple[int, bytes]] = []
    while lsn < core.position:
        some, lsn = await core._worker.submit(core._journal.scan, lsn, 1 << 20)
        found += some
    return found


async def contents(core: ShardActor) -> list[Any]:
    """Everything that a shard answers, and the writes that it remembers."""
    found: list[Any] = []
    for query in (ListCheckpoints(), SearchItems((), b"", 4096, 0)):
        reply = core.handle(Call(b"r" * 16, 0, 0, Raw(_encode(query))))
        assert not isinstance(reply, Postponed)
        found.append(_replies.decode(await reply if isinstance(reply, asyncio.Future) else reply))
    sessions = [(s.session, s.low, s.replies) for s in core._sessions.states()]
    return [*found, sorted(sessions)]


async def check_equal(leader: Copy, follower: Copy) -> None:
    """The follower's journal and shard are the leader's."""
    await follower.until_it_has_all_of(leader)
    start = max(core._journal.compacted_to for core in (leader.core, follower.core))
    assert await entries_of(follower.core, start) == await entries_of(leader.core, start)
    assert await contents(follower.core) == await contents(leader.core)


async def write_some(client: Client, count: int, seed: int = 0, size: int = 3000) -> None:
    """Writes of every kind, and large ones that overwrite each other."""
    for number, command in enumerate(some_commands(random.Random(seed), count)):
        await client.ask(command)
        await client.put(f"large-{number % 5}", size)


# ---------------------------------------------------------------------- following


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


@asynccontextmanager
async def compacted_leader(place: Path) -> AsyncIterator[tuple[Copy, Client]]:
    """A leader without a follower, with two sets, so that its log does not begin at 0."""
    leader = Copy(place / "a")
    await leader.begin(leads(follower=False, allow_single_copy=True))
    await leader.until_it_leads()
    async with client_of(leader) as client:
        for seed in range(2):
            await write_some(client, 40, seed)
            await compacted(leader.core)
        assert leader.core._journal.log_from > 0
        yield leader, client
    await leader.end()
    assert not leader.broken


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
    async with pair(
        place, ack="node", allow_single_copy=True, segment_bytes=str(16 << 20)
    ) as opened:
        leader, follower, client = opened
        await follower.crash()
        small = [client.ask(put(f"small-{number}", 20_000)) for number in range(13)]
        await asyncio.gather(*small)
        largest = LIMIT - len(_encode(put("largest", 0))) - 16
        await client.put("largest", largest)
        await follower.begin(follows(leader))
        await check_equal(leader, follower)


# ---------------------------------------------------------------------- taking over


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


# ---------------------------------------------------------------------- anything in any order

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1000)),
        st.tuples(
            st.sampled_from(
                [
                    "end follower",
                    "crash follower",
                    "crash leader",
                    "compact leader",
                    "compact follower",
                    "new term",
                    "promote",
                ]
            ),
            st.just(0),
        ),
    ),
    max_size=10,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_whatever_happens_both_copies_are_equal_in_the_end(
    done: Sequence[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(happen(Path(folder), done))


async def happen(place: Path, done: Sequence[tuple[str, int]]) -> None:
    leader, follower = (Copy(place / name) for name in "ab")
    term = 1
    await leader.begin(leads(term))
    await follower.begin(follows(leader, term))
    await noted(leader, leads(term))
    async with client_of(leader) as client:
        for what, number in done:
            match what:
                case "write":
                    await write_some(client, 12, number, size=6000)
                case "end follower" | "crash follower":
                    await (follower.end() if what == "end follower" else follower.crash())
                    await follower.begin(follows(leader, term))
                case "crash leader":
                    await leader.crash()
                    await leader.begin(leads(term, follower_in_sync=True))
                    await leader.until_it_leads()
                case "compact leader":
                    await compacted(leader.core)
                case "compact follower":
                    await follower.until_it_has_all_of(leader)
                    await compacted(follower.core)
                case "new term":
                    term += 1
                    leader.tell(leads(term))
                    follower.tell(follows(leader, term))
                    await noted(leader, leads(term))
                case "promote":
                    await follower.until_it_has_all_of(leader)
                    term += 1
                    await leader.crash()
                    leader, follower = follower, leader
                    leader.tell(leads(term))
                    await leader.until_it_leads()
                    await follower.begin(follows(leader, term))
                    await noted(leader, leads(term))
                    client.move(leader)
        await client.put("last")
        await check_equal(leader, follower)
    await follower.end()
    await leader.end()
    assert not leader.broken
    assert not follower.broken
