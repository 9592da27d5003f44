"""Servers, peers and connections over TCP with TLS."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import Address, TcpAddress
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.blocking_connection import BlockingConnection, BlockingPool
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.handshake import KNOCK_BYTES, is_knock
from flowgentic_actors.wire.server import Server
from tests.support.counter import SECRET, Counter, serving
from tests.support.wire_peer import Peer

HOST = "127.0.0.1"
LIMIT = 32 << 20
OURS, THEIRS = new_identity(), new_identity()


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


def asked_times(times: int, *peers: Peer) -> bool:
    return sum(len(peer.requests) for peer in peers) == times
