"""What a checkpointer does to whole threads, as plans of questions to shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flowgentic_actors.adapters.ids import text_of, texts_of
from flowgentic_actors.adapters.operations import Operation, ShardRequest, retry_on_new_table
from flowgentic_actors.cluster.client.remote import MemoryClient
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
        return (
            yield [ShardRequest(shard, FindRuns(runs, table.version)) for shard in table.owners]
        )

    found = yield from retry_on_new_table(client, ask)
    threads = [thread_id for reply in found for thread_id in reply.thread_ids]
    if threads:
        table = client.table
        yield [ShardRequest(table.of_thread(t), DropRuns(t, runs)) for t in threads]


def prune(client: MemoryClient, thread_ids: Sequence[str], strategy: str) -> Operation[None]:
    """Delete checkpoints of some threads; see `AsyncCheckpointSaver.aprune`."""
    if strategy not in ("keep_latest", "delete"):
        raise InvalidRequestError(
            f"prune: strategy must be 'keep_latest' or 'delete', not {strategy!r}"
        )
    table, keep = client.table, strategy == "keep_latest"
    asks = [
        ShardRequest(table.of_thread(t), check(PruneThread(t, 1) if keep else DeleteThread(t)))
        for t in texts_of("thread_ids", thread_ids)
    ]
    if asks:
        yield asks


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
        table = client.table
        page = yield ShardRequest(table.of_thread(source), ReadThread(source, after))
        shard = table.of_thread(target)
        commands = (*page.checkpoints, *page.writes)
        if commands:
            yield [ShardRequest(shard, replace(command, thread_id=target)) for command in commands]
        after = page.after
        if after is None:
            return
