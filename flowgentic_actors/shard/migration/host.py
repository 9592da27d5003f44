"""The interface of a shard's actor to the migration of its slots."""

from __future__ import annotations

import asyncio
from typing import Protocol

from flowgentic_actors.actors.actor import ActorContext
from flowgentic_actors.engine.records import Record


class MigrationHost(Protocol):
    """A shard that takes part in migrations."""

    @property
    def context(self) -> ActorContext:
        """The context of its actor."""

    @property
    def position(self) -> int:
        """LSN after the last entry in its journal."""

    @property
    def next_lsn(self) -> int:
        """LSN after the last entry, those included that wait to be appended."""

    @property
    def lag(self) -> int:
        """Bytes of its journal that its second copy does not have yet."""

    async def keep_moved(self, record: Record, time_us: int) -> None:
        """Carry out a record that no client asked for, and have the next commit store it.

        Raises:
            StorageError: If there is no room for it.
        """

    def stored(self) -> asyncio.Future[None]:
        """Have a commit soon; done when all that was kept before is stored."""
