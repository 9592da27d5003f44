"""To which shard a command goes, and when it is worth asking another one."""

from __future__ import annotations

from flowgentic_actors.cluster.slots import SlotTable
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.slots import slot_of_command


def shard_of(table: SlotTable, command: Command) -> int | None:
    """The shard of the one key that a command is about.

    Returns:
        None for what is asked of all shards, and of what is cached, which concerns many keys.
    """
    slot = slot_of_command(command, table.namespace_depth)
    return None if slot is None else table.shards[slot]


def outdated(table: SlotTable, shard: int, command: Command) -> bool:
    """Whether a shard was asked by an older table, which may be why it refused.

    Args:
        table: The newest table.
        shard: The shard that was asked.
        command: What it was asked.
    """
    now = shard_of(table, command)
    if now is not None:
        return now != shard
    return 0 < getattr(command, "table", 0) < table.version
