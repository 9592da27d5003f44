"""How the program of another node comes by what it has to know."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.pretty import pretty_repr

from flowgentic_actors.cluster.nodes.join_protocol import (
    Join,
    JoinServer,
    NodeSpec,
    Ticket,
    join,
    take_ticket,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.shard_limits import taken_from
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import ActorSettings
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.handshake import new_secret
from flowgentic_actors.wire.identity import server_context
from flowgentic_actors.wire.server import Server
from tests.support.counter import PATIENCE, SECRET, supervisor_settings, until

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
IDENTITY, OTHER = new_identity(), new_identity()


CLUSTER = taken_from(
    MemoryConfig(mode="distributed"),
    HostSpec,
    name="cluster",
    folder="/scratch/cluster",
    memory="/memory",
    persist=True,
    instance="1",
    job="",
    secret=SECRET,
    actors=1,
    actor=ActorSettings(),
    supervision=supervisor_settings(),
    shared=SharedSettings(namespace_depth=2),
    opened=0.0,
    identity=IDENTITY,
)


def spec_of(node: str) -> NodeSpec:
    return NodeSpec(
        cluster=CLUSTER,
        folder=f"/scratch/{node}",
        manifest=b"{}",
        generation="generation-1",
        identity=IDENTITY,
        host=TcpAddress(HOST, 1, IDENTITY.certificate),
        host_id="1234",
        actor=ActorSettings(),
        lease=2.0,
    )


class Desk:
    """A host that takes nodes in, each once."""

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.join_server = JoinServer(self._take_in)
        self.address = TcpAddress(HOST, 1, IDENTITY.certificate)

    def _take_in(self, who: Join) -> None:
        if who.node in self.joined:
            raise ClusterOpenError(f"{who.node} has joined already")
        self.joined.append(who.node)

    def ticket(self, node: str = "node-1", patience: float = PATIENCE) -> Ticket:
        return Ticket(node, (self.address,), self.join_server.secret, patience)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Desk]:
    host = Desk()
    context = await asyncio.to_thread(server_context, IDENTITY, folder)
    server = Server(host.join_server, host.join_server.secret, "the host", 0, 4 << 20)
    port = await server.listen_tcp(HOST, context)
    host.address = TcpAddress(HOST, port, IDENTITY.certificate)
    try:
        yield host
    finally:
        await server.close()


async def joining(ticket: Ticket) -> NodeSpec:
    who = Join(ticket.node, "machine")
    return await asyncio.to_thread(join, ticket, who)


@contextmanager
def pipe_with(line: bytes) -> Iterator[int]:
    there, here = os.pipe()
    try:
        os.write(here, line)
        os.close(here)
        yield there
    finally:
        os.close(there)


def test_a_ticket_goes_through_a_pipe_and_shows_no_secret() -> None:
    ticket = Ticket("node-1", (TcpAddress(HOST, 77, "certificate"),), new_secret(), 3.0)
    with pipe_with(ticket.write().reveal().encode()) as there:
        assert take_ticket(there) == ticket
    for thing in (ticket, ticket.write(), spec_of("node-1")):
        shown = f"{thing!r} {pretty_repr(thing)}"
        assert "<secret>" in shown
        for secret in (ticket.secret.reveal(), SECRET.reveal(), IDENTITY.key.reveal()):
            assert repr(secret)[2:-1] not in shown
            assert "PRIVATE" not in shown


@pytest.mark.parametrize("line", [b"", b"\n", b"not json\n", b"{}\n"])
def test_without_a_ticket_the_program_says_who_starts_it(line: bytes) -> None:
    with pipe_with(line) as there, pytest.raises(ClusterOpenError, match="a cluster's host"):
        take_ticket(there)


async def test_a_node_waits_for_its_spec_and_a_late_one_has_it_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as host:
        early = asyncio.create_task(joining(host.ticket("node-1")))
        await until(lambda: host.joined == ["node-1"])
        await asyncio.sleep(0.05)
        assert not early.done()
        host.join_server.release(spec_of)
        assert await early == spec_of("node-1")
        assert await joining(host.ticket("node-2")) == spec_of("node-2")


async def test_a_ticket_counts_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as host:
        host.join_server.release(spec_of)
        await joining(host.ticket())
        with pytest.raises(ClusterOpenError, match="node-1 has joined already"):
            await joining(host.ticket(patience=0.5))
        assert host.joined == ["node-1"]


async def test_a_wrong_secret_and_a_wrong_certificate_join_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as host:
        host.join_server.release(spec_of)
        good = host.ticket(patience=1.0)
        other = msgspec.structs.replace(host.address, certificate=OTHER.certificate)
        for wrong in (
            msgspec.structs.replace(good, secret=Secret(bytes(32))),
            msgspec.structs.replace(good, addresses=(other,)),
        ):
            with pytest.raises(ClusterOpenError, match="cannot be reached"):
                await joining(wrong)
        assert not host.joined


async def test_of_several_addresses_one_that_answers_is_enough(tmp_path: Path) -> None:
    async with opened(tmp_path) as host:
        host.join_server.release(spec_of)
        ticket = host.ticket()
        nobody = TcpAddress("not a name", 1, IDENTITY.certificate)
        both = msgspec.structs.replace(ticket, addresses=(host.address, nobody))
        assert await joining(both) == spec_of("node-1")


async def test_where_nobody_is_a_node_gives_up_in_time() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))  # and does not listen
        address = TcpAddress(HOST, taken.getsockname()[1], IDENTITY.certificate)
        began = time.monotonic()
        with pytest.raises(ClusterOpenError, match="cannot be reached"):
            await joining(Ticket("node-1", (address,), SECRET, 0.5))
        assert time.monotonic() - began < PATIENCE


def test_a_node_lets_go_of_a_shared_memory_before_another_cluster_takes_it() -> None:
    spec = spec_of("node-1")
    kept = msgspec.structs.replace(CLUSTER, persist=False)

    assert spec.rejoin_grace == 25.0
    assert msgspec.structs.replace(spec, cluster=kept).rejoin_grace == 60.0
