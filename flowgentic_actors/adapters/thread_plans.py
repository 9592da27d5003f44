"""What a checkpointer does to whole threads, as plans of questions to shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flowgentic_actors.adapters.ids import text_of, texts_of
from flowgentic_actors.adapters.operations import Operation, retry_on_new_table, routed
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import (
    DeleteThread,
    DropRuns,
    FindRuns,
    PruneThread,
    ReadThread,
)
from flowgentic_actors.engine.limits import CheckpointPlace, check
from flowgentic_actors.engine.model import Position
from flowgentic_actors.errors import InvalidRequestError


def delete_for_runs(client: MemoryClient, run_ids: Sequence[str]) -> Operation[None]:
    """Delete the checkpoints of some runs; see `AsyncCheckpointSaver.adelete_for_runs`."""
    runs = tuple(texts_of("run_ids", run_ids))
    if not runs:
        return
    check(FindRuns(runs))

    def ask(table: SlotTable) -> Operation[Any]:
        return (yield [(shard, FindRuns(runs, table.version)) for shard in table.owners])

    found = yield from retry_on_new_table(client, ask)
    threads = [thread_id for reply in found for thread_id in reply.thread_ids]
    if threads:
        yield routed(client, [DropRuns(thread_id, runs) for thread_id in threads])


def prune(client: MemoryClient, thread_ids: Sequence[str], strategy: str) -> Operation[None]:
    """Delete checkpoints of some threads; see `AsyncCheckpointSaver.aprune`."""
    if strategy not in ("keep_latest", "delete"):
        raise InvalidRequestError(
            f"prune: strategy must be 'keep_latest' or 'delete', not {strategy!r}"
        )
    keep = strategy == "keep_latest"
    commands = [
        check(PruneThread(thread_id, 1) if keep else DeleteThread(thread_id))
        for thread_id in texts_of("thread_ids", thread_ids)
    ]
    if commands:
        yield routed(client, commands)


def copy_thread(client: MemoryClient, source: str, target: str) -> Operation[None]:
    """Copy a thread onto another one; see `AsyncCheckpointSaver.acopy_thread`."""
    source = text_of("source_thread_id", source)
    target = text_of("target_thread_id", target)
    if source == target:
        return
    check(ReadThread(source))
    check(CheckpointPlace(target, "", None))
    replace = msgspec.structs.replace
    after: Position | None = None
    while True:
        page = (yield routed(client, [ReadThread(source, after)]))[0]
        if commands := (*page.checkpoints, *page.writes):
            yield routed(client, [replace(command, thread_id=target) for command in commands])
        after = page.after
        if after is None:
            return
