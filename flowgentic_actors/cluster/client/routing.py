"""Routing: the shard of a command, and when to ask another one."""

from __future__ import annotations

from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.engine.slots import slot_of_command
from flowgentic_actors.errors import (
    ActorUnavailableError,
    OutcomeUnknownError,
    SlotsMovedError,
)


def shard_of(table: SlotTable, command: Command) -> int | None:
    """The shard of the one key that a command is about.

    Returns:
        None for what is asked of all shards, and of what is cached, which concerns many keys.
    """
    slot = slot_of_command(command, table.namespace_depth)
    return None if slot is None else table.shards[slot]


def shard_of_key(table: SlotTable, command: Command) -> int:
    """The shard of the one key that a command is about, which has to be about one."""
    slot = slot_of_command(command, table.namespace_depth)
    assert slot is not None, f"{type(command).__name__} is about many keys"
    return table.shards[slot]


def outdated(table: SlotTable, shard: int, command: Command) -> bool:
    """Whether a shard was asked by an outdated slot table, which may be why it refused.

    Args:
        table: The newest table.
        shard: The shard that was asked.
        command: What it was asked.
    """
    now = shard_of(table, command)
    if now is not None:
        return now != shard
    return 0 < getattr(command, "table", 0) < table.version


def worth_asking_again(command: Command, answer: object) -> bool:
    """Whether to retry by the newest table: slots have moved, or a read was not answered."""
    if isinstance(answer, OutcomeUnknownError):
        return answer.ask_again and not isinstance(command, WRITES)
    return isinstance(answer, SlotsMovedError)


def failed(command: Command, error: Exception) -> Exception:
    """The error of a failed command: a read never has an unknown outcome."""
    if isinstance(error, OutcomeUnknownError) and not isinstance(command, WRITES):
        return unanswered_read(error)
    return error


def unanswered_read(error: OutcomeUnknownError) -> ActorUnavailableError:
    """The error of an unanswered read, in place of the error for a write."""
    read = ActorUnavailableError(
        f"{error.reason or error}. It was a read, which changes nothing: try again"
    )
    read.__cause__ = error
    return read
