"""The copy of a journal's living entries in a memory tier that may lose it at any time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    PutCheckpoint,
    PutItem,
    WriteCommand,
)
from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import TierFullError, TierLostError
from flowgentic_actors.shard import memory_tier as mirror_module
from flowgentic_actors.shard.journaling.entries import LogEntry, encode_entry
from flowgentic_actors.shard.memory_tier import MemoryTier, Tier
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.testing.disk import SimulatedDisk
from tests.conftest import seeds

pytestmark = pytest.mark.anyio

FOLDER = Path("/shard")
CHUNK = 2048


class SmallTier:
    """A tier of a few chunks that answers a little later, and can be told to lose everything."""

    name = "small"

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.kept: dict[int, bytes] = {}
        self.capacity = capacity
        self.generation = 1
        self.ready = True

    def lose(self) -> None:
        self.kept.clear()
        self.generation += 1

    def put(self, key: int, data: bytes) -> asyncio.Future[None]:
        return self._later(lambda: self._put(key, data))

    def _put(self, key: int, data: bytes) -> None:
        others = sum(len(value) for other, value in self.kept.items() if other != key)
        if others + len(data) > self.capacity:
            raise TierFullError("full")
        self.kept[key] = data

    def get(self, key: int) -> asyncio.Future[bytes | None]:
        return self._later(lambda: self.kept.get(key))

    def delete(self, keys: Iterable[int]) -> asyncio.Future[None]:
        doomed = list(keys)
        return self._later(lambda: [self.kept.pop(key, None) for key in doomed])

    @property
    def used(self) -> int:
        return sum(map(len, self.kept.values()))

    def _later(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        generation = self.generation

        def do() -> None:
            if future.cancelled():
                return
            if generation != self.generation:
                future.set_exception(TierLostError("lost"))
                future.exception()
                return
            try:
                future.set_result(work())
            except TierFullError as error:
                future.set_exception(error)
                future.exception()

        loop.call_soon(do)
        return future


class Mirrored:
    """A shard and its journal, mirrored."""

    def __init__(self, tier: SmallTier) -> None:
        self.shard = Shard(hot_bytes=1)
        self.journal = Journal(SimulatedDisk(), FOLDER, durable=False, segment_bytes=10_000)
        list(self.journal.replay())
        self.tier = tier
        self.entries: dict[int, bytes] = {}
        self.memory_tier = MemoryTier(
            self.shard, cast("Tier", tier), self.scan, lambda: self.journal.end
        )

    async def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int]:
        await asyncio.sleep(0)
        return self.journal.scan(lsn, most)

    def do(self, command: Command) -> None:
        assert isinstance(command, WriteCommand)
        planned = self.shard.decide(command, 1)
        if planned.record is not None:
            lsn = self.journal.end
            payload = encode_entry(LogEntry(bytes(16), 1, 1, 1, b"", planned.record))
            self.shard.apply(planned.record, lsn)
            self.entries[lsn] = payload
            self.journal.append([payload])
            self.memory_tier.notice()

    def alive(self) -> dict[int, Record]:
        """What is stored still, by LSN."""
        decode = msgspec.msgpack.Decoder(LogEntry).decode
        return {
            lsn: decode(payload).record
            for lsn, payload in self.entries.items()
            if self.shard.alive(lsn, decode(payload).record)
        }

    async def settled(self) -> None:
        """Wait until the mirror has nothing to do."""
        async with asyncio.timeout(30):
            while True:
                await asyncio.sleep(0.01)
                if not (self.memory_tier._wake.is_set() or self.memory_tier._sparse):
                    return

    async def check(self) -> int:
        """Everything that lives is in the tier, as it was written, or is known not to be."""
        alive = self.alive()
        found, missing = await self.memory_tier.fetch(list(alive))
        assert dict(found) == {lsn: alive[lsn] for lsn in alive if lsn not in missing}
        return len(missing)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "CHUNK", CHUNK)


@pytest.fixture
async def mirrored() -> AsyncIterator[Mirrored]:
    mirrored = await asyncio.to_thread(Mirrored, SmallTier())
    running = asyncio.ensure_future(mirrored.memory_tier.run())
    yield mirrored
    running.cancel()
    await asyncio.wait([running])


def put(number: int, size: int = 100) -> PutItem:
    return PutItem(("n",), f"key-{number}", ("msgpack", random.randbytes(size)))


def some_command(rng: random.Random) -> Command:
    thread = rng.choice("abc")
    blob = ("msgpack", rng.randbytes(rng.randrange(400)))
    match rng.randrange(12):
        case 0:
            return DeleteThread(thread)
        case 1 | 2 | 3:
            version = rng.randrange(30)
            return PutCheckpoint(
                thread, "", f"{version:03d}", None, blob, blob, {}, {"c": version}, {"c": blob}
            )
        case 4 | 5 | 6:
            return DeleteItem(("n",), f"key-{rng.randrange(200)}")
        case _:
            return put(rng.randrange(200), rng.choice([10, 100, 1000, 5000]))


async def test_whole_chunks_are_in_the_tier_and_the_rest_in_the_journal(mirrored: Mirrored) -> None:
    for number in range(100):
        mirrored.do(put(number))
    await mirrored.settled()
    missing = await mirrored.check()
    assert missing * 130 < 2 * CHUNK
    assert all(len(data) <= CHUNK for data in mirrored.tier.kept.values())


async def test_the_room_of_what_is_dead_is_won_back(mirrored: Mirrored) -> None:
    for number in range(400):
        mirrored.do(put(number))
    await mirrored.settled()
    full = mirrored.tier.used
    for number in range(400):
        if number % 5:
            mirrored.do(DeleteItem(("n",), f"key-{number}"))
    await mirrored.settled()
    assert mirrored.tier.used < full * 0.45
    assert len(mirrored.tier.kept) < 400 * 130 / CHUNK / 2  # neighbours were packed together
    await mirrored.check()
    for number in range(400):
        mirrored.do(DeleteItem(("n",), f"key-{number}"))
    await mirrored.settled()
    assert mirrored.tier.used < 2 * CHUNK


@pytest.mark.parametrize("seed", seeds(6, quick=2))
async def test_it_is_right_whatever_happens(mirrored: Mirrored, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(1500):
        mirrored.do(some_command(rng))
        if rng.random() < 0.3:
            await asyncio.sleep(0)
        if rng.random() < 0.05:
            await mirrored.check()
        if number % 500 == 250:
            mirrored.tier.lose()
            mirrored.memory_tier.notice()
    await mirrored.settled()
    missing = await mirrored.check()
    assert missing <= 2 * CHUNK / 100 + len(
        [p for p in mirrored.entries.values() if len(p) > CHUNK]
    )


async def test_a_tier_that_lost_everything_is_filled_from_the_journal(mirrored: Mirrored) -> None:
    for number in range(300):
        mirrored.do(put(number % 100))
    await mirrored.settled()
    mirrored.tier.lose()
    alive = mirrored.alive()
    found, missing = await mirrored.memory_tier.fetch(list(alive))
    assert (found, len(missing)) == ([], len(alive))
    mirrored.memory_tier.notice()
    await mirrored.settled()
    assert await mirrored.check() < 40


async def test_a_full_tier_keeps_what_it_has_and_takes_more_when_there_is_room(
    mirrored: Mirrored,
) -> None:
    mirrored.tier.capacity = 8 * CHUNK
    for number in range(400):
        mirrored.do(put(number))
    await mirrored.settled()
    missing = await mirrored.check()
    assert missing > 100
    assert mirrored.tier.used > 6 * CHUNK
    for number in range(200):
        mirrored.do(DeleteItem(("n",), f"key-{number}"))
    await mirrored.settled()
    for number in range(1000, 1060):
        mirrored.do(put(number))
    await mirrored.settled()
    found, _ = await mirrored.memory_tier.fetch(list(mirrored.alive())[-60:])
    assert len(found) > 20


async def test_a_damaged_chunk_is_not_served(mirrored: Mirrored) -> None:
    for number in range(40):
        mirrored.do(put(number))
    await mirrored.settled()
    for key, data in mirrored.tier.kept.items():
        mirrored.tier.kept[key] = data[:60] + bytes([data[60] ^ 1]) + data[61:]
    missing = await mirrored.check()
    assert missing >= len(mirrored.tier.kept)
