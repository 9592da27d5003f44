"""Shards among which slots move, and a client that reaches them without sockets."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from flowgentic_actors.cluster.client import remote as client_module
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.client.routing import shard_of
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import Description, ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table, moves
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import CacheGet, CacheSet, Command
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import OutcomeUnknownError, SlotsMovedError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import Destination, Unreachable
from flowgentic_actors.wire.session import Pending

SLOTS = len(even_table(1, 2).shards)

HERE = machine()  # cached from here on: it reads a file, which a test on an event loop must not

_encode = msgspec.msgpack.Encoder().encode
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


class World:
    """What is stored, and which shard answers for what.

    Attributes:
        table: The table in force, which a client may not know yet.
        held: Shards that refuse everything that is about one key, because it changes hands.
        answers: Whether shards answer what all are asked.
        asked: How often each shard was asked, refusals included.
        before: Called before a command is carried out.
        late: Seconds after which clients hear of a table; None for never.
    """

    def __init__(self, shards: int) -> None:
        self.table = even_table(shards, 2)
        self.held: set[int] = set()
        self.answers = True
        self.asked: Counter[int] = Counter()
        self.before: Callable[[int, Command], None] = lambda shard, command: None
        self.late: float | None = 0.0
        self.client: RemoteClient
        self._records: list[Record] = []
        self._since = dict.fromkeys(range(shards), 1)
        self._retired: set[int] = set()
        self._now_us = 0
        self._shards = {shard: Shard() for shard in range(shards)}
        self._threads: list[threading.Timer] = []

    def connect(self, patch: pytest.MonkeyPatch, timeout: float = 10.0) -> RemoteClient:
        """A client; it is told of new tables."""
        patch.setattr(client_module, "ActorRef", partial(Ref, self))
        descriptor = Descriptor(
            name="moving", host="", secret=Secret(bytes(32)), max_message_bytes=1 << 20
        )
        self.client = RemoteClient(descriptor, Description("", self.places(), 1 << 20), timeout, 2)
        return self.client

    def places(self) -> ShardMap:
        """What the host would say."""
        numbers = range(max(self._since) + 1)
        gone = self._retired
        places = (ShardLocation(f"shard-{n}", HERE, f"/{n}", retired=n in gone) for n in numbers)
        return ShardMap(self.table.version, self.table, tuple(places))

    def move(self, where: Mapping[int, int]) -> None:
        """Have slots in other shards, and tell the client of it."""
        shards = tuple(where.get(slot, shard) for slot, shard in enumerate(self.table.shards))
        old, self.table = self.table, SlotTable(self.table.version + 1, shards, 2)
        for pair in moves(old, self.table):
            self._since.update(dict.fromkeys(pair, self.table.version))
        self._retired -= set(self.table.owners)
        self._shards = {shard: Shard() for shard in self._since}
        for record in self._records:
            self._shards[self._home(record)].apply(record)
        self.tell()

    def rotate(self) -> None:
        """Give every slot to the next shard."""
        owners = self.table.owners
        after = dict(zip(owners, (*owners[1:], owners[0]), strict=True))
        self.move({slot: after[self.table.shards[slot]] for slot in range(SLOTS)})

    def retire(self, shard: int, heir: int) -> None:
        """Have a shard end that has nothing any more."""
        self._retired.add(shard)
        self.move({slot: heir for slot in range(SLOTS) if self.table.shards[slot] == shard})

    def tell(self) -> None:
        """Let the client know the places as they are now, when it is time."""
        if self.late is None:
            return
        if not self.late:
            self.client._take_places(self.places())
            return
        timer = threading.Timer(self.late, self.client._take_places, (self.places(),))
        self._threads.append(timer)
        timer.start()

    def end(self) -> None:
        """Wait until everything is told."""
        for thread in self._threads:
            thread.join()

    def ask(self, shard: int, command: Command) -> Reply:
        """What the shard's actor does."""
        self.before(shard, command)
        self.asked[shard] += 1
        home = shard_of(self.table, command)
        if home is not None and (home != shard or shard in self.held):
            raise SlotsMovedError(f"shard-{shard}: that slot is not here")
        if home is None and not isinstance(command, CacheGet | CacheSet):
            version = getattr(command, "table", 0)
            if not self._since[shard] <= version <= self.table.version or not self.answers:
                raise SlotsMovedError(f"shard-{shard}: asked by table {version}")
        self._now_us += 1
        reply, record = self._shards[shard].execute(command, self._now_us)
        if record is not None:
            self._records.append(record)
        return reply

    def _home(self, record: Any) -> int:
        if hasattr(record, "thread_id"):
            return self.table.of_thread(record.thread_id)
        return self.table.of_namespace(record.namespace)


class Begun:
    """In the place of a `BlockingCall`."""

    def __init__(self, finish: Callable[[], Raw]) -> None:
        self.finish = finish

    def give_up(self) -> None:
        pass


class Ref:
    """In the place of an `ActorRef`, with nothing between the client and the world."""

    def __init__(self, world: World, name: str, address: Destination, *_: object, **__: object):
        self._world = world
        self._shard = int(name.rpartition("-")[2]) if name != "the host" else -1
        self.address = address

    def move(self, address: Destination) -> None:
        self.address = address

    def _reply(self, body: bytes) -> Raw:
        if isinstance(self.address, Unreachable):
            assert self.address.moved
            raise SlotsMovedError("shard-n has ended. Nothing was sent")
        return Raw(_encode(self._world.ask(self._shard, _commands.decode(body))))

    def ask_sync(self, body: bytes, timeout: float) -> Raw:
        assert timeout > 0
        return self._reply(body)

    def begin_sync(self, body: bytes, timeout: float) -> Begun:
        return Begun(partial(self.ask_sync, body, timeout))

    def connection(self) -> Ref:
        return self

    def begin(self, body: bytes, timeout: float) -> Pending[asyncio.Future[Raw]]:
        assert timeout > 0
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        try:
            settle = partial(waiter.set_result, self._reply(body))
        except (SlotsMovedError, OutcomeUnknownError) as error:
            settle = partial(waiter.set_exception, error)
        loop.call_soon(lambda: waiter.done() or settle())
        return Pending(0, body, timeout, 0.0, waiter)

    def give_up(self, pending: Pending[asyncio.Future[Raw]]) -> None:
        pass

    async def close(self) -> None:
        pass
