"""Asking and answering over TCP with TLS, live on this machine, and across forks."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import os
import ssl
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection
from tests.support.blocking_calls import elsewhere
from tests.support.counter import PATIENCE, SECRET, command, number, serving, until
from tests.support.raw_client import unsent
from tests.support.tls import HOST, LIMIT, OURS, blocking_to, connection_to, pool_to, tls_serving

pytestmark = pytest.mark.anyio


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
