"""An actor at work: order, deadlines, refusals, defects, the end. Served in this process."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Raw

from flowgentic_actors.actors import runtime
from flowgentic_actors.actors.actor import Call
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import BATCH, BATCH_BYTES, ActorRuntime
from flowgentic_actors.errors import (
    JournalError,
    OutcomeUnknownError,
    RejectedError,
    RequestExpiredError,
    StorageError,
)
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.messages import Cancel, Failure, Hello, Reply, Request
from flowgentic_actors.wire.server import Server
from tests.support.counter import PATIENCE, SECRET, Counter, clear, command, number, serving, until
from tests.support.raw_client import RawClient, raw_client
from tests.support.wire_peer import LIMIT, connection_to

pytestmark = pytest.mark.anyio


class Served:
    """A counter with everything around it, to look into."""

    def __init__(self, path: Path, mailbox: Mailbox) -> None:
        self.counter = Counter()
        self.mailbox = mailbox
        self.reasons: list[str] = []
        self.runtime = ActorRuntime(self.counter, mailbox, self.reasons.append, LIMIT)
        self.server = Server(self.runtime, SECRET, "counter", 1, LIMIT)


@asynccontextmanager
async def served(path: Path, requests: int = 1000, size: int = LIMIT) -> AsyncIterator[Served]:
    clear(path)
    opened = Served(path, Mailbox(requests, size))
    await opened.server.listen(str(path))
    try:
        yield opened
    finally:
        await opened.server.close()


async def greeted(client: RawClient) -> RawClient:
    await client.shake_hands()
    client.hello()
    await client.read(1)
    client.frames.clear()
    return client


def add(seq: int, timeout_ms: int = 30_000) -> Request:
    return Request(seq, 0, timeout_ms, Raw(command("add", 1)))


async def test_requests_are_carried_out_in_the_order_they_were_sent(path: Path) -> None:
    async with serving(path), connection_to(path) as connection:
        asked = [connection.request(command("add", 1), 30) for _ in range(3 * BATCH)]
        assert [number(reply) for reply in await asyncio.gather(*asked)] == list(
            range(1, 3 * BATCH + 1)
        )


async def test_a_request_that_waited_past_its_deadline_is_not_carried_out(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        client.send(add(0, timeout_ms=0), add(1))
        await client.read(2)
    first, second = client.frames[0]
    assert isinstance(first, Failure)
    assert first.kind == "expired"
    assert isinstance(second, Reply)
    assert opened.counter.total == 1


async def test_what_takes_long_is_told_to_the_actor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SLOW", 0.05)
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        client.send(add(0), Request(1, 0, 30_000, Raw(command("spin", 60))), add(2))
        await client.read(3)
        (seconds,) = opened.counter.slow
        assert 0.05 <= seconds < 5


async def test_what_a_lost_connection_asked_is_dropped(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as other:
        patient = await greeted(other)
        opened.counter.on_call = lambda call: spin(0.02)  # longer than a batch
        async with raw_client(path) as raw:
            client = await greeted(raw)
            client.send(*(add(seq) for seq in range(200)))
            await client.read(1)
        await until(lambda: len(opened.server.connections) == 1)
        handled = opened.counter.total
        assert handled < 200
        assert len(opened.mailbox) == opened.mailbox.bytes == 0
        patient.send(add(0))
        await patient.read(1)
        assert opened.counter.total == handled + 1


async def test_a_connection_with_many_requests_does_not_keep_another_one_waiting(
    path: Path,
) -> None:
    async with served(path) as opened, raw_client(path) as one, raw_client(path) as two:
        greedy, modest = await greeted(one), await greeted(two)
        opened.counter.on_call = lambda call: spin(0.02)
        greedy.send(*(add(seq) for seq in range(60)))
        await until(lambda: opened.counter.total)
        for seq in range(3):
            modest.send(add(seq))
            await modest.read(seq + 1)
        assert opened.counter.total < 30


async def test_an_expired_request_raises_its_own_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        AsyncConnection, "_watch", lambda self, deadline: None
    )  # the actor is first
    async with serving(path) as (_, counter), connection_to(path) as connection:
        with pytest.raises(RequestExpiredError, match="deadline"):
            await connection.request(command("add", 1), 0.0)
        assert counter.total == 0


async def test_quick_requests_do_not_wait_for_all_the_slow_ones_behind_them(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        opened.counter.on_call = lambda call: spin(0.005)
        client.send(*(add(seq) for seq in range(100)))
        await client.read(1)
        assert opened.counter.total < 50  # the first answers are here, most work is still to do
        await client.read(100)
        assert len(client.frames) > 5


def spin(seconds: float) -> None:
    """Be busy; sleeping on the loop is not allowed here."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def test_a_cancelled_request_that_still_waits_is_skipped(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        client.send(add(0), add(1), Cancel(1), add(2))
        await client.read(2)
        assert [m.seq for m in client.frames[0] if isinstance(m, Reply)] == [0, 2]
        client.send(Cancel(2), Cancel(77), add(3))  # too late, never heard of
        await client.read(3)
    assert opened.counter.total == 3


async def test_a_flood_is_bounded_by_the_mailbox_and_all_of_it_is_answered(path: Path) -> None:
    async with served(path, requests=100) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        for start in range(0, 5000, 50):
            client.send(*(add(start + n) for n in range(50)))
        await client.read(5000)
        answers = [m.seq for frame in client.frames for m in frame if isinstance(m, Reply)]
    assert answers == list(range(5000))
    assert opened.counter.total == 5000
    assert opened.mailbox.most_requests < 150  # the bound and the frame that reached it


async def test_large_requests_are_bounded_by_bytes(path: Path) -> None:
    async with served(path, size=LIMIT) as opened, connection_to(path) as connection:
        padding = bytes(LIMIT // 2)
        asked = [connection.request(command("add", 1, padding), 30) for _ in range(40)]
        assert [number(reply) for reply in await asyncio.gather(*asked)] == list(range(1, 41))
    assert opened.mailbox.most_bytes <= 2 * LIMIT  # the bound and the frame that reached it


async def test_a_failed_commit_refuses_its_whole_batch_and_ends_the_actor(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        full = Request(1, 0, 30_000, Raw(command("full disk")))
        client.send(add(0), full, add(2))
        await client.read(3)
        assert [m.kind for m in client.frames[0] if isinstance(m, Failure)] == ["storage"] * 3
        await until(lambda: opened.reasons)
        assert opened.reasons == ["no space left"]


async def test_a_full_disk_is_a_storage_error(path: Path) -> None:
    async with served(path), connection_to(path) as connection:
        with pytest.raises(StorageError, match="no space left"):
            await connection.request(command("full disk"), 30)


async def test_after_a_defect_in_commit_nobody_is_told_anything(path: Path) -> None:
    async with served(path) as opened, connection_to(path) as connection:
        await connection.request(command("get"), 30)
        with pytest.raises(OutcomeUnknownError):
            await connection.request(command("bad commit"), 0.2)
        assert opened.reasons == ["ValueError: a defect in commit"]
        assert opened.runtime.busy() == 0.0


async def test_answers_wait_for_a_commit_that_takes_a_while_and_others_go_on(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        opened.counter.commit_later = first
        client.send(add(0), add(1))
        await until(lambda: opened.counter.total == 2)
        assert opened.runtime.busy() == 0.0  # waiting is not being stuck
        opened.counter.commit_later = None
        client.send(add(2))
        await client.read(1)
        draining = asyncio.create_task(opened.runtime.drain(opened.server))
        await asyncio.sleep(0.05)
        assert not draining.done()
        first.set_result(None)
        await client.read(3)
        await draining
    assert [[m.seq for m in f if isinstance(m, Reply)] for f in client.frames] == [[2], [0, 1]]


@pytest.mark.parametrize("error", [JournalError("no space left"), ValueError("a defect")])
async def test_a_commit_that_fails_after_a_while_is_like_one_that_fails_at_once(
    path: Path, error: Exception
) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        commit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        opened.counter.commit_later = commit
        client.send(add(0), add(1))
        await until(lambda: opened.counter.total == 2)
        commit.set_exception(error)
        await until(lambda: opened.reasons)
        await opened.server.close()
        assert await client.ended()
    answers = [m for frame in client.frames for m in frame]
    if isinstance(error, JournalError):
        assert opened.reasons == ["no space left"]
        assert [(m.seq, m.kind) for m in answers if isinstance(m, Failure)] == [
            (0, "storage"),
            (1, "storage"),
        ]
    else:
        assert opened.reasons == ["ValueError: a defect"]
        assert answers == []  # nobody knows, so nobody is told


@pytest.mark.parametrize("surrogates", [0, 100_000])
async def test_a_defect_is_told_to_its_caller_and_ends_the_actor(
    path: Path, surrogates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        monkeypatch.setattr(runtime.logger, "disabled", True)  # a log cannot carry them everywhere
        crash = Request(2, 0, 30_000, Raw(command("crash", surrogates)))
        client.send(add(0), add(1), crash, add(3), add(4))
        await client.read(3)
        await until(lambda: opened.reasons)
        client.send(add(5))
        await asyncio.sleep(0.05)
    one, two, failure = client.frames[0]
    assert isinstance(one, Reply)  # what was done before is durable and answered
    assert isinstance(two, Reply)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.seq) == ("internal", 2)
    assert "RuntimeError: the counter is broken" in failure.text
    assert opened.counter.total == 2  # and nothing after it


async def test_draining_answers_what_was_accepted_and_refuses_what_comes_later(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        (connection,) = opened.server.connections
        draining: list[asyncio.Task[None]] = []

        def drain(call: Call) -> None:
            if call.seq == 0:
                draining.append(asyncio.create_task(opened.runtime.drain(opened.server)))
            if call.seq == BATCH:  # in a later tick than the first
                opened.runtime.received(connection, [add(9999)])

        opened.counter.on_call = drain
        client.send(*(add(seq) for seq in range(2 * BATCH)))
        await client.read(2 * BATCH + 1)
        assert await client.ended()
        await draining[0]
    answers = [message for frame in client.frames for message in frame]
    assert len([m for m in answers if isinstance(m, Reply)]) == 2 * BATCH
    assert [(m.seq, m.kind) for m in answers if isinstance(m, Failure)] == [(9999, "closing")]
    assert opened.counter.total == 2 * BATCH


async def test_stats_tell_what_went_through_the_mailbox(path: Path) -> None:
    async with served(path) as opened, connection_to(path) as connection:
        for _ in range(3):
            await connection.request(command("add", 1), 30)
        with pytest.raises(RejectedError):
            await connection.request(command("refuse", 1), 30)
        one_by_one = opened.runtime.stats()
        (accepted,) = opened.server.connections
        opened.runtime.received(accepted, [add(seq) for seq in range(10, 610)])
        await until(lambda: opened.runtime.stats()["total"] == 603)
        stats = opened.runtime.stats()
    assert one_by_one["requests"] == 4
    assert one_by_one["rejected"] == 1
    assert one_by_one["total"] == 3
    assert one_by_one["mailbox_most_requests"] == 0  # nobody had to wait
    assert stats["total"] == 603
    assert stats["mailbox_requests"] == stats["mailbox_bytes"] == 0
    assert stats["mailbox_most_requests"] == 600 - BATCH
    assert stats["mailbox_most_bytes"] > 0


async def test_each_client_is_known_by_the_session_it_names(path: Path) -> None:
    seen: list[Call] = []
    async with served(path) as opened, raw_client(path) as raw:
        opened.counter.on_call = seen.append
        await raw.shake_hands()
        raw.send(Hello("client", b"sixteen bytes ok", os.getpid()))
        raw.send(Request(7, 5, 30_000, Raw(command("get"))))
        await raw.read(2)
    assert [(call.session, call.seq, call.low) for call in seen] == [(b"sixteen bytes ok", 7, 5)]


# ---------------------------------------------------------------------- peers that do not read


def large(seq: int) -> Request:
    return Request(seq, 0, 30_000, Raw(command("large", LIMIT - 100)))


def unsent(opened: Served) -> int:
    return sum(
        connection._transport.get_write_buffer_size()
        for connection in opened.server.connections
        if connection._transport is not None
    )


async def test_answers_that_nobody_reads_do_not_fill_the_memory(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw, connection_to(path) as other:
        client = await greeted(raw)
        client.pause()
        client.send(*map(large, range(200)))  # 200 MB of answers
        await until(lambda: opened.runtime._aside)
        assert number(await other.request(command("add", 1), 30)) == 1
        assert unsent(opened) < 2 * BATCH_BYTES
        client.resume()
        await client.read(200)
    assert [m.seq for frame in client.frames for m in frame if isinstance(m, Reply)] == list(
        range(200)
    )


async def test_a_peer_that_reads_nothing_and_goes_is_forgotten(path: Path) -> None:
    async with served(path) as opened:
        async with raw_client(path) as raw:
            client = await greeted(raw)
            client.pause()
            client.send(*map(large, range(50)))
            await until(lambda: opened.runtime._aside)
        await until(lambda: not opened.server.connections)
        assert not opened.runtime._aside
        assert len(opened.mailbox) == opened.mailbox.bytes == 0


async def test_the_end_does_not_wait_for_answers_that_nobody_reads(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        client.pause()
        client.send(*map(large, range(50)))
        await until(lambda: opened.runtime._aside)
        async with asyncio.timeout(PATIENCE):
            await opened.runtime.drain(opened.server)
        assert not opened.server.connections


async def test_past_its_lease_an_actor_does_nothing_until_it_has_another_one(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        opened.runtime.extend(-math.inf)
        client.send(add(0), add(1))
        await asyncio.sleep(0.05)
        opened.runtime.extend(time.monotonic() - 1)  # over already
        await asyncio.sleep(0.05)
        assert opened.counter.total == 0
        assert not client.frames
        opened.runtime.extend(math.inf)
        await client.read(2)
        assert [m.seq for m in client.frames[0] if isinstance(m, Reply)] == [0, 1]
        assert opened.counter.total == 2


async def test_what_is_committed_after_the_lease_is_answered_with_the_next_one(path: Path) -> None:
    async with served(path) as opened, raw_client(path) as raw:
        client = await greeted(raw)
        waiting = opened.counter.commit_later = asyncio.get_running_loop().create_future()
        client.send(add(0))
        await until(lambda: opened.counter.total == 1)
        opened.runtime.extend(-math.inf)
        waiting.set_result(None)
        await asyncio.sleep(0.05)
        assert not client.frames
        opened.runtime.extend(math.inf)
        await client.read(1)
        assert [m.seq for m in client.frames[0] if isinstance(m, Reply)] == [0]


async def test_what_an_actor_was_woken_for_is_committed_with_the_next_lease(path: Path) -> None:
    async with served(path) as opened:
        opened.runtime.extend(-math.inf)
        opened.runtime.wake()
        await asyncio.sleep(0.05)
        assert opened.counter.commits == 0
        opened.runtime.extend(math.inf)
        await until(lambda: opened.counter.commits == 1)


async def test_peers_are_answered_beside_the_mailbox_and_the_lease(path: Path) -> None:
    async with served(path) as opened:
        opened.runtime.extend(-math.inf)
        opened.runtime.fence(fenced=True)
        opened.counter.total = 7
        peer = AsyncConnection(str(path), SECRET, "counter", LIMIT, "peer")
        assert number(await peer.request(b"\xc0", PATIENCE)) == 7
        await peer.close()


async def test_an_actor_that_takes_no_clients_sends_them_away_until_it_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counter, "takes_clients", False)
    async with served(path) as opened, connection_to(path) as connection:
        asked = asyncio.create_task(connection.request(command("add", 1), PATIENCE))
        await asyncio.sleep(0.1)
        assert not asked.done()
        monkeypatch.setattr(Counter, "takes_clients", True)
        assert number(await asked) == 1
        assert opened.counter.total == 1
