"""The ranks of a job step that share one cluster, as far as the host knows them."""

from __future__ import annotations

from flowgentic_actors.cluster.loop_condition import LoopCondition
from flowgentic_actors.cluster.protocol.host import RanksReply
from flowgentic_actors.wire.server_connection import Connection


class Ranks:
    """The attached ranks; each is present as long as its connection is open."""

    def __init__(self) -> None:
        self._present: dict[Connection, int] = {}
        self._seen: set[int] = set()
        self._news = LoopCondition()

    def enter(self, connection: Connection, rank: int) -> None:
        """Add a rank with its connection."""
        self._present[connection] = rank
        self._seen.add(rank)

    def leave(self, connection: Connection) -> None:
        """Remove the rank of a closed connection, if it is a rank's."""
        if self._present.pop(connection, None) is not None:
            self._news.notify()

    async def wait(self, size: int, seconds: float) -> RanksReply:
        """Wait, within a timeout, until all ranks but 0 have attached and left."""
        await self._news.wait_for(lambda: not (self._present or self._missing(size)), seconds)
        return RanksReply(tuple(sorted(self._present.values())), self._missing(size))

    def _missing(self, size: int) -> tuple[int, ...]:
        return tuple(rank for rank in range(1, size) if rank not in self._seen)
