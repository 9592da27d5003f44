"""The accepting side: strangers, slow peers, limits, an orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Raw

from flowgentic_actors.errors import AuthenticationError, ClusterOpenError
from flowgentic_actors.wire import incomplete_frames, server_connection, sockets
from flowgentic_actors.wire import server as wire_server
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.handshake import GREETING
from flowgentic_actors.wire.messages import Cancel, Hello, Ready, Reply, Request, ToServer, Welcome
from flowgentic_actors.wire.server import Server
from tests.conftest import LOOPS
from tests.support.counter import PATIENCE, command, number, serving, until
from tests.support.raw_client import RawClient, raw_client, unsent
from tests.support.wire_peer import LIMIT, connection_to

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Runs an awaited test on each event loop."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


# ---------------------------------------------------------------------- strangers


@pytest.mark.parametrize("sent", [b"", GREETING[:5], GREETING + bytes(32)])
async def test_a_stranger_who_says_nothing_more_is_sent_away(
    path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.5)
    async with serving(path) as (server, _), raw_client(path) as stranger:
        stranger.writer.write(sent)
        assert await stranger.ended()
        await until(lambda: not server.connections)


async def test_a_stranger_who_drips_bytes_is_sent_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.5)
    async with serving(path) as (server, _), raw_client(path) as stranger:
        dripping = asyncio.create_task(drip(stranger))
        await until(lambda: server.connections)
        await until(lambda: not server.connections)
        dripping.cancel()


async def drip(client: RawClient) -> None:
    while True:
        for byte in GREETING + bytes(20):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)


async def test_a_peer_that_proves_itself_and_does_not_say_hello_is_sent_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.5)
    async with serving(path), raw_client(path) as client:
        await client.shake_hands()
        assert await client.ended()


async def test_many_slow_strangers_do_not_keep_a_client_out(path: Path) -> None:
    async with serving(path), connection_to(path) as connection:
        strangers = [await asyncio.open_unix_connection(path) for _ in range(100)]
        for _, writer in strangers:
            writer.write(GREETING[:3])
        assert number(await connection.request(command("add", 1), 30)) == 1
        for _, writer in strangers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_there_is_room_for_so_many_connections_and_again_when_one_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_server, "MAX_CONNECTIONS", 2)
    async with serving(path) as (server, _):
        async with connection_to(path) as first, connection_to(path) as second:
            await first.request(command("get"), 30)
            await second.request(command("get"), 30)
            async with raw_client(path) as third:
                assert await third.ended()
            assert len(server.connections) == 2
        await until(lambda: not server.connections)
        async with connection_to(path) as fourth:
            assert number(await fourth.request(command("get"), 30)) == 0


async def test_one_peer_has_a_part_of_the_connections(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wire_server, "MAX_OF_ONE_PEER", 1)
    async with serving(path) as (server, _):
        async with connection_to(path) as first:
            await first.request(command("get"), 30)
            async with raw_client(path) as second:
                assert await second.ended()
        await until(lambda: not server.connections)
        async with connection_to(path) as third:
            assert number(await third.request(command("get"), 30)) == 0
    assert f"more than 1 connections of {os.getpid()}" in caplog.text


async def test_the_longest_idle_connection_gives_way_where_all_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_server, "MAX_CONNECTIONS", 2)
    async with serving(path), raw_client(path) as idle, connection_to(path) as busy:
        await idle.shake_hands()
        idle.hello()
        await idle.read(1)
        await busy.request(command("get"), 30)
        async with raw_client(path) as early:
            assert await early.ended()
        monkeypatch.setattr(wire_server, "IDLE", 0.2)
        await asyncio.sleep(0.3)
        await busy.request(command("get"), 30)
        async with connection_to(path) as late:
            assert number(await late.request(command("get"), 30)) == 0
            assert await idle.ended()
            assert number(await busy.request(command("get"), 30)) == 0


async def test_a_peer_of_another_user_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as (server, _):
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        async with raw_client(path) as client:
            assert await client.ended()
        monkeypatch.undo()
        assert not server.connections
    assert "runs as user" in caplog.text


def test_the_process_at_the_other_end_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sockets.check_peer(ours)
        assert sockets.peer_pid(ours) == os.getpid()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(AuthenticationError):
            sockets.check_peer(ours)
        monkeypatch.setattr(sockets, "_PEER_KNOWN", False)  # a platform that does not tell
        sockets.check_peer(ours)
        assert sockets.peer_pid(ours) is None


# ---------------------------------------------------------------------- the order of things


@pytest.mark.parametrize(
    "messages",
    [
        [Request(0, 0, 1000, Raw(command("get")))],  # before hello
        [Hello("client", bytes(16), 1), Hello("client", bytes(16), 1)],
        [Hello("link", bytes(16), 1)],  # no supervisor lives here
        [Hello("client", bytes(16), 1), Ready(1.0)],
    ],
)
async def test_a_message_out_of_place_ends_the_connection(
    path: Path, messages: list[ToServer]
) -> None:
    async with serving(path) as (server, _), raw_client(path) as client:
        await client.shake_hands()
        client.send(*messages)
        assert await client.ended()
        await until(lambda: not server.connections)


async def test_the_answers_of_one_tick_travel_in_one_frame(path: Path) -> None:
    async with serving(path), raw_client(path) as client:
        await client.shake_hands()
        client.hello()
        await client.read(1)
        client.send(*(Request(n, 0, 30_000, Raw(command("add", 1))) for n in range(100)))
        await client.read(101)
    welcome, answers = client.frames
    assert isinstance(welcome[0], Welcome)
    assert [a.seq for a in answers if isinstance(a, Reply)] == list(range(100))
    assert [number(a.body) for a in answers if isinstance(a, Reply)] == list(range(1, 101))


async def test_a_peer_that_does_not_read_its_answers_is_asked_nothing_more(path: Path) -> None:
    async with serving(path) as (server, _), raw_client(path) as client:
        await client.shake_hands()
        client.hello()
        (connection,) = server.connections or [None]
        assert connection is not None
        for seq in range(40):  # 40 MB of answers
            client.send(Request(seq, 0, 30_000, Raw(command("large", LIMIT - 100))))
            await asyncio.sleep(0.002)
            if connection._pauses:
                break
        assert connection._pauses
        await client.read(seq + 2)
        await until(lambda: not connection._pauses)


async def test_an_end_within_a_frame_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as (server, _), raw_client(path) as client:
        await client.shake_hands()
        client.channel.send(Hello("client", bytes(16), 1))
        client.writer.write(b"".join(client.channel.take())[:-1])
        await until(lambda: any(c._channel.buffered for c in server.connections))
        client.writer.close()
        await until(lambda: not server.connections)
    assert "in the middle of a frame" in caplog.text


@asynccontextmanager
async def partly_sent(path: Path, size: int) -> AsyncIterator[RawClient]:
    """A client that has sent so many bytes of a frame of 900,000, or has them in its socket."""
    async with raw_client(path) as client:
        await client.shake_hands()
        client.hello()
        await client.read(1)
        client.channel.send(Request(0, 0, 30_000, Raw(command("add", 1, bytes(900_000)))))
        whole = b"".join(client.channel.take())
        client.writer.write(whole[:size])
        client.rest = whole[size:]
        yield client


async def test_what_is_held_of_unfinished_frames_is_bounded(path: Path) -> None:
    async with serving(path) as (server, _), AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(partly_sent(path, 800_000)) for _ in range(8)]
        under_way = server.under_way
        await until(lambda: under_way.bytes > under_way._most)
        await asyncio.sleep(0.1)
        reads = 8 * (256 << 10)  # each connection is paused after one
        assert under_way.bytes <= 2 * LIMIT + reads < 8 * 800_000
        for client in clients:  # all of them can go on, one after the other
            client.writer.write(client.rest)
        for client in clients:
            await client.read(2)
        await until(lambda: under_way.bytes == 0)
        assert all(connection.reading for connection in server.connections)


async def test_who_does_not_go_on_with_a_frame_is_ended_where_others_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomplete_frames, "STALLED", 0.3)
    async with serving(path) as (server, _), AsyncExitStack() as opened:
        for _ in range(4):
            await opened.enter_async_context(partly_sent(path, 700_000))
        async with partly_sent(path, 900_000) as honest:
            honest.writer.write(honest.rest)
            await honest.read(2)
        await until(lambda: server.under_way.bytes <= server.under_way._most)


# ---------------------------------------------------------------------- addresses, and the end


async def test_an_address_that_the_system_would_cut_is_refused() -> None:
    with pytest.raises(ClusterOpenError, match="scratch="):
        async with serving(Path("/tmp", "x" * 100)):
            pass


async def test_the_end_waits_until_large_answers_are_read(path: Path) -> None:
    server: Server
    async with serving(path) as (server, _), raw_client(path) as client:
        await client.shake_hands()
        client.hello()
        client.send(Request(0, 0, 30_000, Raw(command("large", LIMIT - 100))), Cancel(99))
        await client.read(1)
        closing = asyncio.create_task(server.close())
        await client.read(2)
        assert await client.ended()
        await closing
    reply = client.frames[-1][-1]
    assert isinstance(reply, Reply)


async def test_the_end_does_not_wait_for_a_peer_that_reads_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_server, "FLUSH_TIMEOUT", 0.2)
    monkeypatch.setattr(sockets, "SEND_BUFFER", 64 << 10)
    async with serving(path) as (server, _), raw_client(path) as client:
        await client.shake_hands()
        client.hello()
        await client.read(1)
        client.pause()
        client.send(Request(0, 0, 30_000, Raw(command("large", LIMIT - 100))))
        await until(lambda: any(map(unsent, server.connections)))
        async with asyncio.timeout(PATIENCE):
            await server.close()
        await until(lambda: not server.connections)


async def test_no_new_connections_are_taken_once_it_stops_listening(path: Path) -> None:
    async with serving(path) as (server, _), connection_to(path) as connection:
        await connection.request(command("add", 1), 30)
        server.stop_listening()
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_unix_connection(path)
        assert number(await connection.request(command("get"), 30)) == 1
        assert isinstance(connection, AsyncConnection)
