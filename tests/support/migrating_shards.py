"""Two shards, each an actor with sockets and a journal, between which slots move.

What each is told comes from the coordinator that decides in a cluster. A model that never moved
anything gets the same commands: whatever is asked, two shards together answer what it answers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import Command, ListNamespaces, ListThreads, Query
from flowgentic_actors.engine.replies import NamespacePage, Reply, ThreadListing
from flowgentic_actors.engine.slots import SLOTS, slot_of_command, slot_of_namespace, slot_of_thread
from flowgentic_actors.errors import ColdValuesError, SlotsMovedError
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.migration.ownership import SlotOwnership
from flowgentic_actors.shard.progress import MigrationStatus, decode_progress
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.server import Server
from tests.support.actor_settings import actor_settings
from tests.support.counter import PATIENCE, SECRET, clear, until
from tests.support.placements import member, placement
from tests.support.replicas import LIMIT, Copy, context
from tests.support.slot_commands import DEPTH, fan_outs, keyed, plain, some_commands

SEGMENT = 16 << 10
RATE = 1 << 30

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder().encode


class Side:
    """One shard with everything around it, as its process has it."""

    def __init__(self, folder: Path, shard: int, **changes: Any) -> None:
        self.folder = folder
        self.name = actor_name(shard)
        self.address = f"{folder}.sock"
        self.settings = actor_settings(**{"segment_bytes": SEGMENT, "claimed": True, **changes})
        self.broken: list[str] = []
        self.ownership: SlotOwnership | None = None
        self.serves = False

    async def begin(self, ownership: SlotOwnership | None) -> None:
        def made() -> ShardActor:
            return ShardActor(str(self.folder), self.settings)

        self.ownership = None
        self.core = await asyncio.to_thread(made)
        self.runtime = ActorRuntime(self.core, Mailbox(1000, 16 << 20), self.broken.append, LIMIT)
        self.server = Server(self.runtime, SECRET, self.name, 1, LIMIT)
        self.core.start(context(self.name, self.runtime.wake))
        clear(Path(self.address))
        if ownership is not None:
            self.tell(ownership)
        await self.server.listen(self.address)
        self.serves = True

    def tell(self, ownership: SlotOwnership | None) -> None:
        assert ownership is not None
        if ownership != self.ownership:
            self.ownership = ownership
            assignment = Assignment(0, "leader", 1, ownership=ownership)
            self.core.on_message(Raw(_encode(assignment)))

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
        await asyncio.to_thread(self.core._commits.close, 5.0)
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

    def __init__(self, place: Path, seed: int = 0, **changes: Any) -> None:
        self.rng = random.Random(seed)
        self.sides = Side(place / "a", 0, **changes), Side(place / "b", 1, **changes)
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
async def two(place: Path, seed: int = 0, **changes: Any) -> AsyncIterator[Two]:
    made = Two(place, seed, **changes)
    await made.begin()
    try:
        yield made
    finally:
        await made.end()


# ---------------------------------------------------------------------- what is asked


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


async def refused(asked: Awaitable[Any]) -> bool:
    try:
        await asked
    except SlotsMovedError:
        return True
    return False


# ---------------------------------------------------------------------- who answers what


def namespace_in(slots: set[int]) -> tuple[str, ...]:
    names = (("ns", f"{n}") for n in range(9999))
    return next(name for name in names if slot_of_namespace(name, DEPTH) in slots)


BLOB = ("msgpack", b"\xc0")


# ---------------------------------------------------------------------- what is in the journal


async def begun_slowly(both: Two) -> None:
    """A move of which a part is done, and the rest takes its time."""
    both.start_move(rate=20_000)
    await until(lambda: both.target.take("position"))
    assert not both.target.take("near")
