"""Reads of values that memory has let go: they are fetched, and then the query is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from flowgentic_actors.deadlines import timeout
from flowgentic_actors.engine.commands import GetCheckpoint, GetItem, Query
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.shard import Shard
from flowgentic_actors.errors import ColdValuesError, JournalError, RejectedError, StorageError
from flowgentic_actors.shard.journaling.entries import LogEntry, decode_entry
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted, WaitingCalls
from flowgentic_actors.shard.memory_tier import MemoryTier
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker

_FETCH_TIMEOUT = 30.0
_MOST_FETCHES = 64  # at one time: each may hold a page of values
_MOST_ROUNDS = 100  # of fetching for one query, while others change what it needs


class ColdReads:
    """Queries of one shard that wait for values.

    Args:
        shard: The shard, which takes the values.
        journal: Its journal, which has them all.
        worker: The journal's thread.
        room: Where a query waits whose refresh has no room in the journal.
        answer: Answers a query, or raises `ColdValuesError` for what it needs.

    Attributes:
        memory_tier: What is asked before the journal, None without one.
        values: How many values were fetched.
    """

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        worker: Worker,
        room: WaitingCalls,
        answer: Callable[[Query], bytes],
    ) -> None:
        self._shard = shard
        self._journal = journal
        self._worker = worker
        self._room = room
        self._answer = answer
        self._fetches: set[asyncio.Task[bytes]] = set()
        self._fetch_slots = asyncio.Semaphore(_MOST_FETCHES)
        self.memory_tier: MemoryTier | None = None
        self.values = 0

    def begin(self, query: Query, lsns: Sequence[int]) -> asyncio.Future[bytes]:
        """Answer a query once its values are there.

        Args:
            query: The query.
            lsns: Where they are in the journal.
        """
        fetch = asyncio.ensure_future(self._query_cold(query, lsns))
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)
        return fetch

    def close(self) -> None:
        """Give up all queries."""
        for fetch in self._fetches:
            fetch.cancel()

    async def _query_cold(self, query: Query, lsns: Sequence[int]) -> bytes:
        """Fetch what a query needs until it has all of it."""
        lasting = isinstance(query, GetItem | GetCheckpoint)  # a scan is read once
        try:
            async with timeout(_FETCH_TIMEOUT), self._fetch_slots:
                for _ in range(_MOST_ROUNDS):
                    for lsn, record in await self.fetch(lsns):
                        self._shard.warm(lsn, record, lasting=lasting)
                    try:
                        return self._answer(query)
                    except ColdValuesError as cold:
                        lsns = cold.lsns
                    except RoomWanted as wanted:
                        lsns = ()
                        await self._room.make(wanted)
        except TimeoutError as error:
            raise StorageError(
                f"reading the journal took more than {_FETCH_TIMEOUT:g} s: its disk does not answer"
            ) from error
        except (OSError, JournalError) as error:
            raise StorageError(f"a value cannot be read from the journal: {error}") from error
        raise RejectedError("what was asked for changed faster than it could be read: ask again")

    async def fetch(self, lsns: Sequence[int]) -> list[tuple[int, Record]]:
        """The records at some LSNs, from the tier where it has them."""
        self.values += len(lsns)
        found: list[tuple[int, Record]] = []
        if self.memory_tier is not None:
            found, lsns = await self.memory_tier.fetch(lsns)
        if lsns:
            for lsn, payload in await self._worker.submit(self._read, lsns):
                entry = decode_entry(payload)
                assert isinstance(entry, LogEntry)
                found.append((lsn, entry.record))
        return found

    def _read(self, lsns: Sequence[int]) -> list[tuple[int, bytes]]:
        return [(lsn, self._journal.read(lsn)) for lsn in lsns]
