"""The memory actor at its limits: little memory, a full disk, ceilings, a slow file system."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import Raw

from flowgentic_actors.actors.actor import Call, Postponed
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.replies import Done, ItemPage, ItemReply, Reply
from flowgentic_actors.errors import MemoryFullError, StorageError
from flowgentic_actors.shard import actor as actor_module
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling import maintenance
from flowgentic_actors.shard.memory_tier import Tier, TierEvents, TierMaker
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.storage.disk import RealDisk
from tests.support.actor_settings import actor_settings
from tests.support.limited_disk import SEGMENT, SmallDisk
from tests.support.replicas import context

pytestmark = pytest.mark.anyio

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder().encode


@asynccontextmanager
async def opened(
    folder: Path, make_tier: TierMaker | None = None, **changes: Any
) -> AsyncIterator[ShardActor]:
    """An actor; made and closed off the loop, as its process does before and after serving."""
    settings = actor_settings(**{"segment_bytes": SEGMENT, **changes})
    actor = await asyncio.to_thread(ShardActor, str(folder), settings, make_tier)
    try:
        yield actor
    finally:
        await asyncio.to_thread(actor.close)


class Caller:
    """Asks an actor one thing at a time and waits for the commit, as the runtime does."""

    def __init__(self, actor: ShardActor) -> None:
        self.actor = actor
        self.session = random.randbytes(16)
        self.seq = 0

    async def ask(self, command: Command) -> Reply:
        self.seq += 1
        reply = self.actor.handle(
            Call(self.session, self.seq, self.seq, Raw(msgspec.msgpack.encode(command)))
        )
        assert not isinstance(reply, Postponed)
        encoded = await reply if isinstance(reply, asyncio.Future) else reply
        committed = self.actor.commit()
        if committed is not None:
            await committed
        return _replies.decode(encoded)

    async def put(self, key: str, size: int = 1000, namespace: str = "n") -> None:
        assert await self.ask(put(key, size, namespace)) == Done()

    async def get(self, key: str, namespace: str = "n") -> bytes | None:
        reply = await self.ask(GetItem((namespace,), key))
        assert isinstance(reply, ItemReply)
        return None if reply.row is None else reply.row.value[1]


def cold_reads(actor: ShardActor) -> int:
    return actor.stats()["cold_reads"]


def put(key: str, size: int = 1000, namespace: str = "n") -> PutItem:
    return PutItem((namespace,), key, ("msgpack", value(key, size)))


def value(key: str, size: int = 1000) -> bytes:
    return _encode({"key": key, "pad": "x" * size})


# ---------------------------------------------------------------------------- hot and cold


async def test_values_that_memory_has_let_go_come_back_from_the_journal(tmp_path: Path) -> None:
    async with opened(tmp_path, hot_bytes=20000) as actor:
        caller = Caller(actor)
        for number in range(300):
            await caller.put(f"key-{number}")
        assert actor.stats()["hot_bytes"] <= 20000
        assert cold_reads(actor) == 0
        assert await caller.get("key-0") == value("key-0")
        assert cold_reads(actor) == 1
        assert await caller.get("key-0") == value("key-0")
        assert await caller.get("key-299") == value("key-299")
        assert cold_reads(actor) == 1  # one was asked for lately, the other has just come
    async with opened(tmp_path, hot_bytes=20000) as actor:
        caller = Caller(actor)
        assert actor.stats()["hot_bytes"] <= 20000
        for number in range(300):
            assert await caller.get(f"key-{number}") == value(f"key-{number}")


async def test_a_filter_looks_at_values_that_are_not_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path, hot_bytes=20000) as actor:
        caller = Caller(actor)
        for number in range(600):
            await caller.put(f"key-{number:03d}")
        query = SearchItems((), _encode({"key": {"$gte": "key-590"}}), 100, 3)
        found: list[str] = []
        while True:
            page = await caller.ask(query)
            assert isinstance(page, ItemPage)
            found += [row.key for row in page.rows]
            if page.after is None:
                break
            query = msgspec.structs.replace(
                query, after=page.after, offset=query.offset - page.skipped
            )
        assert found == [f"key-{number}" for number in range(593, 600)]
        assert actor.stats()["hot_bytes"] <= 20000 + (1 << 20)


async def test_threads_are_the_same_however_little_memory_there_is(tmp_path: Path) -> None:
    rng = random.Random(3)
    reference = Shard()
    async with opened(tmp_path, hot_bytes=3000) as actor:
        caller = Caller(actor)
        for number in range(400):
            command = some_thread_command(rng, number)
            reference.execute(command, 0)
            await caller.ask(command)
            if number % 40 == 0:
                await compact(actor)
        for thread in "abcd":
            question = GetCheckpoint(thread, "", None)
            assert await caller.ask(question) == reference.execute(question, 0).reply
        whole = ListCheckpoints()
        assert await caller.ask(whole) == reference.execute(whole, 0).reply
        assert actor.stats()["compactions"]
    async with opened(tmp_path, hot_bytes=3000) as actor:
        assert await Caller(actor).ask(whole) == reference.execute(whole, 0).reply


def some_thread_command(rng: random.Random, number: int) -> Command:
    thread = rng.choice("abcd")
    blob = ("msgpack", rng.randbytes(rng.randrange(300)))
    match rng.randrange(12):
        case 0:
            return DeleteThread(thread)
        case 1 | 2 | 3 | 4:
            write = Write(rng.randrange(-1, 3), "channel", blob)
            return PutWrites(thread, "", f"{number - 1:06d}", "task", "", (write,))
        case _:
            return PutCheckpoint(
                thread, "", f"{number:06d}", None, blob, blob, {}, {"c": number}, {"c": blob}
            )


async def compact(actor: ShardActor) -> None:
    before = actor.stats()["compactions"]
    await asyncio.to_thread(actor._journal._log.settle)  # as the journal's thread does some time
    if actor._compactor.ready:
        actor._compactor.start()
        async with asyncio.timeout(30):
            while actor.stats()["compactions"] == before:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)


async def test_a_damaged_value_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    async with opened(tmp_path, hot_bytes=2000) as actor:
        caller = Caller(actor)
        for number in range(20):
            await caller.put(f"key-{number}")
        (path,) = await asyncio.to_thread(lambda: list(tmp_path.glob("*.seg")))
        data = await asyncio.to_thread(path.read_bytes)
        place = data.index(b"key-1") + 200
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        await asyncio.to_thread(path.write_bytes, flipped)
        assert await caller.get("key-0") == value("key-0")
        with pytest.raises(StorageError, match="is not what was written"):
            await caller.get("key-1")
        assert await caller.get("key-2") == value("key-2")


# ---------------------------------------------------------------------------- space


async def test_a_full_disk_refuses_writes_serves_reads_and_is_freed_by_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "RealDisk", SmallDisk)
    monkeypatch.setattr(maintenance, "_MAKE_ROOM_EVERY", 0.05)
    async with opened(tmp_path) as actor:
        caller = Caller(actor)
        kept = await fill(caller)
        assert len(kept) > 100
        for key in kept:
            assert await caller.get(key) == value(key)
        assert await caller.get("refused") is None
    async with opened(tmp_path) as actor:  # the next incarnation finds the disk as full
        caller = Caller(actor)
        kept += await fill(caller, "more")
        with pytest.raises(StorageError, match="No space left on device"):
            await caller.put("refused")
        for key in kept:
            assert await caller.get(key) == value(key)
        for key in kept[10:]:
            await patiently(caller, DeleteItem(("n",), key))
        await patiently(caller, put("back"))
        for key in [*kept[:10], "back"]:
            assert await caller.get(key) == value(key)


async def patiently(caller: Caller, command: Command) -> None:
    """Do what a full disk may refuse until space was won back."""
    async with asyncio.timeout(30):
        while True:
            try:
                assert await caller.ask(command) == Done()
            except StorageError:
                await asyncio.sleep(0.05)
            else:
                return


async def fill(caller: Caller, prefix: str = "key") -> list[str]:
    """Put items until one is refused; the keys of those that were not."""
    kept: list[str] = []
    while True:
        try:
            await caller.put(f"{prefix}-{len(kept)}")
        except StorageError:
            return kept
        kept.append(f"{prefix}-{len(kept)}")
        await asyncio.sleep(0)  # what is allocated ahead, is by a thread


async def test_a_ceiling_refuses_what_would_grow_and_nothing_else(tmp_path: Path) -> None:
    limits = ShardSettings(item_bytes=10_000, thread_bytes=2_000)
    async with opened(tmp_path, limits=limits) as actor:
        caller = Caller(actor)
        for number in range(9):
            await caller.put(f"key-{number}")
        with pytest.raises(MemoryFullError, match="store_total_mem"):
            await caller.put("key-9")
        assert await caller.get("key-9") is None
        await caller.put("key-0")  # the same size again
        assert await caller.ask(DeleteItem(("n",), "key-1")) == Done()
        await caller.put("key-9")
        blob = ("msgpack", bytes(600))
        checkpoint = PutCheckpoint("t", "", "1", None, blob, blob, {}, {}, {})
        assert await caller.ask(checkpoint) == Done()
        with pytest.raises(MemoryFullError, match="checkpoint_total_mem"):
            await caller.ask(
                PutWrites("t", "", "1", "task", "", (Write(0, "c", ("", bytes(900))),))
            )


# ---------------------------------------------------------------------------- slow file systems


@pytest.mark.parametrize("ack", ["node", "disk"])
async def test_a_thread_can_do_the_appending(tmp_path: Path, ack: str) -> None:
    async with opened(tmp_path, appends="thread", ack=ack, hot_bytes=5000) as actor:
        caller = Caller(actor)
        await asyncio.gather(*(Caller(actor).put(f"key-{number}") for number in range(300)))
        for number in range(300):
            assert await caller.get(f"key-{number}") == value(f"key-{number}")
    async with opened(tmp_path, appends="thread", ack=ack) as actor:
        caller = Caller(actor)
        for number in range(300):
            assert await caller.get(f"key-{number}") == value(f"key-{number}")


async def test_a_thread_that_cannot_append_fails_the_batch_and_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingDisk(RealDisk):
        failing = False

        def write(self, fd: int, data: bytes, offset: int) -> None:
            super().write(fd, data[: len(data) // 2] if self.failing else data, offset)
            if self.failing:
                raise OSError(errno.EIO, "Input/output error")

    disk = FailingDisk()
    monkeypatch.setattr(actor_module, "RealDisk", lambda: disk)
    async with opened(tmp_path, appends="thread") as actor:
        caller = Caller(actor)
        await caller.put("kept")
        disk.failing = True
        for _ in "once", "again":
            with pytest.raises(Exception, match="Input/output error"):
                await caller.put("lost")
        disk.failing = False
    async with opened(tmp_path) as actor:
        caller = Caller(actor)
        assert await caller.get("kept") == value("kept")
        assert await caller.get("lost") is None


# ---------------------------------------------------------------------- the tier


class IdleTier:
    """A memory tier that never comes up; notes whether it was asked to."""

    name = "idle"
    generation = 0
    ready = False
    started = False

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        pass


async def test_a_memory_tier_is_made_when_hot_memory_is_half_full(tmp_path: Path) -> None:
    tiers: list[IdleTier] = []

    def make_tier(_: TierEvents) -> Tier:
        tiers.append(IdleTier())
        return cast("Tier", tiers[-1])

    async def write(caller: Caller, count: int) -> None:
        for _ in range(count):
            await caller.ask(PutItem(("a",), str(caller.seq), ("msgpack", bytes(4096))))

    changes = {"segment_bytes": 16 << 20, "hot_bytes": 4 << 20}
    async with opened(tmp_path / "shard", make_tier, **changes) as actor:
        actor.start(context())
        caller = Caller(actor)
        await write(caller, 400)  # 1.6 MiB: all of it is hot
        assert [tier.started for tier in tiers] == [False]
        await write(caller, 200)
        assert [tier.started for tier in tiers] == [True]
    async with opened(tmp_path / "shard", make_tier, **changes) as actor:
        actor.start(context())
        assert [tier.started for tier in tiers] == [True, True]  # what was there before counts
