"""Peers over TCP that are elsewhere: they read nothing for a while, and are there."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import os
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.wire import async_connection as wire_client
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.session import MAX_LOSSES
from tests.support.blocking_calls import elsewhere
from tests.support.counter import PATIENCE, SECRET, command, number, until
from tests.support.tls import (
    HOST,
    LIMIT,
    asked_times,
    blocking_to,
    connection_to,
    nobody,
    pool_to,
    tls_peer,
    tls_serving,
)
from tests.support.wire_peer import body, echo, peer_at, silence

pytestmark = pytest.mark.anyio


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
