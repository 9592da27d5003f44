"""Peers over TCP that are gone without a word."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import socket
import ssl
from functools import partial

import pytest

from flowgentic_actors import deadlines
from flowgentic_actors.errors import OutcomeUnknownError
from flowgentic_actors.wire import addresses, blocking_connection, client_wire
from flowgentic_actors.wire.addresses import unanswered
from flowgentic_actors.wire.messages import Request, ToClient
from tests.support.counter import PATIENCE, number, until
from tests.support.tls import HOST, asked_times, blocking_to, connection_to, tls_peer
from tests.support.wire_peer import SOON, body, echo, silence

pytestmark = pytest.mark.anyio


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
    monkeypatch.setattr(client_wire, "_LOOK", 0.05)
    silent: set[str] = set()

    def look(name: str, sock: socket.socket) -> bool:
        was = name in silent and sock.getpeername()[1] == address.port  # not an earlier test's
        if was:
            silent.discard(name)
        return was

    for module in (client_wire, blocking_connection):
        monkeypatch.setattr(module, "unanswered", partial(look, module.__name__))
    async with tls_peer(context) as (peer, address), connection_to(address) as connection:
        with blocking_to(address) as other:

            async def ask(name: str) -> int:
                if name == blocking_connection.__name__:
                    return number(await asyncio.to_thread(other.request, body(1), PATIENCE))
                return number(await connection.request(body(1), PATIENCE))

            for name in (client_wire.__name__, blocking_connection.__name__):
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
    monkeypatch.setattr(client_wire, "_LOOK", 60.0)
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
