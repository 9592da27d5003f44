"""Peers over TCP that prove nothing."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import gc
import logging
import socket
import ssl
import struct
from pathlib import Path

import pytest

from flowgentic_actors.errors import ActorUnavailableError
from flowgentic_actors.wire import addresses, server_connection, unauthenticated
from flowgentic_actors.wire import server as wire_server
from flowgentic_actors.wire.addresses import TcpAddress, client_context, dial
from flowgentic_actors.wire.handshake import GREETING, knock
from tests.support.counter import PATIENCE, SECRET, command, number, until
from tests.support.tls import HOST, OURS, connection_to, tls_serving
from tests.support.wire_peer import SOON

pytestmark = pytest.mark.anyio


async def _hello_of_tls() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(OURS.certificate).wrap_bio(
        incoming, outgoing, server_hostname=addresses.SERVER_NAME
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("first", "logged"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no knock within"),
        (bytes(100_000), "a wrong knock"),
        (b"\x16\x03\x01", "no knock within"),
        (b"", "no knock within"),
        (None, "a wrong knock"),  # the beginning of TLS's handshake
        (knock(SECRET) + GREETING + bytes(32), "no TLS connection"),
        (knock(SECRET), "no complete handshake"),
    ],
    ids=["http", "long", "begun", "silent", "tls", "knock and more", "knock"],
)
async def test_a_stranger_costs_a_line_in_the_log(
    path: Path,
    context: ssl.SSLContext,
    first: bytes | None,
    logged: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.5)
    monkeypatch.setattr(unauthenticated, "PATIENCE", 0.5)
    async with tls_serving(path, context) as (server, _, address):
        async with connection_to(address) as connection:
            await connection.request(command("add", 1), 30)
            with caplog.at_level(logging.WARNING):
                reader, writer = await asyncio.open_connection(HOST, address.port)
                writer.write(await _hello_of_tls() if first is None else first)
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(PATIENCE):
                        while await reader.read(1 << 16):
                            pass
                writer.close()
                await until(lambda: len(server.connections) == 1 and not server._strangers)
            assert number(await connection.request(command("get"), 30)) == 1
        (record,) = caplog.records
        assert logged in record.getMessage()
        assert f"{HOST}:" in record.getMessage()
        assert record.exc_info is None


@pytest.mark.parametrize("reset", [True, False])
async def test_a_stranger_who_leaves_costs_a_line_in_the_log(
    path: Path, context: ssl.SSLContext, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with tls_serving(path, context) as (server, _, address):
        with socket.socket() as stranger:
            stranger.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stranger, (HOST, address.port))
            await until(lambda: server._strangers)
            if reset:
                linger = struct.pack("ii", 1, 0)
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await until(lambda: not server._strangers)
    assert [record.exc_info for record in caplog.records] == [None]


@pytest.mark.parametrize("sent", [b"", GREETING[:5], b"GET / HTTP/1.1\r\n\r\n"])
async def test_whoever_repeats_a_knock_and_has_no_secret_is_sent_away(
    path: Path, context: ssl.SSLContext, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.5)
    async with tls_serving(path, context) as (server, _, address):
        sock = await dial(asyncio.get_running_loop(), address)
        sock.send(knock(SECRET))
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=client_context(OURS.certificate), server_hostname=addresses.SERVER_NAME
        )
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.transport.abort()
        await until(lambda: not server.connections)


@pytest.mark.parametrize("sent", [b"", b"no TLS" * 1000])
async def test_a_handshake_that_fails_leaves_no_garbage(
    path: Path, context: ssl.SSLContext, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "HANDSHAKE_TIMEOUT", 0.2)
    before = handshakes()
    gc.disable()
    try:
        async with tls_serving(path, context) as (server, _, address):
            for _ in range(3):
                with socket.create_connection((HOST, address.port)) as sock:
                    sock.sendall(knock(SECRET) + sent)
                    sock.setblocking(False)
                    async with asyncio.timeout(PATIENCE):
                        with contextlib.suppress(ConnectionError):
                            while await asyncio.get_running_loop().sock_recv(sock, 100):
                                pass
                await until(lambda: not server.connections)
            await until(lambda: handshakes() == before)
    finally:
        gc.enable()


def handshakes() -> int:
    """How many objects of asyncio's for TLS there are, whether anybody has them or not."""
    return sum(isinstance(each, asyncio.sslproto.SSLProtocol) for each in gc.get_objects())


async def test_handshakes_of_tls_take_turns_count_and_are_cut_off_at_the_end(
    path: Path, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_server, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(wire_server, "MAX_HANDSHAKES", 2)
    async with tls_serving(path, context) as (server, _, address):
        half_open = [await asyncio.open_connection(HOST, address.port) for _ in range(2)]
        for _, writer in half_open:
            writer.write(knock(SECRET))
        await until(lambda: len(server.connections) == 2)
        async with connection_to(address) as connection:
            with pytest.raises(ActorUnavailableError):
                await connection.request(command("get"), SOON)
            half_open[0][1].transport.abort()
            assert number(await connection.request(command("get"), 30)) == 0
            half_open.append(await asyncio.open_connection(HOST, address.port))
            half_open[2][1].write(knock(SECRET))
            await until(lambda: len(server.connections) == 3)
            async with connection_to(address) as another:
                with pytest.raises(ActorUnavailableError):
                    await another.request(command("get"), SOON)
        async with asyncio.timeout(PATIENCE):
            await server.close()
        assert not server.connections
        for _, writer in half_open[1:]:
            writer.transport.abort()
        await asyncio.sleep(0)


def strangers_from(host: str, address: TcpAddress, number: int) -> list[socket.socket]:
    """So many connections from one address, on which nothing is said."""
    there = (address.host, address.port)
    return [socket.create_connection(there, source_address=(host, 0)) for _ in range(number)]


async def test_strangers_are_few_and_the_last_ones_and_keep_nobody_out(
    path: Path,
    context: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(unauthenticated, "AT_ONCE", 8)
    monkeypatch.setattr(unauthenticated, "OF_ONE_HOST", 5)
    async with tls_serving(path, context) as (server, _, address), connection_to(address) as known:
        await known.request(command("add", 1), 30)
        with contextlib.ExitStack() as held:
            there = []
            for host, number_of in (("127.0.0.2", 3), (HOST, 200), ("127.0.0.3", 2)):
                there += await asyncio.to_thread(strangers_from, host, address, number_of)
            for sock in there:
                held.enter_context(sock)
                sock.setblocking(False)
            await until(lambda: len(server._strangers) == 8)
            async with connection_to(address) as one_more, connection_to(str(path)) as near:
                assert number(await one_more.request(command("add", 1), 30)) == 2
                assert number(await near.request(command("add", 1), 30)) == 3
            assert number(await known.request(command("get"), 30)) == 3
            assert [is_open(sock) for sock in there].count(True) == 8
            assert not is_open(there[0])  # the oldest of all, once the others' share was theirs
            assert [is_open(sock) for sock in there[-7:]] == [True] * 7
        await until(lambda: not server._strangers)
        assert len(caplog.records) == 1  # for now
    assert len(caplog.records) == 2
    assert caplog.records[1].getMessage().startswith("204 more")


def is_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def test_connections_leave_files_to_the_rest_of_their_process(
    path: Path, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_serving(path, context) as (_, _, address), connection_to(address) as known:
        await known.request(command("get"), 30)
        with monkeypatch.context() as patched:
            for module in (wire_server, server_connection):
                patched.setattr(module, "is_reserved", lambda descriptor: True)
            for where in (address, str(path)):
                async with connection_to(where) as connection:
                    with pytest.raises(ActorUnavailableError):
                        await connection.request(command("get"), SOON)
            assert number(await known.request(command("get"), 30)) == 0
        async with connection_to(address) as connection:
            assert number(await connection.request(command("get"), 30)) == 0
