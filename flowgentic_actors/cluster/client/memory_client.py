"""What adapters need of a client of the memory, over sockets or in this process."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeAlias

from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply

ShardRequest: TypeAlias = tuple[int, Command]
"""A shard and a command for it."""


class MemoryClient(Protocol):
    """Sends commands to shards.

    A command about one key goes to the key's shard, and is sent after it where slots move between
    shards. What is asked of several shards has to be begun anew, by a newer table, when it fails
    with `SlotsMovedError`.

    A cluster's clients have two more attributes: `index`, how the memory's items are embedded, and
    `allowed_types`, what adapters decode to where they are given no serializer. One with a single
    shard in this process has `direct`: whether it answers `ask_sync` without ever waiting.

    Attributes:
        table: Which shard a key belongs to.
    """

    table: SlotTable

    def shard_of(self, command: Command) -> int:
        """The shard of the one key that a command is about."""

    def ask(self, command: Command) -> Coroutine[Any, Any, Reply]:
        """Have the shard of the one key that a command is about carry it out.

        Raises:
            RequestError: If it was not, or may not have been, carried out.
            ClusterClosedError: If the cluster is closed.
        """

    async def ask_each(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have shards carry out several commands at the same time.

        Returns:
            The reply to each, or the error in its place.
        """

    def ask_sync(self, command: Command) -> Reply:
        """Have a command carried out, blocking; allowed on an event loop's thread as well."""

    def ask_each_sync(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have shards carry out several commands at the same time, blocking; see `ask_each`."""
