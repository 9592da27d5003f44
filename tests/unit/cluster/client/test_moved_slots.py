"""Slots move between shards while they are used: nothing fails, and nothing is found twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from langgraph.store.base import GetOp, Op, PutOp, SearchOp
from msgspec import Raw

from flowgentic_actors import AsyncCache, AsyncCheckpointSaver, AsyncStore
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.adapters import operations
from flowgentic_actors.cluster.client import remote as client_module
from flowgentic_actors.cluster.client.notifier import Notifier
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.client.routing import outdated, shard_of
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import Description, ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine import item_queries, thread_queries
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheGet,
    CacheSet,
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    FindRuns,
    GetChannelHistory,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import OutcomeUnknownError, PartialFailureError, SlotsMovedError
from flowgentic_actors.wire.addresses import Unreachable
from flowgentic_actors.wire.messages import Failure, Request, ToClient
from flowgentic_actors.wire.server import Server
from tests.support.blocking_calls import elsewhere
from tests.support.counter import SECRET, Counter, command, until
from tests.support.faces import checkpoint_of, config_of
from tests.support.slots import SLOTS, World
from tests.support.wire_peer import LIMIT, peer_at

pytestmark = pytest.mark.anyio

THREADS, EACH = 14, 3
LATE = 0.02
"""Seconds after which a client hears of a table, less than it waits for one."""

both = pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Three shards whose pages are short."""
    monkeypatch.setattr(thread_queries, "MAX_PAGE", 3)
    monkeypatch.setattr(item_queries, "MAX_PAGE", 3)
    world = World(3)
    world.connect(monkeypatch)
    yield world
    world.end()


@pytest.fixture
def saver(world: World) -> AsyncCheckpointSaver:
    saver = AsyncCheckpointSaver(world.client)
    for number in range(THREADS * EACH):
        thread = f"t{number * 5 % THREADS}"
        saved = checkpoint_of({"c": number}, id=f"{number:03}")
        saver.put(config_of(thread), saved, {"run_id": f"r{number % 2}"}, {"c": saved["id"]})
    return saver


@pytest.fixture
def store(world: World) -> AsyncStore:
    store = AsyncStore(
        world.client, index={"dims": 2, "embed": lambda texts: [[1.0, len(t)] for t in texts]}
    )
    for number in range(40):
        store.put(("a", f"n{number % 13}", "x"), f"k{number:02}", {"text": "m" * number})
    return store


def at(world: World, number: int, change: Callable[[], None], kind: type[Any]) -> None:
    """Have something happen before the nth command of a kind."""
    seen = 0

    def before(shard: int, asked: Command) -> None:
        nonlocal seen
        if isinstance(asked, kind):
            seen += 1
            if seen == number:
                change()

    world.before = before


async def rows(saver: AsyncCheckpointSaver, *, blocking: bool, **how: Any) -> AsyncIterator[str]:
    """A listing of everything: the ids."""
    if blocking:
        for found in saver.list(None, **how):
            yield found.checkpoint["id"]
    else:
        async for found in saver.alist(None, **how):
            yield found.checkpoint["id"]


async def threads(saver: AsyncCheckpointSaver, *, blocking: bool, **how: Any) -> AsyncIterator[str]:
    if blocking:
        for found in saver.threads(**how):
            yield found.thread_id
    else:
        async for found in saver.athreads(**how):
            yield found.thread_id


# ---------------------------------------------------------------------- listings


@both
@pytest.mark.parametrize("late", [0.0, LATE])
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_goes_on_behind_its_last_row_when_slots_move(
    world: World, saver: AsyncCheckpointSaver, listing: Any, late: float, blocking: bool
) -> None:
    world.late = late
    expected = [one async for one in listing(saver, blocking=blocking)]
    assert len(expected) == (THREADS * EACH if listing is rows else THREADS)
    assert expected == sorted(set(expected), key=expected.index)
    for moment in range(0, len(expected), 5):
        found: list[str] = []
        async for row in listing(saver, blocking=blocking):
            if len(found) == moment:
                world.rotate()
            found.append(row)
        world.end()
        assert found == expected


@both
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_is_whole_when_slots_move_between_two_shards_pages(
    world: World, saver: AsyncCheckpointSaver, listing: Any, blocking: bool
) -> None:
    """One shard has answered already when another one gives it what that has not listed yet."""
    expected = [one async for one in listing(saver, blocking=blocking)]
    for moment in range(1, 15):
        world.late = random.Random(moment).choice((0.0, LATE))
        at(world, moment, world.rotate, ListCheckpoints if listing is rows else ListThreads)
        assert [one async for one in listing(saver, blocking=blocking)] == expected
        world.end()


@both
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_is_whole_however_slots_move_among_more_and_fewer_shards(
    world: World, saver: AsyncCheckpointSaver, listing: Any, blocking: bool
) -> None:
    expected = [one async for one in listing(saver, blocking=blocking)]
    for seed in range(15):
        rng = random.Random(seed)

        def before(shard: int, asked: Command, rng: random.Random = rng) -> None:
            if rng.random() < 0.2:
                into = [rng.randrange(6) for _ in range(2)]
                world.move({slot: rng.choice(into) for slot in range(SLOTS) if rng.random() < 0.3})

        world.before = before
        limit = rng.choice((None, 1, 7, 100))
        found = [one async for one in listing(saver, blocking=blocking, limit=limit)]
        assert found == expected[:limit]


@both
async def test_a_listing_of_one_thread_goes_after_it(
    world: World, saver: AsyncCheckpointSaver, blocking: bool
) -> None:
    world.late = LATE
    for number in range(EACH * 2):
        saved = checkpoint_of({"c": number}, id=f"9{number}")
        saver.put(config_of("t1"), saved, {"source": "loop"}, {})
    at(world, 2, world.rotate, ListCheckpoints)
    if blocking:
        found = [one.checkpoint["id"] for one in saver.list(config_of("t1"))]
    else:
        found = [one.checkpoint["id"] async for one in saver.alist(config_of("t1"))]
    assert len(found) == EACH * 3
    assert found == sorted(set(found), reverse=True)


# ---------------------------------------------------------------------- searches and the like


@both
@pytest.mark.parametrize("late", [0.0, LATE])
@pytest.mark.parametrize("query", [None, "mmm"], ids=["search", "rank"])
async def test_a_search_of_several_shards_begins_again_when_slots_move(
    world: World, store: AsyncStore, query: str | None, late: float, blocking: bool
) -> None:
    async def search(**how: Any) -> list[str]:
        if blocking:
            return [one.key for one in store.search(("a",), query=query, **how)]
        return [one.key for one in await store.asearch(("a",), query=query, **how)]

    expected = await search(limit=100)
    assert len(set(expected)) == len(expected) == 40
    world.late = late
    for moment in range(1, 15, 3):
        at(world, moment, world.rotate, SearchItems if query is None else RankItems)
        assert await search(limit=30, offset=5) == expected[5:35]
        world.end()


@both
async def test_a_search_of_one_shard_goes_after_it(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    for number in range(20):
        store.put(("a", "n1", "y"), f"{number}", {"text": "m"})
    at(world, 2, world.rotate, SearchItems)
    if blocking:
        found = store.search(("a", "n1"), limit=100)
    else:
        found = await store.asearch(("a", "n1"), limit=100)
    assert len({(one.namespace, one.key) for one in found}) == len(found) == 23


async def namespaces(store: AsyncStore, *, blocking: bool) -> list[tuple[str, ...]]:
    return store.list_namespaces() if blocking else await store.alist_namespaces()


@both
async def test_namespaces_are_all_found_when_slots_move(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    for moment in range(1, 4):
        at(world, moment, world.rotate, ListNamespaces)
        assert sorted(await namespaces(store, blocking=blocking)) == sorted(
            ("a", f"n{n}", "x") for n in range(13)
        )
        world.end()


@both
async def test_all_checkpoints_of_a_run_are_deleted_when_slots_move(
    world: World, saver: AsyncCheckpointSaver, blocking: bool
) -> None:
    world.late = LATE
    at(world, 2, world.rotate, FindRuns)
    if blocking:
        saver.delete_for_runs(["r1"])
    else:
        await saver.adelete_for_runs(["r1"])
    left = [found.metadata.get("run_id") for found in saver.list(None)]
    assert left == ["r0"] * (THREADS * EACH // 2)


@both
async def test_a_batch_that_asks_one_and_all_shards_is_whole(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    world.rotate()
    ops: list[Op] = [
        SearchOp(("a",), limit=100),
        GetOp(("a", "n1", "x"), "k01"),
        *(PutOp(("b", f"{n}"), "k", {"text": "m"}) for n in range(9)),
    ]
    results = store.batch(ops) if blocking else await store.abatch(ops)
    assert isinstance(results[0], list)
    assert len(results[0]) == 40
    assert getattr(results[1], "key", None) == "k01"
    assert len(store.search(("b",), limit=100)) == 9


@both
async def test_a_cache_of_a_shard_that_has_ended_is_another_ones(
    world: World, blocking: bool
) -> None:
    cache: AsyncCache[int] = AsyncCache(world.client)
    pairs: dict[tuple[tuple[str, ...], str], tuple[int, int | None]] = {
        (("n",), f"k{n}"): (n, None) for n in range(30)
    }
    world.late = LATE

    def retire() -> None:
        """And the client has heard half of it: the table is still the old one."""
        world.end()
        world.move({slot: slot % 3 for slot in range(SLOTS)})
        world.end()
        world.client._actors[2].move(Unreachable("gone", moved=True))
        world.retire(2, 0)

    retire()
    cache.set(pairs) if blocking else await cache.aset(pairs)
    assert len(cache.get(list(pairs))) == 30
    retire()
    assert isinstance(cache.get(list(pairs)) if blocking else await cache.aget(list(pairs)), dict)
    cache.set(pairs)
    retire()
    cache.clear() if blocking else await cache.aclear()
    assert not cache.get(list(pairs))


@both
async def test_what_moves_for_too_long_is_said_to_fail(
    world: World, store: AsyncStore, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOVING", 0.2)
    world.answers = False
    begun = time.monotonic()
    with pytest.raises((SlotsMovedError, PartialFailureError), match="asked by table 1"):
        await namespaces(store, blocking=blocking)
    assert 0.2 <= time.monotonic() - begun < 5
    assert world.asked[0] < 20  # between two times it waits for news


# ---------------------------------------------------------------------- one key


@both
@pytest.mark.parametrize("late", [0.0, LATE, 0.2])
async def test_what_is_about_one_key_goes_after_it(
    world: World, store: AsyncStore, saver: AsyncCheckpointSaver, late: float, blocking: bool
) -> None:
    world.late = late
    for number in range(3):
        world.rotate()
        key, saved = f"k{number}", checkpoint_of({"c": number}, id=f"9{number}")
        if blocking:
            store.put(("a", "b"), key, {"n": number}, index=False)
            found = store.get(("a", "b"), key)
            saver.put(config_of("new"), saved, {"source": "loop"}, {})
            latest = saver.get_tuple(config_of("new"))
        else:
            await store.aput(("a", "b"), key, {"n": number}, index=False)
            found = await store.aget(("a", "b"), key)
            await saver.aput(config_of("new"), saved, {"source": "loop"}, {})
            latest = await saver.aget_tuple(config_of("new"))
        assert found is not None
        assert found.value == {"n": number}
        assert latest is not None
        assert latest.checkpoint["id"] == saved["id"]
        world.end()


@both
async def test_a_newer_table_is_used_as_soon_as_it_is_there(
    world: World, store: AsyncStore, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MOVING", 60.0)
    world.late = LATE
    begun = time.monotonic()
    world.rotate()
    get, shard = GetItem(("a", "b"), "k"), world.client.table.of_namespace(("a", "b"))
    await ask(world.client, shard, get, blocking=blocking)
    world.end()
    world.rotate()
    assert len(await namespaces(store, blocking=blocking)) == 13
    assert time.monotonic() - begun < 30


@both
async def test_a_shard_that_keeps_its_slots_after_all_is_asked_again(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    """A move was begun and given up: there is no newer table."""
    home = world.table.of_namespace(("a", "b"))
    world.held.add(home)

    def before(shard: int, asked: Command) -> None:
        if world.asked[home] == 3:
            world.held.clear()

    world.asked.clear()
    world.before = before
    begun = time.monotonic()
    if blocking:
        store.put(("a", "b"), "k", {}, index=False)
    else:
        await store.aput(("a", "b"), "k", {}, index=False)
    assert world.asked == {home: 4}
    assert 0.1 < time.monotonic() - begun < 5
    assert store.get(("a", "b"), "k") is not None


async def ask(client: RemoteClient, shard: int, asked: Command, *, blocking: bool) -> Reply:
    return client.ask_sync(shard, asked) if blocking else await client.ask(shard, asked)


@both
async def test_a_move_that_lasts_is_an_error_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    world = World(2)
    client = world.connect(monkeypatch, timeout=0.3)
    world.held = {0, 1}
    get, home = GetItem(("a", "b"), "k"), world.table.of_namespace(("a", "b"))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    begun = time.monotonic()
    with pytest.raises(SlotsMovedError, match=r"not here.*request_timeout.*Nothing happened"):
        await ask(client, home, get, blocking=blocking)
    assert 0.3 <= time.monotonic() - begun < 5
    if not blocking:
        assert ticks > 10
        world.held = {0}
        asks: list[tuple[int, Command]] = [
            (world.table.of_namespace(one.namespace), one)
            for one in (PutItem(("a", str(n)), "k", ("", b"")) for n in range(20))
        ]
        answers = await client.ask_each([*asks, (0, ListNamespaces((), None, 9, 0, table=1))])
        for (shard, _), answer in zip(asks, answers, strict=False):
            assert isinstance(answer, SlotsMovedError) is (shard == 0)
        assert not isinstance(answers[-1], Exception)
    ticking.cancel()


async def test_only_what_was_refused_is_asked_again(world: World) -> None:
    """And each answer is given to the question that it belongs to."""
    world.late = LATE
    keys = [f"{n}" for n in range(40)]
    for key in keys:
        world.client.ask_sync(
            world.table.of_namespace(("a", key)), PutItem(("a", key), key, ("", key.encode()))
        )
    known = world.client.table
    world.move({slot: 1 for slot in range(SLOTS) if world.table.shards[slot] == 0})
    world.asked.clear()
    asks: list[tuple[int, Command]] = [
        (known.of_namespace(("a", key)), GetItem(("a", key), key)) for key in keys
    ]
    answers: list[Any] = await world.client.ask_each(asks)
    assert [answer.row.key for answer in answers] == keys
    moved = sum(shard == 0 for shard, _ in asks)
    assert world.asked.total() == len(keys) + moved


async def test_a_closed_client_waits_for_no_move(world: World) -> None:
    world.held = {0, 1, 2}
    home = world.table.of_namespace(("a", "b"))
    asking = asyncio.ensure_future(world.client.ask(home, GetItem(("a", "b"), "k")))
    await until(lambda: world.asked[home])
    await world.client.close()
    with pytest.raises(Exception, match="closed"):
        await asking


# ---------------------------------------------------------------------- tables and references


def test_a_shards_number_is_known_once_it_can_be_asked(world: World) -> None:
    made: list[int] = []
    client = world.client
    actors = list(client._actors)

    class Watched(list[Any]):
        def append(self, ref: Any) -> None:
            super().append(ref)
            made.append(client.table.version)
            assert 5 not in client.table.owners

    client._actors = Watched(actors)
    world.move({0: 5})
    assert made == [1, 1, 1]
    assert len(client._actors) == 6
    assert client.table.version == 2
    assert client._actors[:3] == actors


def test_a_shard_that_has_ended_is_no_place_to_ask(world: World) -> None:
    world.retire(1, 2)
    addresses = [ref.address for ref in world.client._actors]
    assert isinstance(addresses[1], Unreachable)
    assert addresses[1].moved
    assert (addresses[0], addresses[2]) == ("/0", "/2")
    world.move({0: 1})
    assert world.client._actors[1].address == "/1"


COMMANDS: list[tuple[Command, str]] = [
    (PutCheckpoint("t", "", "1", None, ("", b""), ("", b""), {}, {}, {}), "thread"),
    (PutWrites("t", "", "1", "", "", ()), "thread"),
    (GetCheckpoint("t", "", None), "thread"),
    (ListCheckpoints("t"), "thread"),
    (ListCheckpoints(), ""),
    (GetChannelHistory("t", "", None, ()), "thread"),
    (ReadThread("t"), "thread"),
    (DeleteThread("t"), "thread"),
    (DropRuns("t", ()), "thread"),
    (PruneThread("t", 1), "thread"),
    (PutItem(("a", "b", "c"), "k", ("", b"")), "namespace"),
    (GetItem(("a", "b"), "k"), "namespace"),
    (DeleteItem(("a", "b"), "k"), "namespace"),
    (SearchItems(("a", "b"), b"", 1, 0), "namespace"),
    (SearchItems(("a",), b"", 1, 0), ""),
    (RankItems(("a", "b"), b"", bytes(4), 1, 0), "namespace"),
    (RankItems(("a",), b"", bytes(4), 1, 0), ""),
    (ListNamespaces((), None, 1, 0), ""),
    (FindRuns(()), ""),
    (ListThreads("", 1), ""),
    (CacheGet(()), ""),
    (CacheSet(()), ""),
    (CacheClear(), ""),
]


@pytest.mark.parametrize(("asked", "about"), COMMANDS, ids=str)
def test_a_command_is_about_one_key_or_about_many(asked: Command, about: str) -> None:
    table = even_table(100, 2)
    place = {"thread": table.of_thread("t"), "namespace": table.of_namespace(("a", "b")), "": None}
    assert len(set(place.values())) == 3
    assert shard_of(table, asked) == place[about]


def test_every_command_is_known() -> None:
    assert {type(asked) for asked, _ in COMMANDS} == set(get_args(Command))


def test_another_table_is_worth_a_question_if_it_says_something_else() -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    one, home = GetItem(("a", "b"), "k"), old.of_namespace(("a", "b"))
    assert not outdated(old, home, one)
    assert outdated(new, home, one)
    assert not outdated(new, 1 - home, one)
    assert not outdated(old, 0, ListThreads("", 1, table=1))
    assert outdated(new, 0, ListThreads("", 1, table=1))
    assert not outdated(new, 0, ListThreads("", 1, table=2))
    assert not outdated(new, 0, CacheGet(()))  # it has no table: a pause is made


# ---------------------------------------------------------------------- news


def test_news_wakes_a_thread_at_once_and_nobody_waits_for_ever() -> None:
    news, there = Notifier(), False
    begun = time.monotonic()
    news.wait_sync(lambda: there, 0.05)
    assert 0.05 <= time.monotonic() - begun < 5
    news.wait_sync(lambda: True, 60)
    with elsewhere(_nothing()) as (portal, _):

        async def soon() -> None:
            nonlocal there
            await asyncio.sleep(0.02)
            news.tell()  # not yet so: it goes on waiting
            there = True
            news.tell()

        portal.start_task_soon(soon)
        news.wait_sync(lambda: there, 60)
    assert time.monotonic() - begun < 30
    assert not news._waiting


async def test_news_wakes_an_event_loop_and_outlives_those_who_gave_up() -> None:
    news, there = Notifier(), False
    gone = asyncio.ensure_future(news.wait(lambda: there, 60))
    waiting = [asyncio.ensure_future(news.wait(lambda: there, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    there = True
    await asyncio.to_thread(news.tell)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not news._waiting
    begun = time.monotonic()
    await news.wait(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - begun < 5
    assert not news._waiting


# ---------------------------------------------------------------------- over sockets


class _nothing:  # noqa: N801 - a context
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class Moving(Counter):
    """Refuses as often as it is told, then answers every command."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals
        self.calls = 0

    def handle(self, call: Any) -> bytes:
        self.calls += 1
        if self.calls <= self.refusals:
            raise SlotsMovedError("slot 7 is another shard's")
        return b"\x91\x01"  # `Done`


class Shards:
    """Actors that are served at some paths."""

    def __init__(self, paths: Sequence[Path], actors: Sequence[Moving]) -> None:
        self._served = [
            (path, ActorRuntime(actor, Mailbox(100, 1 << 20), lambda _: None, LIMIT))
            for path, actor in zip(paths, actors, strict=True)
        ]
        self._servers: list[tuple[ActorRuntime, Server]] = []

    async def __aenter__(self) -> None:
        for number, (where, runtime) in enumerate(self._served):
            server = Server(runtime, SECRET, f"shard-{number}", 1, LIMIT)
            await server.listen(str(where))
            self._servers.append((runtime, server))

    async def __aexit__(self, *_: object) -> None:
        for runtime, server in self._servers:
            await runtime.drain(server)


def client_of(paths: Sequence[Path], table: SlotTable) -> RemoteClient:
    places = ShardMap(
        1, table, tuple(ShardLocation(f"shard-{n}", "", "") for n in range(len(paths)))
    )
    descriptor = Descriptor(name="c", host="", secret=SECRET, max_message_bytes=LIMIT)
    client = RemoteClient(descriptor, Description("", places, LIMIT), 10.0, 2)
    for ref, where in zip(client._actors, paths, strict=True):
        ref.move(str(where))
    return client


async def test_an_actors_refusal_arrives_and_the_other_shard_is_asked(path: Path) -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    paths = [path, path.with_suffix(".b")]
    home = old.of_namespace(("a", "b"))
    actors = [Moving(1000), Moving(1000)]
    actors[1 - home].refusals = 1  # it does not have it yet when it is asked first
    put = PutItem(("a", "b"), "k", ("", b""))
    async with Shards(paths, actors):
        client = client_of(paths, old)
        asking = asyncio.ensure_future(client.ask(home, put))
        await until(lambda: actors[home].calls)
        client.table = new
        client._notifier.tell()
        await asking
        assert actors[home].calls == 1
        assert actors[1 - home].calls == 2
        (answer,) = await client.ask_each([(home, put)])
        assert not isinstance(answer, Exception)
        await client.close()


def test_the_same_for_calls_that_block(path: Path) -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    paths = [path, path.with_suffix(".b")]
    home = old.of_namespace(("a", "b"))
    actors = [Moving(1000), Moving(1000)]
    actors[1 - home].refusals = 1
    with elsewhere(Shards(paths, actors)):
        client = client_of(paths, old)
        client.table = new
        client.ask_sync(home, PutItem(("a", "b"), "k", ("", b"")))
        assert actors[home].calls == 1
        assert actors[1 - home].calls == 2
        asyncio.run(client.close())


async def ask_actor(ref: ActorRef, *, blocking: bool) -> Raw:
    if blocking:
        return await asyncio.to_thread(ref.ask_sync, command("add", 1), 10.0)
    return await ref.ask(command("add", 1), 10.0)


def refuse_the_second_time(peer: Any) -> Callable[[list[Request]], list[ToClient]]:
    def answer(requests: list[Request]) -> list[ToClient]:
        if requests and len(peer.requests) == 1:
            peer.hang_up()
            return []
        return [Failure(request.seq, "moved", "slot 7") for request in requests]

    return answer


@both
async def test_a_refusal_is_definite_when_a_request_was_sent_before(
    path: Path, blocking: bool
) -> None:
    async with peer_at(path) as peer:
        peer.answer = refuse_the_second_time(peer)
        ref = ActorRef("peer", str(path), SECRET, LIMIT, 1)
        with pytest.raises(SlotsMovedError, match="peer: slot 7"):
            await ask_actor(ref, blocking=blocking)
        assert len(peer.requests) == 2
        await ref.close()


@both
async def test_of_an_actor_that_has_ended_only_what_was_never_sent_goes_elsewhere(
    path: Path, blocking: bool
) -> None:
    gone = Unreachable("its slots are other shards' now", moved=True)

    async with peer_at(path) as peer:
        peer.answer = lambda requests: []
        ref = ActorRef("peer", str(path), SECRET, LIMIT, 1)
        asking = asyncio.ensure_future(ask_actor(ref, blocking=blocking))
        await until(lambda: peer.requests)
        ref.move(gone)
        with pytest.raises(OutcomeUnknownError, match="may have happened"):
            await asking
        with pytest.raises(SlotsMovedError, match="Nothing was sent"):
            await ask_actor(ref, blocking=blocking)
        await ref.close()
