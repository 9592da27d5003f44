"""The asynchronous connection, live over Unix sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
import warnings
from collections.abc import Awaitable
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from msgspec import Raw

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.errors import (
    ActorUnavailableError,
    BackpressureError,
    ClusterClosedError,
    InvalidRequestError,
    OutcomeUnknownError,
    RejectedError,
)
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire import server_connection
from flowgentic_actors.wire.async_connection import TOGETHER, AsyncConnection
from flowgentic_actors.wire.messages import Ping, Reply, Request, ToClient
from flowgentic_actors.wire.session import MAX_LOSSES
from tests.conftest import LOOPS
from tests.support.counter import PATIENCE, SECRET, command, number, serving, until
from tests.support.wire_peer import LIMIT, SOON, body, connection_to, echo, peer_at, silence

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Runs an awaited test on each event loop."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


async def timed(call: Awaitable[object]) -> float:
    """Seconds that a call which must not hang takes."""
    start = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        await call
    return time.monotonic() - start


# ---------------------------------------------------------------------- sending and answering


async def test_requests_of_one_tick_travel_in_one_frame(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        for _ in range(3):
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(connection.request(body(n), 30)) for n in range(100)]
            assert [number(task.result()) for task in asked] == list(range(100))
        # the first of a tick is on its way before the others are made; those travel in groups
        groups = [1, *[TOGETHER] * (99 // TOGETHER), 99 % TOGETHER]
        assert [len(frame) for frame in peer.frames] == [1, 100, *groups, *groups]
        assert len(peer.hellos) == 1


async def test_answers_in_any_order_reach_those_who_asked(path: Path) -> None:
    waiting: list[Request] = []

    def shuffled(requests: list[Request]) -> list[ToClient]:
        waiting.extend(requests)
        if len(waiting) < 500:
            return []
        random.Random(1).shuffle(waiting)
        return echo(waiting)

    async def ask(connection: AsyncConnection, value: int) -> None:
        await asyncio.sleep(value % 7 / 1000)
        assert number(await connection.request(body(value), 30)) == value

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = shuffled
        async with asyncio.TaskGroup() as tasks:
            for value in range(500):
                tasks.create_task(ask(connection, value))
    assert {request.seq for request in waiting} == set(range(500))


async def test_each_request_tells_the_lowest_number_still_waited_for(path: Path) -> None:
    def all_but_the_first(requests: list[Request]) -> list[ToClient]:
        return echo([request for request in requests if request.seq])

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = all_but_the_first
        first = asyncio.create_task(connection.request(body(0), 30))
        await asyncio.sleep(0)
        for value in (1, 2):
            await connection.request(body(value), 30)
        peer.answer = echo
        peer.hang_up()
        assert number(await first) == 0
        await connection.request(body(3), 30)
        lows = {request.seq: request.oldest_pending for request in peer.requests}
    assert lows == {0: 0, 1: 0, 2: 0, 3: 3}


async def test_a_request_above_the_limit_is_refused_here_and_disturbs_nobody(path: Path) -> None:
    async with serving(path), connection_to(path) as connection:
        await connection.request(command("add", 1), 30)
        with pytest.raises(InvalidRequestError, match="max_message_bytes"):
            await connection.request(bytes(LIMIT + 1), 30)
        assert number(await connection.request(command("add", 1), 30)) == 2


async def test_an_answer_above_the_limit_is_an_error_and_disturbs_nobody(path: Path) -> None:
    async with serving(path) as (server, _), connection_to(path) as connection:
        large = await connection.request(command("large", LIMIT), 30)
        assert len(bytes(large)) == LIMIT
        with pytest.raises(InvalidRequestError, match="max_message_bytes"):
            await connection.request(command("large", LIMIT + 1), 30)
        assert number(await connection.request(command("add", 1), 30)) == 1
        assert len(server.connections) == 1


async def test_a_refused_request_raises_what_the_actor_says(path: Path) -> None:
    async with serving(path), connection_to(path) as connection:
        with pytest.raises(InvalidRequestError, match="peer: no"):
            await connection.request(command("refuse", 1), 30)
        with pytest.raises(InvalidRequestError):  # however long the text is
            await connection.request(command("refuse", 100_000), 30)
        assert number(await connection.request(command("get"), 30)) == 0


# ---------------------------------------------------------------------- deadlines


async def test_an_actor_that_never_answers_leaves_the_outcome_unknown(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        await connection.request(body(0), 30)
        peer.answer = silence
        with pytest.raises(OutcomeUnknownError, match="may have happened"):
            await timed(connection.request(body(1), SOON))
        peer.answer = echo
        assert number(await connection.request(body(2), 30)) == 2  # the connection is as good
        assert peer.cancelled == [1]
        assert len(peer.hellos) == 1


async def test_without_a_server_a_request_is_not_sent_and_nothing_goes_on(path: Path) -> None:
    before = asyncio.all_tasks()
    async with connection_to(path) as connection:
        with pytest.raises(ActorUnavailableError, match="Nothing was sent"):
            await timed(connection.request(body(1), SOON))
        async with asyncio.timeout(30):
            while True:
                await asyncio.sleep(SOON)
                if asyncio.all_tasks() == before:  # nobody dials for nobody
                    break
        async with peer_at(path) as peer:
            assert number(await connection.request(body(2), 30)) == 2
            assert [request.seq for request in peer.requests] == [1]


async def test_a_server_that_does_not_greet_is_out_of_reach(path: Path) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_unix_server(mute, path)
    async with connection_to(path) as connection:
        with pytest.raises(ActorUnavailableError):
            await timed(connection.request(body(1), SOON))
    listener.close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("server_knows", [True, False])
async def test_a_wrong_secret_is_a_typed_error_long_before_the_deadline(
    path: Path, server_knows: bool
) -> None:
    other = Secret(bytes(32))
    ours, theirs = (other, SECRET) if server_knows else (SECRET, other)
    async with serving(path, secret=theirs), connection_to(path, ours) as connection:
        with pytest.raises(ActorUnavailableError, match="secret"):
            await timed(connection.request(body(1), 600))


async def test_a_request_that_was_sent_before_its_address_was_taken_over_is_unknown(
    path: Path,
) -> None:
    async with connection_to(path) as connection:
        async with peer_at(path) as peer:
            peer.answer = silence
            task = asyncio.create_task(connection.request(body(1), 600))
            await until(lambda: peer.requests)
        async with peer_at(path, Secret(bytes(32))):
            with pytest.raises(OutcomeUnknownError, match="secret"):
                await timed(task)


async def test_an_actor_that_does_not_read_is_not_sent_more_than_it_takes(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        await connection.request(body(0), 30)
        peer.reading.clear()
        await connection.request(body(1), 30)
        large = body(bytes(LIMIT // 2))
        results = await asyncio.gather(
            *(connection.request(large, 2 * SOON) for _ in range(100)), return_exceptions=True
        )
        kinds = [type(result) for result in results]
        assert set(kinds) == {OutcomeUnknownError, BackpressureError}
        assert 1 <= kinds.count(OutcomeUnknownError) < 30  # a few MB of 50
        assert kinds == sorted(kinds, key=(OutcomeUnknownError, BackpressureError).index)
        peer.reading.set()
        assert number(await connection.request(body(2), 30)) == 2
        sent = [request for request in peer.requests if bytes(request.body) == large]
        assert len(sent) == kinds.count(OutcomeUnknownError)


# ---------------------------------------------------------------------- cancellation


async def test_a_cancelled_request_that_was_not_sent_is_never_sent(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        for connected in (False, True):
            this = asyncio.create_task(connection.request(body("this"), 30))
            task = asyncio.create_task(connection.request(body("not this"), 30))
            await asyncio.sleep(0)  # both have asked; the second was not written yet in any case
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await this
            assert len(peer.requests) == 1 + connected
    assert {bytes(request.body) for request in peer.requests} == {body("this")}
    assert peer.cancelled == []


async def test_an_actor_is_told_that_a_request_was_given_up(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = silence
        task = asyncio.create_task(connection.request(body(1), 30))
        await until(lambda: peer.requests)
        task.cancel()
        await until(lambda: peer.cancelled)
        peer.hang_up()
        peer.answer = echo
        await connection.request(body(2), 30)
        assert [request.seq for request in peer.requests] == [0, 1]  # it is not sent again


@pytest.mark.parametrize("connected", [False, True])
async def test_cancelling_at_any_point_leaves_the_connection_usable(
    path: Path, connected: bool
) -> None:
    async with serving(path) as (server, counter):
        for ticks in range(100):
            async with connection_to(path) as connection:
                if connected:
                    await connection.request(command("get"), 30)
                before = counter.total
                task = asyncio.create_task(connection.request(command("add", 1), 30))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                finished = task.done()
                task.cancel()
                await asyncio.wait([task])
                after = number(await connection.request(command("get"), 30))
                assert after - before in ({1} if finished else {0, 1})
            if finished:
                break
        assert finished  # so every point was tried
        await until(lambda: not server.connections)


# ---------------------------------------------------------------------- reconnecting


async def test_what_is_unfinished_is_sent_again_under_its_number(path: Path) -> None:
    async with connection_to(path) as connection:
        async with peer_at(path) as before:
            await connection.request(body(0), 30)
            before.answer = silence
            tasks = [asyncio.create_task(connection.request(body(n), 30)) for n in (1, 2)]
            await until(lambda: len(before.requests) == 3)
        tasks += [asyncio.create_task(connection.request(body(3), 30))]
        await asyncio.sleep(0.05)
        async with peer_at(path) as after:
            assert [number(await task) for task in tasks] == [1, 2, 3]
    assert [request.seq for request in before.requests] == [0, 1, 2]
    assert [request.seq for request in after.requests] == [1, 2, 3]
    assert {hello.session for hello in after.hellos} == {hello.session for hello in before.hellos}


@pytest.mark.parametrize("guilty", [0, 5, 9])
async def test_a_request_that_ends_the_actor_is_found_out_among_innocent_ones(
    path: Path, guilty: int
) -> None:
    def deadly(requests: list[Request]) -> list[ToClient]:
        if any(number(request.body) == guilty for request in requests):
            peer.hang_up()  # nothing of the batch is answered
            return []
        return echo(requests)

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = deadly
        asked = [connection.request(body(n), PATIENCE) for n in range(10)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        error = results.pop(guilty)
        assert isinstance(error, OutcomeUnknownError)
        assert "seems to be what ends it" in str(error)
        assert [number(r) for r in results if isinstance(r, Raw)] == [
            n for n in range(10) if n != guilty
        ]
        sent = [number(request.body) for request in peer.requests]
        assert sent.count(guilty) <= MAX_LOSSES + 2
        assert number(await connection.request(body(77), PATIENCE)) == 77


async def test_an_innocent_request_outlives_one_death_after_another(path: Path) -> None:
    deaths = 0

    def mortal(requests: list[Request]) -> list[ToClient]:
        nonlocal deaths
        deaths += bool(requests)
        if requests and deaths % MAX_LOSSES:
            peer.hang_up()
            return []
        return echo(requests)

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = mortal
        for n in range(5):
            assert number(await connection.request(body(n), PATIENCE)) == n


async def test_a_broken_answer_ends_the_connection_and_the_request_is_asked_again(
    path: Path,
) -> None:
    def wrong_once(requests: list[Request]) -> list[ToClient]:
        if requests:
            peer.answer = echo
        return [Ping(1) for _ in requests]  # nothing for a client

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = wrong_once
        assert number(await connection.request(body(1), 30)) == 1
        assert [request.seq for request in peer.requests] == [0, 0]


async def test_answers_that_nobody_waits_for_are_passed_over(path: Path) -> None:
    def answers(requests: list[Request]) -> list[ToClient]:
        return [*echo(requests), *echo(requests), Reply(999, Raw(body(0)))]

    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = answers
        for value in range(3):
            assert number(await connection.request(body(value), 30)) == value
        assert len(peer.hellos) == 1


# ---------------------------------------------------------------------- closing


async def test_closing_tells_those_who_wait(path: Path) -> None:
    async with peer_at(path) as peer, connection_to(path) as connection:
        peer.answer = silence
        task = asyncio.create_task(connection.request(body(1), 30))
        await until(lambda: peer.requests)
        await connection.close()
        with pytest.raises(ClusterClosedError):
            await task
        with pytest.raises(ClusterClosedError):
            await connection.request(body(2), 30)
        await connection.close()  # twice is once


async def test_closing_while_it_connects_leaves_no_task(path: Path) -> None:
    before = asyncio.all_tasks()
    connection = AsyncConnection(str(path), SECRET, "peer", LIMIT)
    task = asyncio.create_task(connection.request(body(1), 30))
    await asyncio.sleep(0.01)
    await connection.close()
    with pytest.raises(ClusterClosedError):
        await task
    assert asyncio.all_tasks() == before


def ref_to(path: Path, pool: int = 4) -> ActorRef:
    return ActorRef("counter", str(path), SECRET, LIMIT, pool)


def test_one_reference_serves_one_loop_after_another_without_leaking(path: Path) -> None:
    ref = ref_to(path)

    async def add() -> int:
        return number(await ref.ask(command("add", 1), 30))

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(path)) as (server, _),
    ):
        for expected in (1, 2, 3):
            assert asyncio.run(add()) == expected
            gc.collect()  # a socket left open would warn now, and warnings are errors
            portal.call(until, lambda: not server.connections)
        ref.close_blocking()


def test_closing_in_one_loop_ends_the_connections_of_another(path: Path) -> None:
    ref = ref_to(path)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(path)) as (server, _),
        start_blocking_portal() as other,
    ):
        other.call(lambda: ref.ask(command("get"), 30))
        portal.call(lambda: ref.ask(command("get"), 30))
        portal.call(until, lambda: len(server.connections) == 2)
        other.call(ref.close)
        portal.call(until, lambda: not server.connections)


def test_a_reference_shows_no_secret_and_is_not_pickled(path: Path) -> None:
    ref = ref_to(path)
    assert repr(SECRET) not in repr(ref) + repr(vars(ref)["_blocking"])
    with pytest.raises(TypeError, match=r"memory\.handle"):
        ref.__reduce__()


def test_a_forked_child_makes_connections_of_its_own(path: Path) -> None:
    ref = ref_to(path)

    async def fork() -> int:
        await ref.ask(command("add", 1), 30)
        ref.ask_sync(command("add", 1), 30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those here are idle
            child = os.fork()
        if child == 0:
            try:
                correct = number(ref.ask_sync(command("add", 1), 30)) == 3
            finally:
                os._exit(0 if correct else 1)
        return child

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(path)) as (server, _),
    ):
        child = asyncio.run(fork())
        assert os.waitpid(child, 0)[1] == 0
        assert number(ref.ask_sync(command("get"), 30)) == 3
        ref.close_blocking()
        portal.call(until, lambda: not server.connections)


async def test_the_server_goes_on_when_a_client_breaks_the_protocol(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path), connection_to(path) as connection:
        await connection.request(command("add", 1), 30)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert number(await connection.request(command("get"), 30)) == 1
        with pytest.raises(RejectedError):
            await connection.request(command("refuse", 1), 30)
    assert "does not greet" in caplog.text
    assert server_connection.__name__ in {record.name for record in caplog.records}
