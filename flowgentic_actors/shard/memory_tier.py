"""The memory tier's content: a copy of a journal's live records, packed in chunks.

The tier is filled from the journal, after the acknowledgement: a tier that is new, or that
lost everything, fills in the same way. A chunk holds the living records of a stretch of the
journal; as they die it is packed again, together with its neighbours, so that their room is won
back. Whatever the tier cannot give, the journal can.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import zlib
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec

from flowgentic_actors.actors.spec import named_callable
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.records import ItemStored, Record
from flowgentic_actors.errors import JournalError, TierBusyError, TierError, TierFullError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.background import begin
from flowgentic_actors.shard.journaling.entries import LogEntry, decode_entry
from flowgentic_actors.shard.settings import ActorArguments, TierSettings

CHUNK: Final = 128 << 10
"""Bytes of a chunk, its entries' heads included: a power of two, see docs/explanation/ddict.md."""

_HEAD = struct.Struct("!QII")  # LSN, length, CRC-32
_SPARSE = 0.5  # living part below which a chunk is packed again
_SPARSE_WHEN_FULL = 0.85
_NEARLY_FULL = 0.8
_MOST_MERGED = 32
_WHILE_BUSY = 0.05
_AFTER_ERROR = 1.0
_END, _KILL = 6.0, 2.0  # below close_timeout, in which the actor must have ended

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Record] = msgspec.msgpack.Decoder(Record).decode

TierEntries = list[tuple[int, bytes]]
Scan = Callable[[int, int], Awaitable[tuple[TierEntries, int]]]


class Tier(Protocol):
    """A store of chunks that may lose everything at any time, and is empty then.

    Attributes:
        name: What the names of its counters begin with.
        generation: Number of the store in use or being made, 0 before `start`.
    """

    name: str
    generation: int

    @property
    def ready(self) -> bool:
        """Whether the tier accepts calls."""

    @property
    def used(self) -> int:
        """Bytes of values that it holds."""

    @property
    def capacity(self) -> int:
        """Bytes of values that it can hold."""

    def start(self) -> None:
        """Begin to make the store; `ready` says when it is there."""

    def put(self, key: int, data: bytes) -> asyncio.Future[None]:
        """Store a value under a key, replacing an earlier one."""

    def get(self, key: int) -> asyncio.Future[bytes | None]:
        """Fetch a value, None when there is none."""

    def delete(self, keys: Iterable[int]) -> asyncio.Future[None]:
        """Delete values."""

    def stats(self) -> dict[str, int]:
        """Counters; callable from any thread."""

    async def end(self, timeout: float = ...) -> bool:
        """End the store in order; `close` follows. Returns whether that was done in time."""

    def close(self) -> None:
        """Begin to end what is left of the store, by force and without waiting for it."""

    async def wait_closed(self, timeout: float = ...) -> bool:
        """After `close`: wait until nothing is left. Returns whether that is so, in time."""


TierEvents = Callable[[EventKind, str], None]
"""Called on the loop with the events of a tier and a detail."""

TierMaker = Callable[[TierEvents], Tier | None]
"""Makes an actor's tier, which `start` starts; None where there can be none."""

TierFactory = Callable[[TierSettings, Path, TierEvents], Tier | None]
"""Makes a tier with files beside a path; None where this process cannot have one."""


def tier_maker(arguments: ActorArguments) -> TierMaker | None:
    """The maker of the tier that an actor's settings ask for, None if they ask for none."""
    settings = arguments.settings.tier
    if settings is None:
        return None
    factory: TierFactory = named_callable(settings.factory)
    return partial(factory, settings, Path(arguments.tier_path))


class _Chunk:
    """One chunk: the live records of a stretch of the journal, from `first` on."""

    __slots__ = ("first", "live", "packed", "there")

    def __init__(self, first: int) -> None:
        self.first = first
        self.live = 0  # bytes of values that are stored still
        self.packed = 0  # bytes of values that it holds
        self.there = False


class MemoryTier:
    """Fills a tier from a journal, and reads from it.

    Everything runs on the event loop; the shard is only looked at between two requests.

    Args:
        shard: Tells which entries live.
        tier: Where the chunks go.
        scan: Reads the journal from an LSN on, off the loop.
        limit: LSN up to which entries can be scanned.
        wanted_from: Bytes of values in memory from which on they may soon be let go. Before that
            nothing is asked of the tier, and it would hold everything a second time.
    """

    def __init__(
        self,
        shard: Shard,
        tier: Tier,
        scan: Scan,
        limit: Callable[[], int],
        wanted_from: int = 0,
    ) -> None:
        self._shard = shard
        self._tier = tier
        self._scan = scan
        self._limit = limit
        self._wanted_from = wanted_from
        self._wanted = False
        self._filling_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._generation = -1
        self._threshold = _SPARSE
        self._start_over()
        self.reads = 0
        shard.when_dropped(self._dropped)

    def _start_over(self) -> None:
        self._firsts: list[int] = []
        self._chunks: list[_Chunk] = []  # by `first`, ascending
        self._filling: TierEntries = []
        self._filling_bytes = 0
        self._position = 0  # LSN up to which the journal was read
        self._sparse: dict[int, None] = {}  # firsts of chunks to be packed again

    def stats(self) -> dict[str, int]:
        """Counters; callable from any thread."""
        return {
            "mirror_chunks": len(self._chunks),
            "mirror_position": self._position,
            f"{self._tier.name}_reads": self.reads,
            **self._tier.stats(),
        }

    def start(self) -> None:
        """Begin to fill the tier, once it is wanted."""
        self._filling_task = begin(self.run())
        self.advance(self._limit())

    def advance(self, end: int) -> None:
        """Go on when entries were appended; the store is made once it may soon be needed.

        Args:
            end: LSN after the last of them.
        """
        if not self._wanted:
            self._wanted = self._shard.hot_bytes >= self._wanted_from
        if self._wanted and end - self._position >= CHUNK:
            if not self._tier.generation:
                self._tier.start()
            self.notice()

    async def drained(self) -> None:
        """End the store, in order if that works within a bound."""
        await self._tier.end(_END)
        self._tier.close()
        await self._tier.wait_closed(_KILL)

    def close(self) -> None:
        """Stop filling, and begin to end what is left of the store."""
        if self._filling_task is not None:
            self._filling_task.cancel()
        self._tier.close()

    def notice(self) -> None:
        """Wake the filler: entries were appended, or the tier has become ready."""
        self._wake.set()

    async def run(self) -> None:
        """Fill and repack the tier until cancelled."""
        while True:
            try:
                worked = self._tier.ready and await self._work()
            except TierError as error:
                # Lost, or too busy: the next round finds out which.
                logger.debug("the tier refused: %s", error)
                await asyncio.sleep(_WHILE_BUSY)
                continue
            except (JournalError, OSError):
                logger.exception("the mirror cannot read the journal")
                await asyncio.sleep(_AFTER_ERROR)
                continue
            if not worked:
                self._wake.clear()
                await self._wake.wait()

    async def _work(self) -> bool:
        if self._generation != self._tier.generation:
            self._generation = self._tier.generation
            self._start_over()
        self._look_at_room()
        if self._sparse:
            await self._repack(next(iter(self._sparse)))
            return True
        if self._limit() - self._position < CHUNK:
            return False
        await self._fill()
        return True

    # ------------------------------------------------------------------ filling

    async def _fill(self) -> None:
        """Read a stretch of the journal; store a chunk when there is enough for one."""
        generation = self._generation
        entries, position = await self._scan(self._position, CHUNK)
        if generation != self._tier.generation:
            return
        if not self._chunks or self._chunks[-1].there:
            self._open_chunk(self._position)
        self._position = position
        for lsn, payload in entries:
            entry = decode_entry(payload)
            if not isinstance(entry, LogEntry) or not self._shard.alive(lsn, entry.record):
                continue
            record = _encode(_without_vectors(entry.record))
            size = _HEAD.size + len(record)
            if self._filling and self._filling_bytes + size > CHUNK:
                await self._put_filling()
                if generation != self._tier.generation:
                    return
                self._open_chunk(lsn)
            live = self._shard.alive(lsn, entry.record)  # it may have died meanwhile
            self._filling.append((lsn, record))
            self._filling_bytes += size
            self._chunks[-1].live += live
            self._chunks[-1].packed += live

    def _open_chunk(self, first: int) -> None:
        self._firsts.append(first)
        self._chunks.append(_Chunk(first))

    async def _put_filling(self) -> None:
        chunk = self._chunks[-1]
        entries, self._filling, self._filling_bytes = self._filling, [], 0
        await self._put(chunk, entries)

    async def _put(self, chunk: _Chunk, entries: TierEntries) -> None:
        data = _pack(entries)
        while True:
            try:
                await self._tier.put(chunk.first, data)
            except TierBusyError:
                await asyncio.sleep(_WHILE_BUSY)
            except TierFullError:
                chunk.there = False  # the journal has it
                return
            else:
                chunk.there = True
                self._consider(chunk)
                return

    # ------------------------------------------------------------------ winning space back

    def _dropped(self, lsn: int, size: int) -> None:
        if lsn < self._position:
            index = self._index(lsn)
            if index >= 0:
                chunk = self._chunks[index]
                chunk.live -= size
                self._consider(chunk)

    def _consider(self, chunk: _Chunk) -> None:
        if chunk.there and chunk.live < self._threshold * chunk.packed:
            self._sparse[chunk.first] = None
            self._wake.set()

    def _look_at_room(self) -> None:
        """Repack chunks sooner, with fewer dead records, while the tier is nearly full."""
        full = self._tier.used > _NEARLY_FULL * self._tier.capacity
        threshold = _SPARSE_WHEN_FULL if full else _SPARSE
        if threshold > self._threshold:
            self._threshold = threshold
            for chunk in self._chunks:
                self._consider(chunk)
        self._threshold = threshold

    async def _repack(self, first: int) -> None:
        """Repack a sparse chunk, together with small ones after it."""
        del self._sparse[first]
        index = self._index(first)
        if index < 0 or self._firsts[index] != first or not self._chunks[index].there:
            return
        generation = self._generation
        run = self._mergeable(index)
        entries: TierEntries = []
        for chunk in run:
            if chunk.live:
                entries += _find(await self._tier.get(chunk.first) or b"", None)
                if generation != self._tier.generation:
                    return
        entries = [
            (lsn, record) for lsn, record in entries if self._shard.alive(lsn, _decode(record))
        ]
        kept, *others = run
        for chunk in others:
            kept.live += chunk.live
            self._remove(chunk)
        kept.packed = kept.live
        if entries:
            await self._put(kept, entries)
        else:
            kept.there = False
            if index:  # the first one stays: it is where the directory begins
                self._remove(kept)
        gone = [chunk.first for chunk in (others if kept.there else run)]
        if gone and generation == self._tier.generation:
            await self._tier.delete(gone)

    def _mergeable(self, index: int) -> list[_Chunk]:
        """A chunk and those after it that fit together into half of one."""
        run = [self._chunks[index]]
        live = run[0].live
        for neighbour in self._chunks[index + 1 : index + _MOST_MERGED]:
            live += neighbour.live
            if not neighbour.there or live > CHUNK // 2:
                break
            run.append(neighbour)
        return run

    def _remove(self, chunk: _Chunk) -> None:
        self._sparse.pop(chunk.first, None)
        index = self._index(chunk.first)
        del self._firsts[index], self._chunks[index]

    def _index(self, lsn: int) -> int:
        """The index of the chunk that an LSN belongs to, -1 when there is none."""
        return bisect_right(self._firsts, lsn) - 1

    # ------------------------------------------------------------------ reading

    async def fetch(self, lsns: Sequence[int]) -> tuple[list[tuple[int, Record]], list[int]]:
        """Read records from the tier.

        Returns:
            Those that it gave, and the LSNs of those that it did not.
        """
        if not self._tier.ready or self._generation != self._tier.generation:
            return [], list(lsns)
        wanted: dict[int, set[int]] = {}
        missing: list[int] = []
        for lsn in lsns:
            index = self._index(lsn)
            if lsn < self._position and index >= 0 and self._chunks[index].there:
                wanted.setdefault(self._firsts[index], set()).add(lsn)
            else:
                missing.append(lsn)
        gets = {first: self._tier.get(first) for first in wanted}
        if gets:
            await asyncio.wait(gets.values())
        found: list[tuple[int, Record]] = []
        for first, get in gets.items():
            data = None if get.exception() is not None else get.result()
            given = _find(data or b"", wanted[first])
            found += [(lsn, _decode(record)) for lsn, record in given]
            missing += wanted[first].difference(lsn for lsn, _ in given)
        self.reads += len(found)
        return found, missing


def _without_vectors(record: Record) -> Record:
    """The record without its vectors, which are always in the shard's own memory."""
    if isinstance(record, ItemStored) and record.vectors:
        return msgspec.structs.replace(record, vectors=())
    return record


def _pack(entries: TierEntries) -> bytes:
    parts: list[bytes] = []
    for lsn, record in entries:
        parts += (_HEAD.pack(lsn, len(record), zlib.crc32(record)), record)
    return b"".join(parts)


def _find(data: bytes, wanted: set[int] | None) -> TierEntries:
    """The intact records in a chunk, all or the wanted ones."""
    found: TierEntries = []
    at = 0
    while at + _HEAD.size <= len(data):
        lsn, length, crc = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if wanted is None or lsn in wanted:
            record = data[at : at + length]
            if zlib.crc32(record) == crc:
                found.append((lsn, record))
            else:
                logger.error("the tier gave record %d damaged; the journal has it", lsn)
        at += length
    return found
