"""Addresses, and connections over TCP with TLS, live on this machine."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import gc
import logging
import os
import socket
import ssl
import struct
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from cryptography import x509
from rich.pretty import pretty_repr

from flowgentic_actors import deadlines
from flowgentic_actors.actors.actor import Call
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.errors import ActorUnavailableError, AuthenticationError, OutcomeUnknownError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire import addresses, blocking_connection, unauthenticated
from flowgentic_actors.wire import async_connection as wire_client
from flowgentic_actors.wire import server as wire_server
from flowgentic_actors.wire.addresses import (
    Address,
    TcpAddress,
    client_context,
    connect,
    describe_address,
    dial,
    secure,
    unanswered,
)
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.blocking_connection import BlockingConnection, BlockingPool
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.handshake import GREETING, KNOCK_BYTES, is_knock, knock
from flowgentic_actors.wire.identity import Identity, server_context
from flowgentic_actors.wire.messages import Request, ToClient
from flowgentic_actors.wire.server import Connection, Server
from flowgentic_actors.wire.session import MAX_LOSSES
from tests.conftest import LOOPS
from tests.support.blocking_calls import elsewhere, timed
from tests.support.counter import PATIENCE, SECRET, Counter, command, number, serving, until
from tests.support.raw_client import unsent
from tests.support.wire_peer import SOON, Peer, body, echo, peer_at, silence

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Runs an awaited test on each event loop."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


HOST = "127.0.0.1"
LIMIT = 32 << 20
OURS, THEIRS = new_identity(), new_identity()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(OURS, tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def other_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(THEIRS, tmp_path_factory.mktemp("identity"))


def at(port: int) -> TcpAddress:
    return TcpAddress(HOST, port, OURS.certificate)


@asynccontextmanager
async def tls_serving(
    path: Path, context: ssl.SSLContext, secret: Secret[bytes] = SECRET
) -> AsyncIterator[tuple[Server, Counter, TcpAddress]]:
    async with serving(path, secret=secret, limit=LIMIT) as (server, counter):
        yield server, counter, at(await server.listen_tcp(HOST, context))


@asynccontextmanager
async def tls_peer(context: ssl.SSLContext) -> AsyncIterator[tuple[Peer, TcpAddress]]:
    peer = Peer()
    loop = asyncio.get_running_loop()
    served: set[asyncio.Task[None]] = set()

    def protocol() -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), peer.serve)

    async def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data = b""
            while len(data) < KNOCK_BYTES:
                received = await loop.sock_recv(sock, KNOCK_BYTES - len(data))
                if not received:  # hung up before
                    sock.close()
                    return
                data += received
            assert is_knock(SECRET, data)
            await loop.connect_accepted_socket(protocol, sock, ssl=context)

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(False)
            served.add(asyncio.create_task(serve(sock)))

    with socket.create_server((HOST, 0), backlog=100) as listener:
        listener.setblocking(False)
        accepting = asyncio.create_task(accept())
        try:
            yield peer, at(listener.getsockname()[1])
        finally:
            accepting.cancel()
            peer.reading.set()
            peer.hang_up()
            await asyncio.gather(accepting, *served, return_exceptions=True)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connection_to(address: Address) -> AsyncIterator[AsyncConnection]:
    connection = AsyncConnection(address, SECRET, "peer", LIMIT)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def blocking_to(address: Address) -> Iterator[BlockingConnection]:
    connection = BlockingConnection(address, SECRET, "peer", LIMIT)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def pool_to(address: Address, size: int = 4) -> Iterator[BlockingPool]:
    pool = BlockingPool(address, SECRET, "peer", LIMIT, size)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def nobody(accepting: bool) -> Iterator[TcpAddress]:
    """An address where a connection is made and not answered, or not even made."""
    with socket.create_server((HOST, 0), backlog=0) as listener, contextlib.ExitStack() as held:
        for _ in range(0 if accepting else 4):  # the queue is full: what comes now waits
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield at(listener.getsockname()[1])


# ---------------------------------------------------------------------- addresses, certificates


@pytest.mark.parametrize("address", ["/tmp/a.sock", TcpAddress("node1", 4242, "pem")])
def test_an_address_travels(address: Address) -> None:
    encoded = msgspec.msgpack.encode({"address": address})
    assert msgspec.msgpack.decode(encoded, type=dict[str, Address]) == {"address": address}


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    encoded = msgspec.msgpack.encode(["node1", port, "pem"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(encoded, type=str | TcpAddress)


def test_addresses_are_readable() -> None:
    assert describe_address("/tmp/a.sock") == "/tmp/a.sock"
    assert describe_address(TcpAddress("node1", 4242, "pem")) == "node1:4242"
    assert describe_address(TcpAddress("fe80::1", 4242, "pem")) == "[fe80::1]:4242"
    assert repr(TcpAddress("node1", 4242, "pem")) == "<TcpAddress node1:4242>"


def test_an_identity_shows_nothing_of_itself() -> None:
    ref = ActorRef("counter", at(1), SECRET, LIMIT, 1)
    shown = f"{OURS!r} {OURS} {pretty_repr(OURS)} {ref!r}"
    for secret in (OURS.key.reveal(), OURS.certificate):
        assert secret.splitlines()[1] not in shown
    assert "BEGIN" not in shown


def test_a_certificate_is_valid_already_where_clocks_differ_and_for_as_long_as_a_job() -> None:
    certificate = x509.load_pem_x509_certificate(OURS.certificate.encode())
    now = time.time()
    assert certificate.not_valid_before_utc.timestamp() < now - 80_000
    assert certificate.not_valid_after_utc.timestamp() > now + 9 * 365 * 86400
    assert new_identity() != new_identity()


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
def test_the_key_does_not_stay_in_a_file(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def noting(context: ssl.SSLContext, file: str) -> None:
        named = list(tmp_path.iterdir())
        modes.extend(path.stat().st_mode & 0o777 for path in named)
        load(context, file)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noting)
    if not unnamed:  # not every kernel has such files
        monkeypatch.delattr(os, "memfd_create", raising=False)
    server_context(OURS, tmp_path)
    assert modes == ([] if unnamed else [0o600])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ssl.SSLError):
        server_context(Identity("no", Secret("key")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_trusted_is_one_certificate_and_its_name() -> None:
    context = client_context(OURS.certificate)
    assert context is client_context(OURS.certificate)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    with pytest.raises(AuthenticationError, match="cannot be read"):
        client_context("no certificate")


# ---------------------------------------------------------------------- asking and answering


async def test_requests_are_answered(path: Path, context: ssl.SSLContext) -> None:
    async with tls_serving(path, context) as (server, _, address):
        async with connection_to(address) as connection, connection_to(str(path)) as near:
            asked = [connection.request(command("add", 1), 30) for _ in range(2000)]
            assert [number(r) for r in await asyncio.gather(*asked)] == list(range(1, 2001))
            assert number(await near.request(command("get"), 30)) == 2000
            assert sorted(c.remote for c in server.connections) == [False, True]
            assert {c.pid for c in server.connections} == {os.getpid()}
            assert any(f" at {HOST}:" in repr(c) for c in server.connections)
        await until(lambda: not server.connections)


def test_blocking_requests_are_answered(path: Path, context: ssl.SSLContext) -> None:
    with (
        elsewhere(tls_serving(path, context)) as (_, (server, _, address)),
        pool_to(address) as pool,
        ThreadPoolExecutor(16) as threads,
    ):
        asked = [threads.submit(pool.request, command("add", 1), 30) for _ in range(300)]
        assert sorted(number(each.result()) for each in asked) == list(range(1, 301))
        assert 1 <= len(server.connections) <= 4


@pytest.mark.parametrize("size", [100_000, 20_000_000])
async def test_large_requests_and_answers_make_it(
    path: Path, context: ssl.SSLContext, size: int
) -> None:
    async with (
        tls_serving(path, context) as (server, _, address),
        connection_to(address) as connection,
    ):
        asked = [
            connection.request(command("add", 1, bytes(size)), 2 * PATIENCE),
            connection.request(command("large", size), 2 * PATIENCE),
            connection.request(command("large", size), 2 * PATIENCE),
        ]
        added, *large = await asyncio.gather(*asked)
        assert number(added) == 1
        assert [len(bytes(each)) for each in large] == [size, size]
        assert len(server.connections) == 1


@pytest.mark.parametrize("size", [100_000, 20_000_000])
def test_large_blocking_requests_and_answers_make_it(
    path: Path, context: ssl.SSLContext, size: int
) -> None:
    with (
        elsewhere(tls_serving(path, context)) as (_, (server, _, address)),
        blocking_to(address) as connection,
    ):
        assert number(connection.request(command("add", 1, bytes(size)), 2 * PATIENCE)) == 1
        assert len(bytes(connection.request(command("large", size), 2 * PATIENCE))) == size
        assert len(server.connections) == 1


async def test_a_name_of_a_host_will_do(path: Path, context: ssl.SSLContext) -> None:
    async with serving(path) as (server, _):
        port = await server.listen_tcp("localhost", context)
        async with connection_to(TcpAddress("localhost", port, OURS.certificate)) as connection:
            assert number(await connection.request(command("add", 1), 30)) == 1
        with pytest.raises(OSError, match="assign"):
            await server.listen_tcp("192.0.2.1", context)


async def test_the_end_is_flushed_and_soon(path: Path, context: ssl.SSLContext) -> None:
    async with (
        tls_serving(path, context) as (server, _, address),
        connection_to(address) as connection,
    ):
        await connection.request(command("get"), 30)
        large = asyncio.create_task(connection.request(command("large", 5_000_000), 30))
        await until(lambda: any(unsent(c) for c in server.connections) or large.done())
        async with asyncio.timeout(PATIENCE):
            await server.close()
        assert not server.connections
        assert len(bytes(await large)) == 5_000_000
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, address.port)


def test_the_end_does_not_wait_long_for_idle_blocking_connections(
    path: Path, context: ssl.SSLContext
) -> None:
    with (
        elsewhere(tls_serving(path, context)) as (portal, (server, _, address)),
        pool_to(address) as pool,
    ):
        pool.request(command("get"), 30)
        portal.call(server.close)
        portal.call(until, lambda: not server.connections)


# ---------------------------------------------------------------------- somebody else's server


async def test_another_certificate_is_refused_before_anything_is_sent(
    other_context: ssl.SSLContext,
) -> None:
    async with tls_peer(other_context) as (peer, address):
        async with connection_to(address) as connection:
            with pytest.raises(ActorUnavailableError, match=r"another cluster.*Nothing was sent"):
                async with asyncio.timeout(PATIENCE):
                    await connection.request(body(1), 600)
        sock = await dial(asyncio.get_running_loop(), address)
        with pytest.raises(AuthenticationError, match="taken over"), sock:
            await secure(asyncio.get_running_loop(), asyncio.Protocol(), sock, address, SECRET)
        assert not peer.frames
        assert not peer._writers  # no connection ever got through TLS's handshake


def test_another_certificate_is_refused_by_blocking_calls(other_context: ssl.SSLContext) -> None:
    with elsewhere(tls_peer(other_context)) as (_, (peer, address)), pool_to(address) as pool:

        def ask() -> None:
            with pytest.raises(ActorUnavailableError, match=r"another cluster.*Nothing was sent"):
                pool.request(body(1), 600)

        assert timed(ask) < PATIENCE
        with pytest.raises(AuthenticationError, match="taken over"):
            connect(address, SECRET, PATIENCE)
        assert not peer._writers


async def test_a_wrong_secret_is_refused_as_it_is_on_a_unix_socket(
    path: Path, context: ssl.SSLContext
) -> None:
    async with (
        tls_serving(path, context, Secret(bytes(32))) as (_, _, address),
        connection_to(address) as connection,
    ):
        with pytest.raises(ActorUnavailableError, match="secret"):
            await connection.request(body(1), 600)


async def test_a_server_without_tls_is_out_of_reach() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(babble, HOST, 0)
    address = at(listener.sockets[0].getsockname()[1])
    async with connection_to(address) as connection:
        with pytest.raises(ActorUnavailableError, match="SSL"):
            await connection.request(body(1), SOON)
    with blocking_to(address) as other, pytest.raises(ActorUnavailableError, match="SSL"):
        await asyncio.to_thread(other.request, body(1), SOON)
    listener.close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("accepting", [True, False])
async def test_a_server_that_is_silent_is_out_of_reach(accepting: bool) -> None:
    with nobody(accepting) as address:
        async with connection_to(address) as connection:
            with pytest.raises(ActorUnavailableError):
                await connection.request(body(1), SOON)
        with blocking_to(address) as other, pytest.raises(ActorUnavailableError):
            await asyncio.to_thread(other.request, body(1), SOON)


# ---------------------------------------------------------------------- strangers


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
    monkeypatch.setattr(wire_server, "HANDSHAKE_TIMEOUT", 0.5)
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
    monkeypatch.setattr(wire_server, "HANDSHAKE_TIMEOUT", 0.5)
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
    monkeypatch.setattr(wire_server, "HANDSHAKE_TIMEOUT", 0.2)
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
            patched.setattr(wire_server, "is_reserved", lambda descriptor: True)
            for where in (address, str(path)):
                async with connection_to(where) as connection:
                    with pytest.raises(ActorUnavailableError):
                        await connection.request(command("get"), SOON)
            assert number(await known.request(command("get"), 30)) == 0
        async with connection_to(address) as connection:
            assert number(await connection.request(command("get"), 30)) == 0


# ---------------------------------------------------------------------- a peer that is elsewhere


async def test_what_is_unfinished_moves_with_its_session_and_numbers(
    path: Path, context: ssl.SSLContext
) -> None:
    async with peer_at(path) as old, tls_peer(context) as (new, address):
        async with connection_to(str(path)) as connection:
            await connection.request(body(0), 30)
            old.answer = silence
            asked = [asyncio.create_task(connection.request(body(n), 30)) for n in range(1, 50)]
            await until(lambda: len(old.requests) == 50)
            connection.move(address)
            asked.append(asyncio.create_task(connection.request(body(50), 30)))
            assert [number(await each) for each in asked] == list(range(1, 51))
            assert connection._fruitless == 0
            await until(lambda: all(writer.is_closing() for writer in old._writers))
        assert [request.seq for request in new.requests] == list(range(1, 51))
        assert {hello.session for hello in new.hellos} == {old.hellos[0].session}
        assert len(old.requests) == 50


def asked_times(times: int, *peers: Peer) -> bool:
    return sum(len(peer.requests) for peer in peers) == times


async def test_moves_are_not_losses(context: ssl.SSLContext) -> None:
    async with tls_peer(context) as (one, first), tls_peer(context) as (two, second):
        one.answer = two.answer = silence
        async with connection_to(first) as connection:
            asked = asyncio.create_task(connection.request(body(7), PATIENCE))
            for turn in range(2 * MAX_LOSSES):
                await until(partial(asked_times, turn + 1, one, two))
                connection.move(first if turn % 2 else second)
            one.answer = two.answer = echo
            assert number(await asked) == 7
        assert {hello.session for hello in one.hellos} == {hello.session for hello in two.hellos}


@pytest.mark.parametrize("accepting", [True, False])
async def test_a_move_ends_a_dial_that_goes_nowhere(
    context: ssl.SSLContext, accepting: bool
) -> None:
    async with tls_peer(context) as (_, address):
        with nobody(accepting) as dead:
            async with connection_to(dead) as connection:
                asked = asyncio.create_task(connection.request(body(1), 30))
                await asyncio.sleep(0.1)
                start = time.monotonic()
                connection.move(address)
                assert number(await asked) == 1
                assert time.monotonic() - start < wire_client.CONNECT_TIMEOUT / 2


def note(asked: set[int], call: Call) -> None:
    asked.add(call.seq)


async def test_a_move_at_any_point_loses_nothing_and_leaks_nothing(
    path: Path, context: ssl.SSLContext
) -> None:
    async with tls_serving(path, context) as (server, counter, address):
        for ticks in range(200):
            async with connection_to(str(path)) as connection:
                asked: set[int] = set()
                counter.on_call = partial(note, asked)
                task = asyncio.create_task(connection.request(command("add", 1), 30))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                finished = task.done()
                connection.move(address)
                await task
                await connection.request(command("get"), 30)
                assert asked == {0, 1}
            if finished:
                break
        assert finished
        await until(lambda: not server.connections)


async def test_a_move_makes_one_connection(context: ssl.SSLContext) -> None:
    async with tls_peer(context) as (_, first), tls_peer(context) as (two, second):
        for ticks in range(20):
            before = len(two.hellos)
            async with connection_to(first) as connection:
                task = asyncio.create_task(connection.request(body(0), 30))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                connection.move(second)
                await task
                await connection.request(body(1), 30)
            assert len(two.hellos) == before + 1


async def test_an_idle_or_a_closed_connection_moves(context: ssl.SSLContext) -> None:
    async with tls_peer(context) as (one, first), tls_peer(context) as (two, second):
        async with connection_to(first) as connection:
            await connection.request(body(0), 30)
            connection.move(second)
            await asyncio.sleep(0.05)
            assert not two.hellos  # it dials when it is asked for something
            assert number(await connection.request(body(1), 30)) == 1
        connection.move(first)
        await asyncio.sleep(0.05)
        assert len(one.hellos) == 1


def test_blocking_calls_move_while_they_wait(path: Path, context: ssl.SSLContext) -> None:
    with (
        elsewhere(tls_peer(context)) as (portal, (old, address)),
        elsewhere(peer_at(path)) as (_, new),
        pool_to(address) as pool,
        ThreadPoolExecutor() as threads,
    ):
        asked = [threads.submit(pool.request, body(n), 30) for n in range(3)]
        for each in asked:
            each.result(PATIENCE)
        old.answer = silence
        before = len(old.requests)
        waiting = [threads.submit(pool.request, body(n), PATIENCE) for n in range(3)]
        portal.call(until, lambda: len(old.requests) == before + 3)
        start = time.monotonic()
        pool.move(str(path))
        assert [number(each.result(PATIENCE)) for each in waiting] == [0, 1, 2]
        assert time.monotonic() - start < PATIENCE / 2
        assert number(pool.request(body(9), 30)) == 9
        unfinished = [request.seq for request in old.requests[before:]]
        assert sorted(request.seq for request in new.requests[:3]) == sorted(unfinished)
        assert {h.session for h in new.hellos} <= {h.session for h in old.hellos}
        portal.call(until, lambda: all(writer.is_closing() for writer in old._writers))


def test_moves_of_a_blocking_connection_are_not_losses(context: ssl.SSLContext) -> None:
    with (
        elsewhere(tls_peer(context)) as (portal, (one, first)),
        elsewhere(tls_peer(context)) as (_, (two, second)),
        blocking_to(first) as connection,
        ThreadPoolExecutor() as threads,
    ):
        one.answer = two.answer = silence
        asked = threads.submit(connection.request, body(7), PATIENCE)
        for turn in range(2 * MAX_LOSSES):
            portal.call(until, partial(asked_times, turn + 1, one, two))
            connection.move(first if turn % 2 else second)
        one.answer = two.answer = echo
        assert number(asked.result(PATIENCE)) == 7
        assert len({(r.seq, r.oldest_pending) for r in one.requests + two.requests}) == 1
        assert len({hello.session for hello in one.hellos + two.hellos}) == 1


@pytest.mark.parametrize("accepting", [True, False])
def test_a_move_ends_a_blocking_dial_that_goes_nowhere(
    context: ssl.SSLContext, accepting: bool
) -> None:
    with (
        elsewhere(tls_peer(context)) as (_, (_, address)),
        nobody(accepting) as dead,
        pool_to(dead) as pool,
        ThreadPoolExecutor() as threads,
    ):
        asked = threads.submit(pool.request, body(1), 30)
        time.sleep(0.1)
        start = time.monotonic()
        pool.move(address)
        assert number(asked.result(PATIENCE)) == 1
        assert time.monotonic() - start < wire_client.CONNECT_TIMEOUT / 2


def test_a_large_request_that_is_being_sent_moves(context: ssl.SSLContext) -> None:
    large = body(bytes(20_000_000))

    with (
        elsewhere(tls_peer(context)) as (portal, (old, first)),
        elsewhere(tls_serving_anywhere(context)) as (_, second),
        blocking_to(first) as connection,
        ThreadPoolExecutor() as threads,
    ):
        connection.request(body(0), 30)
        portal.call(old.reading.clear)
        asked = threads.submit(connection.request, command("add", 5, large), PATIENCE)
        time.sleep(0.2)
        assert not asked.done()
        connection.move(second)
        assert number(asked.result(PATIENCE)) == 5


@asynccontextmanager
async def tls_serving_anywhere(context: ssl.SSLContext) -> AsyncIterator[TcpAddress]:
    async with tls_serving(Path(f"/tmp/fga-{os.urandom(4).hex()}.sock"), context) as served:
        yield served[2]


def test_a_reference_moves_its_connections_in_every_loop_and_thread(
    path: Path, context: ssl.SSLContext
) -> None:
    ref = ActorRef("counter", str(path), SECRET, LIMIT, 2)

    async def add() -> int:
        return number(await ref.ask(command("add", 1), 30))

    with (
        start_blocking_portal() as server_portal,
        server_portal.wrap_async_context_manager(tls_serving(path, context)) as (
            server,
            counter,
            address,
        ),
        start_blocking_portal() as one,
        start_blocking_portal() as other,
    ):
        assert [portal.call(add) for portal in (one, other)] == [1, 2]
        ref.ask_sync(command("add", 1), 30)
        assert not any(c.remote for c in server.connections)

        async def move() -> None:
            ref.move(address)
            ref.move(address)  # there already

        one.call(move)
        assert ref.address == address
        assert [portal.call(add) for portal in (one, other)] == [4, 5]
        assert number(ref.ask_sync(command("add", 1), 30)) == 6
        server_portal.call(until, lambda: len(server.connections) == 3)
        assert all(c.remote for c in server.connections)
        assert repr(ref) == f"<ActorRef counter at {HOST}:{address.port}>"
        ref.move(str(path))  # from outside of any loop
        assert number(ref.ask_sync(command("get"), 30)) == 6
        one.call(ref.close)
        server_portal.call(until, lambda: not server.connections)
        assert counter.total == 6


# ---------------------------------------------------------------------- a peer that is gone


async def test_a_peer_that_hangs_up_is_asked_again(context: ssl.SSLContext) -> None:
    def hang_up(requests: list[Request]) -> list[ToClient]:
        if requests:
            peer.answer = echo
            peer.hang_up()
        return []

    async with tls_peer(context) as (peer, address):
        async with connection_to(address) as connection:
            for value in range(3):
                peer.answer = hang_up
                assert number(await connection.request(body(value), 30)) == value
        with blocking_to(address) as other:
            peer.answer = hang_up
            assert number(await asyncio.to_thread(other.request, body(9), 30)) == 9


async def test_a_node_that_does_not_answer_any_more_is_noticed(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_client, "_LOOK", 0.05)
    silent: set[str] = set()

    def look(name: str, sock: socket.socket) -> bool:
        was = name in silent and sock.getpeername()[1] == address.port  # not an earlier test's
        if was:
            silent.discard(name)
        return was

    for module in (wire_client, blocking_connection):
        monkeypatch.setattr(module, "unanswered", partial(look, module.__name__))
    async with tls_peer(context) as (peer, address), connection_to(address) as connection:
        with blocking_to(address) as other:

            async def ask(name: str) -> int:
                if name == blocking_connection.__name__:
                    return number(await asyncio.to_thread(other.request, body(1), PATIENCE))
                return number(await connection.request(body(1), PATIENCE))

            for name in (wire_client.__name__, blocking_connection.__name__):
                await ask(name)
                peer.answer = silence
                before = len(peer.requests)
                asked = asyncio.create_task(ask(name))
                await until(partial(asked_times, before + 1, peer))
                peer.answer = echo
                silent.add(name)
                assert await asked == 1


async def test_nobody_looks_at_a_socket_that_was_closed_just_now(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_client, "_LOOK", 60.0)
    async with tls_peer(context) as (_, address), connection_to(address) as connection:
        await connection.request(body(1), 30)
        wire = connection._wire
        assert wire is not None
        wire.end()
        closed = 0
        while not wire.ended.is_set():
            await asyncio.sleep(0)
            if wire._watch is not None:
                wire._watch.cancel()
            wire._look()
            closed += wire.sock.fileno() < 0
        assert closed
        assert number(await connection.request(body(2), 30)) == 2


async def test_an_answer_that_takes_a_while_is_waited_for(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "THREAD_SLICE", 0.01)
    async with tls_peer(context) as (peer, address):
        peer.answer = silence
        with blocking_to(address) as connection:
            with pytest.raises(OutcomeUnknownError, match="may have happened"):
                await asyncio.to_thread(connection.request, body(1), SOON)
            asked = asyncio.create_task(asyncio.to_thread(connection.request, body(2), 30))
            await until(lambda: len(peer.requests) == 2)
            peer._writers = dict(list(peer._writers.items())[-1:])
            peer.send(echo(peer.requests[1:]))
            assert number(await asked) == 2
            assert len(peer.requests) == 2


def test_a_peer_that_reads_nothing_is_there_all_the_same() -> None:
    with (
        socket.create_server((HOST, 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0],
    ):
        addresses.keep_alive(ours)
        ours.settimeout(1.5)
        with pytest.raises(TimeoutError):
            ours.sendall(bytes(100 << 20))
        assert not unanswered(ours)
    one, two = socket.socketpair()
    with one, two:
        assert not unanswered(one)


# ---------------------------------------------------------------------- forks


def note_admitted(server: Server) -> list[Connection]:
    noted: list[Connection] = []
    admit = server.admit

    def noting(connection: Connection) -> str | None:
        noted.append(connection)
        return admit(connection)

    server.admit = noting  # type: ignore[method-assign]
    return noted


def test_a_forked_child_leaves_the_parents_connections_alone(
    path: Path, context: ssl.SSLContext
) -> None:
    async def fork(ref: ActorRef) -> None:
        await ref.ask(command("add", 1), 30)
        ref.ask_sync(command("add", 1), 30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those here are idle
            child = os.fork()
        if child == 0:
            try:
                correct = number(ref.ask_sync(command("add", 1), 30)) == 3
                ref.close_blocking()
            finally:
                os._exit(0 if correct else 1)
        assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
        assert number(await ref.ask(command("get"), 30)) == 3
        assert number(ref.ask_sync(command("get"), 30)) == 3

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(tls_serving(path, context)) as (server, _, address),
    ):
        ref = ActorRef("counter", address, SECRET, LIMIT, 4)
        accepted = note_admitted(server)
        asyncio.run(fork(ref))
        ref.close_blocking()
        portal.call(until, lambda: not server.connections)
        assert len(accepted) == 3  # the parent's two and the child's: none was made anew
