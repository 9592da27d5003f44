"""Shards on disk, written and read by actors that are called directly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    ListCheckpoints,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.replies import CheckpointPage, ItemPage, Reply
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling.compaction import compact
from flowgentic_actors.storage.disk import RealDisk

SESSION = b"s" * 16

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def some_commands(rng: random.Random, count: int) -> list[Command]:
    """Puts that overwrite each other, deletions, threads, over several namespaces."""
    made: list[Command] = []
    for number in range(count):
        namespace = ("team", f"n{rng.randrange(7)}", "deep")[: rng.randrange(1, 4)]
        key, thread = f"k{rng.randrange(5)}", f"t{rng.randrange(6)}"
        blob = ("msgpack", msgspec.msgpack.encode({"n": number}) + bytes(rng.randrange(60)))
        write = Write(rng.randrange(3), "c", blob)
        choices: list[Command] = [
            PutItem(namespace, key, blob),
            PutItem(namespace, key, blob),
            DeleteItem(namespace, key),
            PutCheckpoint(
                thread, "", f"{number:04}", None, blob, blob, {}, {"c": number}, {"c": blob}
            ),
            PutWrites(thread, "", f"{number:04}", "task", "", (write,)),
            *([DeleteThread(thread)] if rng.random() < 0.3 else []),
        ]
        made.append(rng.choice(choices))
    return made


def shard_of(table: SlotTable, command: Any) -> int:
    """Where the client sends a command."""
    if hasattr(command, "thread_id"):
        return table.of_thread(command.thread_id)
    return table.of_namespace(command.namespace)


def ask(actor: ShardActor, command: Command, seq: int = 0, low: int = 0) -> Reply:
    """Have an actor carry out a command."""
    body = msgspec.Raw(msgspec.msgpack.encode(command))
    reply = actor.handle(Call(SESSION, seq, low, body))
    actor.commit()
    assert isinstance(reply, bytes)
    return _replies.decode(reply)


def write(folders: Sequence[Path], table: SlotTable, commands: Sequence[Command]) -> None:
    """Have the shards' actors carry out commands, by their number, then end in order."""
    actors = [ShardActor(str(folder)) for folder in folders]
    for seq, command in enumerate(commands):
        ask(actors[shard_of(table, command)], command, seq, max(0, seq - 3))
    for actor in actors:
        actor.close()


def compact_all(folders: Sequence[Path]) -> None:
    """Compact every shard's journal as it is."""
    for folder in folders:
        actor = ShardActor(str(folder))
        compact(RealDisk(), folder, actor._journal.sealed_to)
        actor.close()


def contents(folders: Sequence[Path], table: SlotTable) -> tuple[list[Any], list[Any]]:
    """Checkpoints and items of all shards; each must be where the table says."""
    checkpoints: list[Any] = []
    items: list[Any] = []
    for shard, folder in enumerate(folders):
        actor = ShardActor(str(folder))
        listed, found = ask(actor, ListCheckpoints()), ask(actor, SearchItems((), b"", 4096, 0))
        actor.close()
        assert isinstance(listed, CheckpointPage)
        assert isinstance(found, ItemPage)
        assert all(table.of_thread(row.thread_id) == shard for row in listed.rows)
        assert all(table.of_namespace(row.namespace) == shard for row in found.rows)
        checkpoints += listed.rows
        items += found.rows
    by_place = sorted(items, key=lambda row: (row.namespace, row.key))
    return sorted(checkpoints, key=lambda row: (row.thread_id, row.checkpoint_id)), by_place
