"""Blocking connections and their pool, live over Unix sockets."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from flowgentic_actors.errors import (
    ActorUnavailableError,
    BackpressureError,
    ClusterClosedError,
    InvalidRequestError,
    OutcomeUnknownError,
)
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire import sockets
from flowgentic_actors.wire.blocking_connection import BlockingConnection, BlockingPool
from flowgentic_actors.wire.frames import HEADER, MAGIC, VERSION
from flowgentic_actors.wire.messages import Ping, Request, ToClient
from flowgentic_actors.wire.session import MAX_LOSSES
from tests.support.blocking_calls import elsewhere, timed
from tests.support.counter import PATIENCE, SECRET, command, number, serving, until
from tests.support.wire_peer import LIMIT, SOON, body, echo, peer_at, silence


@contextmanager
def connection_to(path: Path, secret: Secret[bytes] = SECRET) -> Iterator[BlockingConnection]:
    connection = BlockingConnection(str(path), secret, "peer", LIMIT)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def pool_to(path: Path, size: int) -> Iterator[BlockingPool]:
    pool = BlockingPool(str(path), SECRET, "peer", LIMIT, size)
    try:
        yield pool
    finally:
        pool.close()


# ---------------------------------------------------------------------- one connection


def test_requests_are_answered_over_one_connection(path: Path) -> None:
    with elsewhere(serving(path)) as (_, (server, _)), connection_to(path) as connection:
        totals = [number(connection.request(command("add", 1), 30)) for _ in range(100)]
        assert totals == list(range(1, 101))
        assert len(server.connections) == 1


def test_large_requests_and_answers_make_it_and_larger_ones_are_refused(path: Path) -> None:
    with elsewhere(serving(path)) as (_, (server, _)), connection_to(path) as connection:
        assert len(bytes(connection.request(command("large", LIMIT), 30))) == LIMIT
        with pytest.raises(InvalidRequestError, match="max_message_bytes"):
            connection.request(command("large", LIMIT + 1), 30)
        with pytest.raises(InvalidRequestError, match="max_message_bytes"):
            connection.request(bytes(LIMIT + 1), 30)
        assert number(connection.request(command("get"), 30)) == 0
        assert len(server.connections) == 1


def test_what_is_unfinished_is_sent_again_under_its_number(path: Path) -> None:
    def hang_up(requests: list[Request]) -> list[ToClient]:
        if requests:
            peer.answer = echo
            peer.hang_up()
        return []

    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:
        assert number(connection.request(body(0), 30)) == 0
        peer.answer = hang_up
        assert number(connection.request(body(1), 30)) == 1
        assert number(connection.request(body(2), 30)) == 2
    assert [request.seq for request in peer.requests] == [0, 1, 1, 2]
    assert [request.oldest_pending for request in peer.requests] == [0, 1, 1, 2]
    assert len({hello.session for hello in peer.hellos}) == 1


def test_what_is_begun_is_with_the_server_before_it_is_waited_for(path: Path) -> None:
    with elsewhere(peer_at(path)) as (portal, peer), connection_to(path) as connection:
        connection.request(body(0), 30)
        peer.answer = silence
        begun = connection.begin(body(1), 30)
        portal.call(until, lambda: len(peer.requests) == 2)
        portal.call(peer.send, echo(peer.requests[1:]))
        assert number(connection.finish(begun)) == 1
        assert [request.seq for request in peer.requests] == [0, 1]


def test_what_is_begun_on_a_connection_that_is_lost_is_sent_again(path: Path) -> None:
    def hang_up(requests: list[Request]) -> list[ToClient]:
        if requests:
            peer.answer = echo
            peer.hang_up()
        return []

    with elsewhere(peer_at(path)) as (portal, peer), connection_to(path) as connection:
        connection.request(body(0), 30)
        peer.answer = hang_up
        begun = connection.begin(body(1), 30)
        portal.call(until, lambda: len(peer.requests) == 2)
        assert number(connection.finish(begun)) == 1
    assert [request.seq for request in peer.requests] == [0, 1, 1]
    assert begun.losses == 1


def test_what_is_given_up_is_not_the_next_ones_answer(path: Path) -> None:
    with elsewhere(peer_at(path)) as (_, peer), pool_to(path, 1) as pool:
        pool.request(body(0), 30)
        peer.answer = silence
        pool.begin(body("old"), 30).give_up()
        peer.answer = echo
        assert bytes(pool.request(body("new"), 30)) == body("new")


def test_it_waits_for_a_server_that_comes_back(path: Path) -> None:
    with connection_to(path) as connection, ThreadPoolExecutor() as threads:
        with elsewhere(serving(path)):
            assert number(connection.request(command("add", 1), 30)) == 1
        waiting = threads.submit(connection.request, command("add", 5), 30)
        with elsewhere(serving(path)):
            assert number(waiting.result(PATIENCE)) == 5


def test_an_actor_that_never_answers_leaves_the_outcome_unknown(path: Path) -> None:
    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:
        connection.request(body(0), 30)
        peer.answer = silence
        with pytest.raises(OutcomeUnknownError, match="may have happened"):
            connection.request(body(1), SOON)
        peer.answer = echo
        assert number(connection.request(body(2), 30)) == 2


def test_without_a_server_nothing_is_sent(path: Path) -> None:
    with (
        connection_to(path) as connection,
        pytest.raises(ActorUnavailableError, match="Nothing was sent"),
    ):
        connection.request(body(1), SOON)


def test_an_actor_that_does_not_read_gives_backpressure(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SEND_BUFFER", 64 << 10)
    with elsewhere(peer_at(path)) as (portal, peer), connection_to(path) as connection:
        assert number(connection.request(body(0), 30)) == 0
        portal.call(peer.reading.clear)
        connection.request(body(1), 30)
        with pytest.raises(BackpressureError, match="Nothing was sent"):
            connection.request(body(bytes(LIMIT - 10)), SOON)
        portal.call(peer.reading.set)
        assert number(connection.request(body(3), 30)) == 3
    assert [number(request.body) for request in peer.requests] == [0, 1, 3]


@pytest.mark.parametrize("server_knows", [True, False])
def test_a_wrong_secret_is_a_typed_error_long_before_the_deadline(
    path: Path, server_knows: bool
) -> None:
    other = Secret(bytes(32))
    ours, theirs = (other, SECRET) if server_knows else (SECRET, other)
    with elsewhere(serving(path, secret=theirs)), connection_to(path, ours) as connection:

        def ask() -> None:
            with pytest.raises(ActorUnavailableError, match="secret"):
                connection.request(body(1), 600)

        assert timed(ask) < PATIENCE


def test_an_answer_that_has_no_place_ends_the_connection(path: Path) -> None:
    def wrong_once(requests: list[Request]) -> list[ToClient]:
        if requests:
            peer.answer = echo
        return [Ping(1) for _ in requests]

    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:
        peer.answer = wrong_once
        assert number(connection.request(body(1), 30)) == 1
        assert [request.seq for request in peer.requests] == [0, 0]


def test_an_answer_that_only_drips_in_does_not_outlast_the_deadline(path: Path) -> None:
    dripping: list[asyncio.Task[None]] = []

    async def drip() -> None:
        for writer in list(peer._writers):
            writer.write(HEADER.pack(MAGIC, VERSION, 2, LIMIT))
            with contextlib.suppress(OSError):
                while not writer.is_closing():
                    writer.write(b"\0")
                    await asyncio.sleep(0.001)

    def start(requests: list[Request]) -> list[ToClient]:
        if requests:
            dripping.append(asyncio.create_task(drip()))
        return []

    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:
        connection.request(body(0), 30)
        peer.answer = start
        with pytest.raises(OutcomeUnknownError):
            connection.request(body(1), SOON)
        connection.close()
    assert dripping


class _Interrupt(BaseException):
    """What Ctrl-C raises, under a name of its own."""


def test_after_an_interrupt_the_next_request_does_not_get_the_old_answer(path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise _Interrupt

    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:
        peer.answer = silence
        old = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, SOON)
            with pytest.raises(_Interrupt):
                connection.request(body("old"), 30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        peer.answer = echo
        assert bytes(connection.request(body("new"), 30)) == body("new")


# ---------------------------------------------------------------------- the pool


def test_many_threads_share_few_connections(path: Path) -> None:
    with (
        elsewhere(serving(path)) as (_, (server, counter)),
        pool_to(path, 8) as pool,
        ThreadPoolExecutor(64) as threads,
    ):

        def add(_: int) -> int:
            return number(pool.request(command("add", 1), PATIENCE))

        totals = list(threads.map(add, range(1000)))
        assert sorted(totals) == list(range(1, 1001))  # each one once, to whoever asked
        assert counter.total == 1000
        assert len(server.connections) <= 8


def test_a_call_that_gets_no_connection_in_time_says_how_to_have_more(path: Path) -> None:
    with elsewhere(peer_at(path)) as (portal, peer), pool_to(path, 1) as pool:
        peer.answer = silence
        with ThreadPoolExecutor() as threads:
            busy = threads.submit(pool.request, body(1), 2 * PATIENCE)
            portal.call(until, lambda: peer.requests)
            with pytest.raises(ActorUnavailableError, match="connection_pool"):
                pool.request(body(2), SOON)
            portal.call(peer.send, echo(peer.requests))
            assert number(busy.result(PATIENCE)) == 1
        assert [number(request.body) for request in peer.requests] == [1]


def test_a_thread_that_threading_does_not_know_keeps_its_connection(path: Path) -> None:
    answers: SimpleQueue[int] = SimpleQueue()
    with elsewhere(peer_at(path)) as (portal, peer), pool_to(path, 1) as pool:
        peer.answer = silence
        _thread.start_new_thread(lambda: answers.put(number(pool.request(body(1), 30))), ())
        portal.call(until, lambda: peer.requests)
        with pytest.raises(ActorUnavailableError, match="connection_pool"):
            pool.request(body(2), SOON)
        portal.call(peer.send, echo(peer.requests))
        assert answers.get(timeout=PATIENCE) == 1
        assert len(peer.requests) == 1  # it was not sent again, over another connection


def test_calls_on_the_event_loops_own_thread_are_answered(path: Path) -> None:
    with elsewhere(serving(path)), pool_to(path, 1) as pool:

        async def on_the_loop() -> list[int]:
            return [number(pool.request(command("add", 1), 30)) for _ in range(3)]

        assert asyncio.run(on_the_loop()) == [1, 2, 3]
        assert asyncio.run(on_the_loop()) == [4, 5, 6]


def test_closing_closes_what_is_idle_now_and_the_rest_when_it_comes_back(path: Path) -> None:
    with elsewhere(peer_at(path)) as (portal, peer), pool_to(path, 2) as pool:
        pool.request(body(0), 30)
        peer.answer = silence
        with ThreadPoolExecutor() as threads:
            out = threads.submit(pool.request, body(1), 2 * PATIENCE)
            portal.call(until, lambda: len(peer.requests) == 2)
            pool.close()
            portal.call(peer.send, echo(peer.requests[1:]))
            assert number(out.result(PATIENCE)) == 1
        with pytest.raises(ClusterClosedError):
            pool.request(body(2), 30)
        portal.call(until, lambda: not any(not w.is_closing() for w in peer._writers))


def test_closing_wakes_those_who_wait_for_a_connection(path: Path) -> None:
    with elsewhere(peer_at(path)) as (portal, peer), pool_to(path, 1) as pool:
        peer.answer = silence
        with ThreadPoolExecutor() as threads:
            busy = threads.submit(pool.request, body(1), 2 * PATIENCE)
            portal.call(until, lambda: peer.requests)
            waiting = threads.submit(pool.request, body(2), 600)
            pool.close()
            with pytest.raises(ClusterClosedError):
                waiting.result(PATIENCE)
            portal.call(peer.send, echo(peer.requests))
            assert number(busy.result(PATIENCE)) == 1


def test_a_request_that_ends_the_actor_each_time_is_failed(path: Path) -> None:
    with elsewhere(peer_at(path)) as (_, peer), connection_to(path) as connection:

        def deadly(requests: list[Request]) -> list[ToClient]:
            if requests:
                peer.hang_up()
            return []

        peer.answer = deadly
        with pytest.raises(OutcomeUnknownError, match="seems to be what ends it"):
            connection.request(body(1), PATIENCE)
        assert len(peer.requests) == MAX_LOSSES
        peer.answer = echo
        assert number(connection.request(body(2), PATIENCE)) == 2
