"""Slots move between two shards that serve meanwhile, over real sockets and journals.

What each is told comes from the coordinator that decides in a cluster. A model that never moved
anything gets the same commands: whatever is asked, two shards together answer what it answers.
"""

from __future__ import annotations

import asyncio
import errno
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from msgspec import Raw

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine import Shard, pace
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheEntry,
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
    Query,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.model import Scalar, Vector, Version, Write
from flowgentic_actors.engine.replies import (
    Cached,
    CheckpointPage,
    ItemPage,
    ItemReply,
    ItemRow,
    NamespacePage,
    RankPage,
    Reply,
    ThreadIds,
    ThreadListing,
)
from flowgentic_actors.engine.slots import (
    SLOTS,
    slot_of_cached,
    slot_of_command,
    slot_of_namespace,
    slot_of_thread,
)
from flowgentic_actors.errors import ColdValuesError, SlotsMovedError, StorageError
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard import actor as actor_module
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling import maintenance
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.migration import migrator
from flowgentic_actors.shard.migration import source as source_module
from flowgentic_actors.shard.migration import target as target_module
from flowgentic_actors.shard.migration.ownership import OwnershipOrder, SlotOwnership
from flowgentic_actors.shard.peer_protocol import PullSlots, SlotEntries
from flowgentic_actors.shard.progress import MigrationStatus, decode_progress
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.server import Server
from tests.conftest import seeds
from tests.unit.counter import PATIENCE, SECRET, clear, until
from tests.unit.test_coordinator import member, placement
from tests.unit.test_replication import LIMIT, Copy, caught_up, compacted, follows, leads
from tests.unit.test_shard_actor import SmallDisk

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are compared as they are, so none may end because this machine is busy."""
    monkeypatch.setattr(pace, "PAGE_SECONDS", 60.0)


compaction = Compactor.start
DEPTH = 2
SEGMENT = 16 << 10
RATE = 1 << 30

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much is asked for little, nothing is compacted by itself, and what waits waits shortly."""
    monkeypatch.setattr(Compactor, "start", lambda self: None)
    monkeypatch.setattr(source_module, "PIECE", 1500)
    monkeypatch.setattr(target_module, "NEAR", 3000)
    monkeypatch.setattr(target_module, "_IDLE", 0.002)
    monkeypatch.setattr(target_module, "_PAUSE", 0.02)
    monkeypatch.setattr(migrator, "_FULL", 0.05)


# ---------------------------------------------------------------------- two shards


class Side:
    """One shard with everything around it, as its process has it."""

    def __init__(self, folder: Path, shard: int, **arguments: str) -> None:
        self.folder = folder
        self.name = actor_name(shard)
        self.address = f"{folder}.sock"
        self.arguments = {"segment_bytes": str(SEGMENT), **arguments}
        self.broken: list[str] = []
        self.ownership: SlotOwnership | None = None
        self.serves = False

    async def begin(self, ownership: SlotOwnership | None) -> None:
        def made() -> ShardActor:
            return ShardActor(str(self.folder), claimed="1", **self.arguments)  # type: ignore[arg-type]

        self.ownership = None
        self.core = await asyncio.to_thread(made)
        self.runtime = ActorRuntime(self.core, Mailbox(1000, 16 << 20), self.broken.append, LIMIT)
        self.server = Server(self.runtime, SECRET, self.name, 1, LIMIT)
        self.core.start(lambda kind, detail: None, lambda: None, self.runtime.wake)
        clear(Path(self.address))
        if ownership is not None:
            self.tell(ownership)
        await self.server.listen(self.address)
        self.serves = True

    def tell(self, ownership: SlotOwnership | None) -> None:
        assert ownership is not None
        if ownership != self.ownership:
            self.ownership = ownership
            self.core.on_message(Raw(_encode(OwnershipOrder(ownership, SECRET, LIMIT))))

    def stats(self) -> dict[str, int]:
        return self.core.stats() if self.serves else {}

    async def end(self) -> None:
        """An orderly end."""
        self.serves = False
        await self._end_tasks()
        await asyncio.to_thread(self.core.close)

    async def crash(self) -> None:
        """An end in which nothing is finished: what was not appended is not there."""
        self.serves = False
        await self._end_tasks()
        self.core._compactor.close()
        if self.core._group_commit is not None:
            self.core._group_commit.close()
        await asyncio.to_thread(self.core._worker.close, 5.0)
        await asyncio.to_thread(self.core._journal.detach)
        self.core._lock.release()

    async def _end_tasks(self) -> None:
        await self.server.close()
        for task in (self.core.migrator._task, self.core._sweeping):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    @property
    def shard(self) -> Shard:
        """What it holds, shown or not."""
        return self.core._shard

    @property
    def migration(self) -> MigrationStatus | None:
        return decode_progress(self.core.report()).migration if self.serves else None

    def take(self, what: str) -> int:
        if what == "position":
            target_module = self.core.migrator._target
            return target_module.position if target_module is not None else 0
        return int(getattr(self.migration, what, 0))

    @property
    def hides(self) -> list[Any]:
        """What would have to be forgotten."""
        owned_slots = self.core.migrator.owned_slots
        assert owned_slots is not None
        assert self.ownership is not None
        before = self.shard._threads.shown, self.shard._items.shown
        self.shard.set_visible(owned_slots.shows_thread, owned_slots.shows_namespace)
        found = [record for record in self.shard.purge_invisible() if record is not None]
        self.shard.set_visible(*before)
        return found


class Client:
    """Asks one shard, over its socket."""

    def __init__(self, side: Side | Copy, name: str) -> None:
        self.connection = AsyncConnection(side.address, SECRET, name, LIMIT)

    async def ask(self, command: Command) -> Reply:
        return _replies.decode(await self.connection.request(_encode(command), PATIENCE))


class Two:
    """Two shards, what orders them, and whoever asks them.

    Attributes:
        slots: Those that move from the first to the second.
    """

    def __init__(self, place: Path, seed: int = 0, **arguments: str) -> None:
        self.rng = random.Random(seed)
        self.sides = Side(place / "a", 0, **arguments), Side(place / "b", 1, **arguments)
        self.source, self.target = self.sides
        table = even_table(2, DEPTH)
        plan = ClusterPlan(version=0, shards=[], table=table)
        self.host: Placement = placement(plan, ("a", "b"), replicas=1)
        self.slots = [slot for slot in range(SLOTS // 2) if self.rng.random() < 0.5]
        self.clients = Client(self.source, "shard-0"), Client(self.target, "shard-1")
        self.model = Model()
        self.number = 0

    @property
    def table(self) -> SlotTable:
        assert self.host.plan.table is not None
        return self.host.plan.table

    def ownership(self, side: Side) -> SlotOwnership:
        node = "ab"[self.sides.index(side)]
        ownership = self.host.assignments(node).per_shard[0].ownership
        assert ownership is not None
        return ownership

    def heartbeat(self) -> None:
        """Both tell how they are."""
        for node, side in zip("ab", self.sides, strict=True):
            (assignment,) = self.host.assignments(node).per_shard
            address = side.address if side.serves else None
            told = member(
                assignment, node, leads=side.serves, address=address, migration=side.migration
            )
            self.host.heard(node, [told])

    def order(self, *sides: Side) -> None:
        """Both, or some, hear what is decided."""
        self.heartbeat()
        for side in sides or self.sides:
            if side.serves:
                side.tell(self.ownership(side))

    async def begin(self) -> None:
        for side in self.sides:
            await side.begin(self.ownership(side))

    async def end(self) -> None:
        for client in self.clients:
            await client.connection.close()
        for side in self.sides:
            if side.serves:
                await side.end()
            assert not side.broken

    # ------------------------------------------------------------------ a move

    def start_move(self, rate: int = RATE) -> None:
        self.heartbeat()
        self.number = self.host.moves.begin(0, 1, self.slots, rate)
        self.order()

    async def near(self) -> None:
        await until(lambda: self.target.take("near"))

    def hold(self) -> None:
        self.host.moves.freeze(self.number)
        self.order()

    async def done(self) -> None:
        await until(lambda: self.target.take("done") or self.target.take("failed"))
        assert not self.target.take("failed")

    def commit(self) -> None:
        self.host.moves.commit(self.number)

    def give_up(self) -> None:
        self.host.moves.give_up(self.number, "so it is")
        self.order()

    async def moved(self) -> None:
        """From its beginning to its end."""
        self.start_move()
        await self.finish()

    async def finish(self) -> None:
        await self.near()
        self.hold()
        await self.done()
        self.commit()
        self.order()

    async def forgotten(self) -> None:
        """Nobody has anything that is not its own."""
        await until(lambda: not any(side.hides for side in self.sides))

    # ------------------------------------------------------------------ asking

    async def do(self, command: Command) -> Reply:
        """Have the shard whose it is carry out a command, and the model."""
        slot = slot_of_command(command, DEPTH)
        assert slot is not None
        reply = await self.clients[self.table.shards[slot]].ask(command)
        assert plain(reply) == plain(self.model.do(command))
        return reply

    async def do_some(self, count: int) -> None:
        for command in some_commands(self.rng, count):
            await self.do(command)

    def moves(self, command: Command) -> bool:
        slot = slot_of_command(command, DEPTH)
        return slot is not None and slot in self.slots

    async def check_union(self) -> None:
        """What is asked of both is answered once, and whole."""
        for query in fan_outs(self.table.version):
            replies = await asyncio.gather(*(client.ask(query) for client in self.clients))
            found = sorted((part for reply in replies for part in plain(reply)), key=repr)
            assert found == sorted(plain(self.model.do(query)), key=repr)

    async def check(self) -> None:
        """Everything is where the table says, and nowhere else."""
        for query in keyed():
            await self.do(query)
        await self.check_union()


class Model:
    """A shard that nothing moves from."""

    def __init__(self) -> None:
        self.shard = Shard()
        self.now = time.time_ns() // 1000

    def do(self, command: Command) -> Reply:
        self.now += 1
        return self.shard.execute(command, self.now).reply


@asynccontextmanager
async def two(place: Path, seed: int = 0, **arguments: str) -> AsyncIterator[Two]:
    made = Two(place, seed, **arguments)
    await made.begin()
    try:
        yield made
    finally:
        await made.end()


# ---------------------------------------------------------------------- what is asked

THREADS = [f"t{number}" for number in range(16)]
NAMESPACES = [
    ("team", *rest)
    for number in range(8)
    for rest in ((), (f"n{number}",), (f"n{number}", "deep"))
    if rest or not number
]
KEYS = [f"k{number}" for number in range(5)]
RUNS = [f"r{number}" for number in range(3)]
LONG = 3_600_000_000


def direction(number: int) -> bytes:
    return np.array((1.0, number % 7), "<f4").tobytes()


def some_commands(rng: random.Random, count: int) -> Iterator[Command]:
    """Of every kind that writes, and reads that refresh."""
    for _ in range(count):
        number = rng.randrange(1 << 30)
        namespace, key, thread = rng.choice(NAMESPACES), rng.choice(KEYS), rng.choice(THREADS)
        blob = ("msgpack", _encode({"n": number}) + bytes(rng.randrange(90)))
        facets: dict[str, Scalar] = {"run_id": rng.choice(RUNS)}
        checkpoint_id, task = f"{rng.randrange(12):04}", rng.choice(("", "sub"))
        versions: dict[str, Version] = {"c": rng.randrange(4), "d": rng.randrange(4)}
        blobs = {channel: blob for channel in versions if rng.random() < 0.7}
        vectors = (Vector("$", direction(number)),) if rng.random() < 0.3 else ()
        put = PutItem(namespace, key, blob, rng.choice((0, 0, LONG)), vectors=vectors)
        write = Write(rng.choice((-1, 0, 1)), "c", blob)
        checkpoint = PutCheckpoint(
            thread, task, checkpoint_id, f"{number % 12:04}", blob, blob, facets, versions, blobs
        )
        choices: list[Command] = [
            *[put, put, put],
            DeleteItem(namespace, key),
            GetItem(namespace, key, refresh=True),
            *[checkpoint, checkpoint, checkpoint],
            PutWrites(thread, task, checkpoint_id, f"task-{number % 2}", "", (write,)),
            PutWrites(thread, task, checkpoint_id, "task", "path", (write,)),
            PruneThread(thread, 2),
            DropRuns(thread, (rng.choice(RUNS),)),
            *([DeleteThread(thread)] if rng.random() < 0.5 else []),
        ]
        yield rng.choice(choices)


def fan_outs(table: int = 0) -> list[Command]:
    return [
        ListCheckpoints(table=table),
        ListThreads("t", 1000, table=table),
        FindRuns(tuple(RUNS), table=table),
        SearchItems((), b"", 4096, 0, table=table),
        SearchItems(("team",), b"", 4096, 0, refresh=True, table=table),
        RankItems((), b"", direction(3), 4096, 0, table=table),
        ListNamespaces((), None, 4096, 0, table=table),
    ]


def keyed() -> Iterator[Query]:
    """What is about one key, for each of them."""
    for thread in THREADS:
        for ns in ("", "sub"):
            yield GetCheckpoint(thread, ns, None)
            yield GetChannelHistory(thread, ns, None, ("c", "d"))
        yield ListCheckpoints(thread)
        yield ReadThread(thread)
    for namespace in NAMESPACES:
        for key in KEYS:
            yield GetItem(namespace, key)
        if len(namespace) >= DEPTH:
            yield SearchItems(namespace, b"", 4096, 0)
            yield RankItems(namespace, b"", direction(3), 4096, 0)


def plain(reply: Reply) -> Any:
    """What an answer says, without the times that a clock gave."""
    match reply:
        case ItemReply(row):
            return None if row is None else _item(row)
        case ItemPage(rows, after):
            assert after is None
            return [_item(row) for row in rows]
        case RankPage(rows, after):
            assert after is None
            return [(_item(scored.row), scored.score) for scored in rows]
        case CheckpointPage(rows, after):
            assert after is None
            return list(rows)
        case ThreadListing(rows, after):
            assert after is None
            return sorted((row.thread_id, row.checkpoints, row.bytes) for row in rows)
        case ThreadIds(thread_ids):
            return sorted(thread_ids)
        case NamespacePage(namespaces):
            return list(namespaces)
        case _:
            return reply


def _item(row: ItemRow) -> Any:
    return row.namespace, row.key, row.value, row.created_us == row.updated_us


async def raw(side: Side, query: Query) -> Reply:
    """What a shard holds, whatever it answers for and shows."""
    while True:
        try:
            return side.shard.query(query, 0)
        except ColdValuesError as cold:
            for lsn, record in await side.core.cold_reads.fetch(cold.lsns):
                side.shard.warm(lsn, record, lasting=True)


async def stored(both: Two, side: Side) -> Any:
    """All that a shard has of the slots that move, times and lives included."""
    found = [await raw(side, query) for query in keyed() if both.moves(query)]
    lives = side.shard._items._expiry.lives
    moved = {p: life for p, life in lives.items() if slot_of_namespace(p[0], DEPTH) in both.slots}
    return found, moved


def shown(side: Side) -> set[int]:
    """The slots of all that searches and listings of a shard find."""
    query = side.shard.query
    listed, found = query(ListThreads("", 1000), 0), query(ListNamespaces((), None, 4096, 0), 0)
    assert isinstance(listed, ThreadListing)
    assert isinstance(found, NamespacePage)
    return {slot_of_thread(row.thread_id) for row in listed.rows} | {
        slot_of_namespace(namespace, DEPTH) for namespace in found.namespaces
    }


def owned(both: Two, side: Side) -> set[int]:
    shard = both.sides.index(side)
    return {slot for slot, owner in enumerate(both.table.shards) if owner == shard}


# ---------------------------------------------------------------------- all of it

VARIANTS: list[dict[str, str]] = [
    {},
    {"hot_bytes": "2000"},
    {"appends": "thread"},
    {"ack": "disk"},
    {"hot_bytes": "2000", "segment_bytes": str(4 << 10)},
]


async def refused(asked: Awaitable[Any]) -> bool:
    try:
        await asked
    except SlotsMovedError:
        return True
    return False


@pytest.mark.parametrize("seed", seeds(15, quick=3))
async def test_what_is_acknowledged_is_found_once_at_every_moment(place: Path, seed: int) -> None:
    async with two(place, seed, **VARIANTS[seed % len(VARIANTS)]) as both:
        rng, source, target = both.rng, both.source, both.target
        await both.do_some(rng.randrange(20, 250))
        for side in both.sides:
            if rng.random() < 0.5:
                await compacted(side.core)
                await both.do_some(rng.randrange(60))

        both.start_move(rng.choice((100_000, 400_000, RATE)))
        while not target.take("near"):
            await both.do_some(rng.randrange(4))
            assert shown(target) <= owned(both, target)
            if rng.random() < 0.3:
                await both.check_union()
            await asyncio.sleep(0.002)

        both.hold()
        while not target.take("done"):
            for command in some_commands(rng, 3):
                if both.moves(command):
                    with pytest.raises(SlotsMovedError, match="changes hands"):
                        await both.do(command)
                else:
                    await both.do(command)
        await both.check_union()
        assert shown(target) <= owned(both, target)
        before = await stored(both, source)

        old = both.table.version
        both.commit()
        first, second = rng.sample(both.sides, 2)
        both.order(first)
        for table in (old, old + 1):
            for query in fan_outs(table):
                replies = [await refused(client.ask(query)) for client in both.clients]
                assert any(replies)
        for command in some_commands(rng, 10):
            if both.moves(command) and first is source:
                assert await refused(both.do(command))
        both.order(second)
        assert await stored(both, target) == before
        assert shown(source) <= owned(both, source)
        await both.check()

        await both.forgotten()
        assert shown(source) <= owned(both, source)
        await both.do_some(30)
        await both.check()
        for side in both.sides:
            await (side.end() if rng.random() < 0.5 else side.crash())
            await side.begin(both.ownership(side))
        await both.check()


# ---------------------------------------------------------------------- who answers what


def thread_in(slots: set[int]) -> str:
    return next(name for n in range(9999) if slot_of_thread(name := f"x{n}") in slots)


def namespace_in(slots: set[int]) -> tuple[str, ...]:
    names = (("ns", f"{n}") for n in range(9999))
    return next(name for name in names if slot_of_namespace(name, DEPTH) in slots)


BLOB = ("msgpack", b"\xc0")


def one_key(slots: set[int]) -> list[Command]:
    """A command of each kind that is about one key."""
    thread, namespace = thread_in(slots), namespace_in(slots)
    return [
        PutCheckpoint(thread, "", "1", None, BLOB, BLOB, {}, {}, {}),
        PutWrites(thread, "", "1", "task", "", (Write(0, "c", BLOB),)),
        GetCheckpoint(thread, "", None),
        ListCheckpoints(thread),
        GetChannelHistory(thread, "", None, ("c",)),
        ReadThread(thread),
        DropRuns(thread, ("r",)),
        PruneThread(thread, 1),
        DeleteThread(thread),
        PutItem(namespace, "k", BLOB),
        GetItem(namespace, "k"),
        SearchItems(namespace, b"", 10, 0),
        RankItems(namespace, b"", direction(1), 10, 0),
        DeleteItem(namespace, "k"),
    ]


async def answers(both: Two, side: Side, slots: set[int]) -> set[bool]:
    """Whether a shard answers what is about one key of some slots."""
    client = both.clients[both.sides.index(side)]
    return {not await refused(client.ask(command)) for command in one_key(slots)}


async def test_a_key_is_answered_about_by_whoever_has_it_and_by_nobody_while_it_is_held(
    place: Path,
) -> None:
    async with two(place) as both:
        source, target = both.sides
        moving_slots, stay = set(both.slots), owned(both, source) - set(both.slots)
        own = owned(both, target)

        async def who(slots: set[int]) -> tuple[set[bool], set[bool]]:
            return await answers(both, source, slots), await answers(both, target, slots)

        its, others = ({True}, {False}), ({False}, {True})
        for _ in range(2):  # before, and while it is on its way
            assert await who(moving_slots) == its
            assert (await who(stay), await who(own)) == (its, others)
            if not both.number:
                both.start_move()
        await both.near()
        both.hold()
        await both.done()
        assert await who(moving_slots) == ({False}, {False})
        assert (await who(stay), await who(own)) == (its, others)
        both.commit()
        both.order(target)
        assert await who(moving_slots) == others
        both.order(source)
        assert await who(moving_slots) == others
        assert (await who(stay), await who(own)) == (its, others)


async def test_slots_that_were_held_and_stay_are_answered_about_again(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(50)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        both.give_up()
        await both.do_some(50)
        await both.forgotten()
        await both.check()


async def test_what_is_asked_of_all_is_answered_by_one_table(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(40)

        async def by(table: int, *, clients: Sequence[Client] = both.clients) -> list[set[bool]]:
            asked = [*fan_outs(table), CacheClear(table=table)]
            return [{not await refused(c.ask(query)) for query in asked} for c in clients]

        yes, no = {True}, {False}
        assert await by(1) == [yes, yes]
        assert await by(7) == [yes, yes]  # nothing of theirs has changed since the first
        both.start_move()
        assert await by(1) == [yes, yes]
        assert await by(2) == [no, no]  # what it says may not be so here yet
        assert await by(0) == [yes, yes]  # it is asked alone
        await both.finish()
        assert both.table.version == 2
        assert await by(1) == [no, no]
        assert await by(2) == [yes, yes]
        assert await by(3) == [yes, yes]


async def test_a_write_that_is_sent_again_is_answered_from_memory_wherever_its_slot_is(
    place: Path,
) -> None:
    async with two(place) as both:
        namespace = namespace_in(set(both.slots))
        core = both.source.core

        def call(seq: int, command: Command) -> Call:
            return Call(b"c" * 16, seq, 1, Raw(_encode(command)))

        done, new = call(1, PutItem(namespace, "k", BLOB)), call(2, PutItem(namespace, "k", BLOB))
        reply = core.handle(done)
        core.commit()
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        for _ in "held", "moved", "started anew":
            position = core.position
            assert core.handle(done) == reply
            core.commit()
            assert core.position == position
            with pytest.raises(SlotsMovedError):
                core.handle(new)
            if both.host.plan.moves:
                both.commit()
                both.order()
                await both.forgotten()
            else:
                await both.source.end()
                await both.source.begin(both.ownership(both.source))
                core = both.source.core


async def test_values_are_cached_by_whoever_has_their_slots(place: Path) -> None:
    async with two(place) as both:
        stay = owned(both, both.source) - set(both.slots)
        keys = [
            next(key for n in range(9999) if slot_of_cached(key := (("c",), f"{n}")) in slots)
            for slots in (stay, set(both.slots), owned(both, both.target))
        ]
        first, second = both.clients

        async def cached(client: Client) -> list[bool]:
            await client.ask(CacheSet(tuple(CacheEntry(key, BLOB) for key in keys)))
            reply = await client.ask(CacheGet(tuple(keys)))
            assert isinstance(reply, Cached)
            return [value == BLOB for value in reply.values]

        assert await cached(first) == [True, True, False]
        assert await cached(second) == [False, False, True]
        both.start_move()
        await both.near()
        both.hold()
        assert await cached(first) == [True, False, False]
        assert await cached(second) == [False, False, True]
        await both.done()
        both.commit()
        both.order()
        for client in both.clients:
            assert await client.ask(CacheGet(tuple(keys))) == Cached((None, None, None))
        assert await cached(first) == [True, False, False]
        assert await cached(second) == [False, True, True]


# ---------------------------------------------------------------------- what is in the journal


async def test_the_source_forgets_what_it_gave_away_and_holds_less(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        before = both.source.shard.size()
        await both.moved()
        await both.forgotten()
        after, taken = both.source.shard.size(), both.target.shard.size()
        assert after.items < before.items
        assert after.threads < before.threads
        assert after.blob_bytes < before.blob_bytes
        assert after.vector_bytes < before.vector_bytes
        model = both.model.shard.size()
        assert after.items + taken.items == model.items
        assert after.threads + taken.threads == model.threads
        assert after.blob_bytes + taken.blob_bytes == model.blob_bytes


async def test_the_log_stays_while_somebody_reads_on_in_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(place) as both:
        started = asyncio.Event()
        monkeypatch.setattr(both.source.core._compactor, "start", started.set)
        monkeypatch.setattr(both.source.core._maintenance, "_look_after", 1)
        both.start_move()
        await both.near()
        namespace = namespace_in(owned(both, both.source) - set(both.slots))

        async def garbage() -> None:
            for number in range(40):
                blob = ("msgpack", _encode(number) + bytes(3000))
                await both.do(PutItem(namespace, "k", blob))

        await garbage()
        assert not started.is_set()
        both.hold()
        await both.done()
        both.commit()
        both.order()
        monkeypatch.setattr(both.source.core.migrator._source, "_until", 0.0)  # a while later
        await garbage()
        assert started.is_set()


async def begun_slowly(both: Two) -> None:
    """A move of which a part is done, and the rest takes its time."""
    both.start_move(rate=20_000)
    await until(lambda: both.target.take("position"))
    assert not both.target.take("near")


async def test_a_compaction_that_had_begun_before_does_no_harm(place: Path) -> None:
    async with two(place, segment_bytes=str(4 << 10)) as both:
        await both.do_some(300)
        both.start_move(rate=100_000)
        await until(lambda: both.target.take("position"))
        position = both.target.take("position")
        await compacted(both.source.core)
        assert position < both.source.core._journal.compacted_to
        await both.do_some(30)
        await both.finish()
        await both.check()


async def test_without_the_log_all_is_taken_anew(place: Path) -> None:
    async with two(place, segment_bytes=str(4 << 10)) as both:
        await both.do_some(200)
        await begun_slowly(both)
        log_from = both.source.core.position
        while both.source.core._journal.sealed_to <= log_from:
            await both.do_some(10)
        await compacted(both.source.core)
        await until(lambda: both.target.take("failed"))
        assert not both.target.take("done")
        both.give_up()
        await both.forgotten()
        await both.moved()
        await both.check()


async def test_the_largest_item_moves_whatever_is_before_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PIECE", 64 << 10)
    async with two(place, segment_bytes=str(8 << 20)) as both:
        namespace = namespace_in(set(both.slots))
        for number in range(20):
            await both.do(PutItem(namespace, f"small-{number}", ("", bytes(3000))))
        empty = len(_encode(PutItem(namespace, "largest", ("", b""))))
        await both.do(PutItem(namespace, "largest", ("", bytes(LIMIT - empty - 16))))
        await both.moved()
        reply = await raw(both.target, GetItem(namespace, "largest"))
        assert isinstance(reply, ItemReply)
        assert reply.row is not None
        assert len(reply.row.value[1]) == LIMIT - empty - 16


# ---------------------------------------------------------------------- what ends, and begins anew


async def test_a_target_that_ends_keeps_what_it_has_and_begins_nothing_by_itself(
    place: Path,
) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        await both.target.crash()
        await both.target.begin(both.ownership(both.target))
        kept = both.target.shard.size()
        assert both.target.hides
        await both.do_some(20)
        both.order()
        await asyncio.sleep(0.1)
        assert both.target.hides
        assert both.target.shard.size().threads >= kept.threads
        assert both.target.migration is None
        await both.check_union()

        both.host.moves.give_up(both.number, "nothing happens")
        both.start_move()  # it hears of both at once
        await both.do_some(20)
        await both.finish()
        await both.check()
        await both.forgotten()


async def test_an_attempt_that_another_one_follows_is_forgotten_first(place: Path) -> None:
    """What was deleted between the two would come to life again."""
    async with two(place) as both:
        await both.do_some(100)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        both.host.moves.give_up(both.number, "another one")
        for thread in THREADS:
            await both.do(DeleteThread(thread))
        for namespace in NAMESPACES:
            for key in KEYS:
                await both.do(DeleteItem(namespace, key))
        await both.moved()
        await both.check()
        assert both.target.shard.size().threads == both.target.shard.size().items == 0


@pytest.mark.parametrize("knows", [False, True])
async def test_a_target_that_ends_just_when_it_gets_them_has_all(place: Path, knows: bool) -> None:
    async with two(place) as both:
        await both.do_some(200)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        await both.target.crash()
        before = both.ownership(both.target)
        both.commit()
        await both.target.begin(both.ownership(both.target) if knows else before)
        both.order()
        await both.check()
        await both.forgotten()
        await both.check()


async def test_a_target_that_ends_after_it_got_them_has_all(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await both.moved()
        for end in (both.target.crash, both.target.end):
            await end()
            await both.target.begin(both.ownership(both.target))
            await both.check()


@pytest.mark.parametrize("held", [False, True])
async def test_a_source_that_ends_on_the_way_is_asked_on(place: Path, held: bool) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        if held:
            both.hold()
        position = both.target.take("position")
        await both.source.crash()
        both.order()  # it is nowhere
        await both.source.begin(both.ownership(both.source))
        both.order()
        assert both.target.take("position") >= position
        if not held:
            await both.do_some(20)
            await both.near()
            both.hold()
        await both.done()
        assert both.target.take("move") == both.number
        both.commit()
        both.order()
        await both.check()


async def test_a_source_that_is_somewhere_else_now_is_found(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await both.source.crash()
        both.source.address = f"{both.source.folder}-2.sock"
        await both.source.begin(both.ownership(both.source))
        both.clients[0].connection.move(both.source.address)
        both.order()
        await both.do_some(20)
        await both.finish()
        await both.check()


async def test_a_source_that_ends_before_it_has_forgotten_shows_and_keeps_nothing_of_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(place) as both:
        await both.do_some(200)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        both.commit()
        await both.source.crash()  # before it heard of it
        await both.source.begin(both.ownership(both.source))
        both.order()
        assert both.source.hides
        assert shown(both.source) <= owned(both, both.source)
        await both.check()
        await both.forgotten()
        await both.check()


async def test_an_attempt_that_is_given_up_leaves_nothing_behind(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        both.give_up()
        await both.do_some(20)
        await both.forgotten()
        has, others = both.target.shard.size(), both.source.shard.size()
        assert has.threads == both.model.shard.size().threads - others.threads > 0
        await both.check()
        await both.target.end()
        await both.target.begin(both.ownership(both.target))
        assert not both.target.hides
        assert both.target.shard.size() == has


# ---------------------------------------------------------------------- time


async def test_what_is_read_at_the_source_meanwhile_is_not_over_at_the_target(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target hears late of what makes it live on."""
    keeps = ShardSettings(sweep_seconds=0.02)
    async with two(place, settings=keeps.encode()) as both:
        namespace = namespace_in(set(both.slots))
        own = namespace_in(owned(both, both.target))
        first, second = both.clients
        ttl = 400_000
        await first.ask(PutItem(namespace, "k", BLOB, ttl))
        both.start_move()
        await until(lambda: both.target.hides)
        asked = source_module.MigrationSource.on_peer_request
        monkeypatch.setattr(source_module.MigrationSource, "on_peer_request", lambda *_: None)
        await second.ask(PutItem(own, "k", BLOB, ttl))
        deadline = time.monotonic() + 3 * ttl / 1e6
        while time.monotonic() < deadline:
            reply = await first.ask(GetItem(namespace, "k", refresh=True))
            assert isinstance(reply, ItemReply)
            assert reply.row is not None
            await asyncio.sleep(0.05)
        reply = await second.ask(GetItem(own, "k"))
        assert reply == ItemReply(None)
        monkeypatch.setattr(source_module.MigrationSource, "on_peer_request", asked)
        monkeypatch.setattr(target_module, "_PATIENCE", 0.2)
        both.target.core.migrator._target.set_source(both.source.address)  # type: ignore[union-attr]
        both.hold()
        await both.done()
        both.commit()
        both.order()
        reply = await second.ask(GetItem(namespace, "k"))
        assert isinstance(reply, ItemReply)
        assert reply.row is not None
        await until(lambda: both.target.shard.size().items == 0)  # its time is over as well


# ---------------------------------------------------------------------- disks


class FailingDisk(RealDisk):
    """A disk whose syncs, once they are held, wait and then fail."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.fails = threading.Event()

    def sync(self, fd: int) -> None:
        if threading.current_thread().name == "journal-sync" and self.held.is_set():
            self.fails.wait(PATIENCE)
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


async def test_what_a_failing_disk_takes_back_at_the_source_is_not_lost_on_the_way(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given must not rest on a write that never came to be."""
    disk = FailingDisk()
    disks: list[RealDisk] = [disk]
    monkeypatch.setattr(actor_module, "RealDisk", lambda: disks.pop() if disks else RealDisk())
    monkeypatch.setattr(target_module, "_PATIENCE", 0.3)
    real, go_on = target_module.MigrationTarget._ask, asyncio.Event()

    async def ask(self: target_module.MigrationTarget, question: PullSlots) -> SlotEntries:
        if question.position:
            await go_on.wait()
        return await real(self, question)

    monkeypatch.setattr(target_module.MigrationTarget, "_ask", ask)
    async with two(place, ack="disk") as both:
        namespace = namespace_in(set(both.slots))
        first, second = PutItem(namespace, "k", ("", b"1")), PutItem(namespace, "k", ("", b"2"))
        await both.do(first)
        await both.do(PutItem(namespace, "large", ("", bytes(4000))))
        disk.held.set()
        position = both.source.core.position
        writing = asyncio.create_task(both.clients[0].ask(second))
        await until(lambda: both.source.core.position > position)
        both.start_move()
        with anyio.move_on_after(0.5):
            await until(lambda: both.target.take("position"))
        disk.fails.set()
        with pytest.raises(StorageError):
            await writing
        await until(lambda: both.source.broken)
        both.source.broken.clear()
        await both.source.crash()
        await both.source.begin(both.ownership(both.source))
        assert both.source.core.position == position
        both.order()
        go_on.set()
        await both.do(PutItem(namespace, "small", ("", bytes(300))))
        await both.finish()
        await both.check()
        assert await raw(both.target, GetItem(namespace, "k")) != ItemReply(None)


class TinyDisk(SmallDisk):
    segment = 32 << 10
    room = 4 * segment + 4096  # and the note of the log's end


async def test_a_target_whose_disk_is_full_fails_and_forgets_what_it_has_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for deletions is not used up by what is taken over."""
    monkeypatch.setattr(Compactor, "start", compaction)
    monkeypatch.setattr(maintenance, "_MAKE_ROOM_EVERY", 0.05)
    async with two(place, segment_bytes=str(TinyDisk.segment)) as both:
        await both.target.end()
        with monkeypatch.context() as patched:
            patched.setattr(actor_module, "RealDisk", TinyDisk)
            await both.target.begin(both.ownership(both.target))
        own = PutItem(namespace_in(owned(both, both.target)), "k", ("", bytes(1000)))
        await both.do(own)
        threads = [f"{n}" * 33 for n in range(100, 999)]
        threads = [name for name in threads if slot_of_thread(name) in both.slots][:15]
        for thread in threads:
            for number in range(36):
                blob = ("", bytes(60))
                await both.do(PutCheckpoint(thread, "", f"{number}", None, blob, blob, {}, {}, {}))
        both.start_move()
        await until(lambda: both.target.take("failed"))
        assert not both.target.take("done")
        await both.do(PutItem(namespace_in(set(both.slots)), "k", BLOB))
        await both.check_union()
        both.give_up()
        await both.forgotten()
        await both.check_union()
        monkeypatch.setattr(TinyDisk, "room", TinyDisk.room + TinyDisk.segment)
        full = both.target.stats()["journal_bytes"]
        while both.target.stats()["journal_bytes"] > full / 2:
            await patiently(both, own)
        await both.check_union()


async def patiently(both: Two, command: Command) -> None:
    """Do what a full disk may refuse until space was won back."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await both.do(command)
            except StorageError:
                await anyio.sleep(0.05)
            else:
                return


# ---------------------------------------------------------------------- two copies


class LeadingSide(Side):
    """A target of which there is to be a second copy."""

    def __init__(self, copy: Copy) -> None:
        super().__init__(copy.folder, 1)
        self.copy = copy
        self.part = leads(allow_single_copy=True)

    async def begin(self, ownership: SlotOwnership | None) -> None:
        self.part = msgspec.structs.replace(self.part, ownership=ownership)
        if not hasattr(self.copy, "actor"):
            await self.copy.begin(self.part)
        self.copy.tell(self.part)
        await self.copy.until_it_leads()
        self.core, self.ownership, self.serves = self.copy.core, ownership, True

    def tell(self, ownership: SlotOwnership | None) -> None:
        if ownership != self.ownership:
            self.ownership, self.part = (
                ownership,
                msgspec.structs.replace(self.part, ownership=ownership),
            )
            self.copy.tell(self.part)

    async def end(self) -> None:
        self.serves = False
        await self.copy.end()


@asynccontextmanager
async def with_copies(
    place: Path, **arguments: str
) -> AsyncIterator[tuple[Two, LeadingSide, Copy]]:
    """A target that leads, with a follower that has caught up."""
    both = Two(place)
    target = LeadingSide(Copy(place / "b", "node", **arguments))
    both.target, both.sides = target, (both.source, target)
    await both.begin()
    follower = Copy(place / "c", "node", **arguments)
    await follower.begin(follows(target.copy))
    await caught_up(target.copy)
    try:
        yield both, target, follower
    finally:
        await both.end()
        await follower.end()


async def test_slots_are_taken_over_when_the_second_copy_has_them(place: Path) -> None:
    async with with_copies(place) as (both, target, follower):
        await both.do_some(200)
        await follower.crash()
        both.start_move()
        await both.near()
        both.hold()
        end = both.source.core.position
        await until(lambda: target.take("position") == end)
        await asyncio.sleep(0.2)
        assert target.take("done") == target.take("failed") == 0
        await follower.begin(follows(target.copy))
        await both.done()
        before = await stored(both, both.source)
        both.commit()
        both.order(both.source)
        await target.copy.crash()

        promoted = LeadingSide(follower)
        promoted.part = leads(2, follower=False, allow_single_copy=True)
        await promoted.begin(both.ownership(target))
        both.sides = both.source, promoted
        both.clients[1].connection.move(promoted.address)
        assert await stored(both, promoted) == before
        await both.check()
        await both.forgotten()
        both.sides = (both.source,)  # type: ignore[assignment]


async def test_a_second_copy_that_is_always_a_little_behind_is_good_enough(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to have what was taken over, and not all that was written since."""
    monkeypatch.setattr(target_module, "_WHOLE", 1.0)
    send = ReplicationLeader._send_from

    def late(self: ReplicationLeader, position: int, answer: Callable[[bytes], None]) -> None:
        asyncio.get_running_loop().call_later(0.1, send, self, position, answer)

    monkeypatch.setattr(ReplicationLeader, "_send_from", late)
    async with with_copies(place) as (both, target, _):
        await both.do_some(50)
        own = namespace_in(owned(both, target))

        async def write() -> None:
            while True:
                await both.do(PutItem(own, "k", BLOB))

        writing = asyncio.create_task(write())
        try:
            both.start_move()
            await both.near()
            both.hold()
            await both.done()
        finally:
            writing.cancel()
            await asyncio.wait([writing])


async def test_slots_that_are_held_for_one_attempt_end_no_other_one(place: Path) -> None:
    """The source may go on in between, and write what the other one would not hear of."""
    async with two(place) as both:
        source, target = both.sides

        def holds() -> tuple[int, int]:
            source_module = source.core.migrator._source
            assert source_module is not None
            return source_module.frozen_for, source_module.held_from

        await both.do_some(50)
        assert holds() == (0, 0)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        assert holds() == (both.number, source.core.position)
        assert target.take("position") == source.core.position

        both.host.moves.give_up(both.number, "again")
        both.number = both.host.moves.begin(0, 1, both.slots, RATE)
        both.order(target)
        await until(lambda: target.take("move") == both.number and target.take("near"))
        await asyncio.sleep(0.2)
        assert holds()[0] != both.number
        assert not target.take("done")
        stay = owned(both, source) - set(both.slots)
        await both.do(PutItem(namespace_in(stay), "k", BLOB))
        both.hold()
        assert holds() == (both.number, source.core.position)
        await both.done()
        assert target.take("position") == source.core.position

        both.give_up()
        assert holds()[0] == 0
