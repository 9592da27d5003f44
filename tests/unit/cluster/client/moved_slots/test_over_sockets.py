"""Calls over sockets to shards that refuse moved slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import Description, ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine.commands import PutItem
from flowgentic_actors.errors import OutcomeUnknownError, SlotsMovedError
from flowgentic_actors.wire.addresses import Unreachable
from flowgentic_actors.wire.messages import Failure, Request, ToClient
from flowgentic_actors.wire.server import Server
from tests.support.blocking_calls import elsewhere
from tests.support.counter import SECRET, Counter, command, until
from tests.support.moved_slots import both
from tests.support.wire_peer import LIMIT, peer_at

pytestmark = pytest.mark.anyio


class Moving(Counter):
    """Refuses as often as it is told, then answers every command."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals
        self.calls = 0
        self.before: Callable[[], None] = lambda: None

    def handle(self, call: Any) -> bytes:
        self.calls += 1
        self.before()
        if self.calls <= self.refusals:
            raise SlotsMovedError("slot 7 is another shard's")
        return b"\x91\x01"  # `Done`


class Shards:
    """Actors that are served at some paths."""

    def __init__(self, paths: Sequence[Path], actors: Sequence[Moving]) -> None:
        self._served = [
            (path, ActorRuntime(actor, Mailbox(100, 1 << 20), lambda _: None, LIMIT))
            for path, actor in zip(paths, actors, strict=True)
        ]
        self._servers: list[tuple[ActorRuntime, Server]] = []

    async def __aenter__(self) -> None:
        for number, (where, runtime) in enumerate(self._served):
            server = Server(runtime, SECRET, f"shard-{number}", 1, LIMIT)
            await server.listen(str(where))
            self._servers.append((runtime, server))

    async def __aexit__(self, *_: object) -> None:
        for runtime, server in self._servers:
            await runtime.drain(server)


def client_of(paths: Sequence[Path], table: SlotTable) -> RemoteClient:
    places = ShardMap(
        1, table, tuple(ShardLocation(f"shard-{n}", "", "") for n in range(len(paths)))
    )
    descriptor = Descriptor(name="c", host="", secret=SECRET, max_message_bytes=LIMIT)
    client = RemoteClient(descriptor, Description("", places, LIMIT), 10.0, 2)
    for ref, where in zip(client._actors, paths, strict=True):
        ref.move(str(where))
    return client


async def test_an_actors_refusal_arrives_and_the_other_shard_is_asked(path: Path) -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    paths = [path, path.with_suffix(".b")]
    home = old.of_namespace(("a", "b"))
    actors = [Moving(1000), Moving(1000)]
    actors[1 - home].refusals = 1  # it does not have it yet when it is asked first
    put = PutItem(("a", "b"), "k", ("", b""))
    async with Shards(paths, actors):
        client = client_of(paths, old)
        asking = asyncio.ensure_future(client.ask(put))
        await until(lambda: actors[home].calls)
        client.table = new
        client._notifier.tell()
        await asking
        assert actors[home].calls == 1
        assert actors[1 - home].calls == 2
        (answer,) = await client.ask_each([(home, put)])
        assert not isinstance(answer, Exception)
        await client.close()


def test_the_same_for_calls_that_block(path: Path) -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    paths = [path, path.with_suffix(".b")]
    home = old.of_namespace(("a", "b"))
    actors = [Moving(1000), Moving(1000)]
    actors[1 - home].refusals = 1
    with elsewhere(Shards(paths, actors)):
        client = client_of(paths, old)
        actors[home].before = lambda: setattr(client, "table", new)
        client.ask_sync(PutItem(("a", "b"), "k", ("", b"")))
        assert actors[home].calls == 1
        assert actors[1 - home].calls == 2
        asyncio.run(client.close())


async def ask_actor(ref: ActorRef, *, blocking: bool) -> Raw:
    if blocking:
        return await asyncio.to_thread(ref.ask_sync, command("add", 1), 10.0)
    return await ref.ask(command("add", 1), 10.0)


def refuse_the_second_time(peer: Any) -> Callable[[list[Request]], list[ToClient]]:
    def answer(requests: list[Request]) -> list[ToClient]:
        if requests and len(peer.requests) == 1:
            peer.hang_up()
            return []
        return [Failure(request.seq, "moved", "slot 7") for request in requests]

    return answer


@both
async def test_a_refusal_is_definite_when_a_request_was_sent_before(
    path: Path, blocking: bool
) -> None:
    async with peer_at(path) as peer:
        peer.answer = refuse_the_second_time(peer)
        ref = ActorRef("peer", str(path), SECRET, LIMIT, 1)
        with pytest.raises(SlotsMovedError, match="peer: slot 7"):
            await ask_actor(ref, blocking=blocking)
        assert len(peer.requests) == 2
        await ref.close()


@both
async def test_of_an_actor_that_has_ended_only_what_was_never_sent_goes_elsewhere(
    path: Path, blocking: bool
) -> None:
    gone = Unreachable("its slots are other shards' now", moved=True)

    async with peer_at(path) as peer:
        peer.answer = lambda requests: []
        ref = ActorRef("peer", str(path), SECRET, LIMIT, 1)
        asking = asyncio.ensure_future(ask_actor(ref, blocking=blocking))
        await until(lambda: peer.requests)
        ref.move(gone)
        with pytest.raises(OutcomeUnknownError, match="may have happened"):
            await asking
        with pytest.raises(SlotsMovedError, match="Nothing was sent"):
            await ask_actor(ref, blocking=blocking)
        await ref.close()
