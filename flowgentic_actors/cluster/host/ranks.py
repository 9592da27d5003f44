"""The ranks of a job step whose program opens one cluster: the host knows who is there."""

from __future__ import annotations

import asyncio

import anyio

from flowgentic_actors.cluster.protocol.host import RanksReply
from flowgentic_actors.wire.server import Connection


class Ranks:
    """Those that attached to what rank 0 opened; each is there while its connection is."""

    def __init__(self) -> None:
        self._present: dict[Connection, int] = {}
        self._seen: set[int] = set()
        self._news = asyncio.Event()

    def enter(self, connection: Connection, rank: int) -> None:
        """A rank is there."""
        self._present[connection] = rank
        self._seen.add(rank)

    def leave(self, connection: Connection) -> None:
        """A connection is gone, and a rank with it if it was one's."""
        if self._present.pop(connection, None) is not None:
            self._news.set()
            self._news = asyncio.Event()

    async def wait(self, size: int, seconds: float) -> RanksReply:
        """Wait a while until all but rank 0 have been there and are gone."""
        with anyio.move_on_after(seconds):
            while self._present or self._missing(size):
                await self._news.wait()
        return RanksReply(tuple(sorted(self._present.values())), self._missing(size))

    def _missing(self, size: int) -> tuple[int, ...]:
        return tuple(rank for rank in range(1, size) if rank not in self._seen)
