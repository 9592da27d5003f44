"""Two copies of a shard, one of which leads, and clients."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from flowgentic_actors.acknowledgement import AckName
from flowgentic_actors.actors.actor import Call, Postponed
from flowgentic_actors.engine.commands import (
    Command,
    GetItem,
    ListCheckpoints,
    PutItem,
    SearchItems,
)
from flowgentic_actors.engine.replies import Done, ItemReply, Reply
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.peer_protocol import (
    PeerAnswer,
    PeerRequest,
    decode_answer,
    encode_peer,
)
from flowgentic_actors.wire.async_connection import AsyncConnection
from tests.support.counter import PATIENCE, SECRET, until
from tests.support.replicas import LIMIT, Copy, caught_up, compacted, follows, leads
from tests.support.shards import some_commands

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


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
    place: Path, *, allow_single_copy: bool = False, ack: AckName = "replica", **changes: Any
) -> AsyncIterator[tuple[Copy, Copy, Client]]:
    """A leader, a follower that has caught up, of which the host has heard, and a client."""
    leader, follower = (Copy(place / name, ack, **changes) for name in ("a", "b"))
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


async def noted(leader: Copy, part: Assignment) -> None:
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
