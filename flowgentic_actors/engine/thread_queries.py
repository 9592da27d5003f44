"""What can be read of threads: checkpoints, listings, histories."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import merge
from typing import Final

from flowgentic_actors.engine.branch import Branch, StoredCheckpoint
from flowgentic_actors.engine.commands import (
    FindRuns,
    GetChannelHistory,
    GetCheckpoint,
    ListCheckpoints,
    ListThreads,
    PutCheckpoint,
    PutWrites,
    ReadThread,
    ThreadQuery,
)
from flowgentic_actors.engine.model import (
    PAGE_BYTES,
    Blob,
    Position,
    ThreadPosition,
    Version,
    Write,
)
from flowgentic_actors.engine.pace import Pace
from flowgentic_actors.engine.replies import (
    ChannelHistories,
    ChannelHistory,
    CheckpointPage,
    CheckpointReply,
    CheckpointRow,
    Reply,
    ThreadIds,
    ThreadListing,
    ThreadPage,
    ThreadRow,
)
from flowgentic_actors.engine.threads import Threads
from flowgentic_actors.engine.values import Value, Values

MAX_PAGE = 1024
"""Most checkpoints or threads in one page, however small they are."""

HIDDEN: Final = "\0"
"""What the names of channels begin with that are no channels of a graph but parts of their values.

So does the version of a value that consists of such parts.
"""

_ABSENT: Final = object()


class ThreadQueries:
    """Answers queries about threads.

    Args:
        threads: The threads.
        values: Their values.
    """

    def __init__(self, threads: Threads, values: Values) -> None:
        self._threads = threads
        self._values = values

    def answer(self, query: ThreadQuery) -> Reply:
        """Answer a query; the values that it needs may turn out to be cold."""
        match query:
            case GetCheckpoint():
                return self.get(query)
            case ListCheckpoints():
                return self._list(query)
            case GetChannelHistory():
                return self._channel_histories(query)
            case ReadThread():
                return self._read(query)
            case FindRuns(run_ids):
                return ThreadIds(tuple(self._threads.of_runs(set(run_ids))))
            case ListThreads():
                return self._list_threads(query)

    def get(self, query: GetCheckpoint) -> CheckpointReply:
        """One checkpoint, the latest when no id (or an empty one) is given; see `answer`."""
        branch = self._threads.branch(query.thread_id, query.checkpoint_ns)
        if branch is None or not branch.order:
            return CheckpointReply(None)
        checkpoint_id = query.checkpoint_id or branch.order[-1]
        if checkpoint_id not in branch.entries:
            return CheckpointReply(None)
        position = Position(checkpoint_id, query.thread_id, query.checkpoint_ns)
        return CheckpointReply(self._row(branch, position))

    # ------------------------------------------------------------------ listings

    def _list(self, query: ListCheckpoints) -> CheckpointPage:
        """One page of checkpoints, newest first over everything asked for."""
        rows: list[CheckpointRow] = []
        room = MAX_PAGE if query.limit is None else min(query.limit, MAX_PAGE)
        size = 0
        if not room:
            return CheckpointPage((), None)
        last: Position | None = None
        pace = Pace()
        for looked, (position, branch) in enumerate(self._newest_first(query), 1):
            facets = branch.entries[position.checkpoint_id].facets
            if all(facets.get(k, _ABSENT) == v for k, v in query.facets.items()):
                size += branch.row_bytes(position.checkpoint_id)
                if rows and size > PAGE_BYTES:
                    return CheckpointPage(tuple(rows), last)
                rows.append(self._row(branch, position))
            if len(rows) == room or (not looked % pace.step and pace.is_over()):
                return CheckpointPage(tuple(rows), position)
            last = position
        return CheckpointPage(tuple(rows), None)

    def _newest_first(self, query: ListCheckpoints) -> Iterator[tuple[Position, Branch]]:
        thread_ids = self._threads.ids() if query.thread_id is None else (query.thread_id,)
        runs = [
            _branch_newest_first(branch, thread_id, ns, query)
            for thread_id in thread_ids
            for ns, branch in self._threads.branches(thread_id).items()
            if query.checkpoint_ns in (None, ns)
        ]
        return iter(runs[0]) if len(runs) == 1 else merge(*runs, key=_position, reverse=True)

    def _list_threads(self, query: ListThreads) -> ThreadListing:
        """One page of threads, the one that was written to last first."""
        rows: list[ThreadRow] = []
        room = min(query.limit, MAX_PAGE)
        if not room:
            return ThreadListing((), None)
        looked = 0
        last: ThreadPosition | None = None
        pace = Pace()
        for thread_id, thread in self._threads.newest_first():
            position = ThreadPosition(thread.updated_us, thread_id)
            if (query.after is not None and position >= query.after) or (
                query.before is not None and thread.updated_us >= query.before
            ):
                continue
            if last is not None and (
                len(rows) == room or (not looked % pace.step and pace.is_over())
            ):
                return ThreadListing(tuple(rows), last)
            looked += 1
            last = position
            if thread_id.startswith(query.prefix):
                count, size = thread.checkpoints, thread.bytes
                rows.append(ThreadRow(thread_id, thread.updated_us, count, size))
        return ThreadListing(tuple(rows), None)

    def _row(self, branch: Branch, position: Position) -> CheckpointRow:
        blob = self._values.blob
        entry = branch.entries[position.checkpoint_id]
        writes = branch.writes_in_order(position.checkpoint_id)
        return CheckpointRow(
            position.thread_id,
            position.checkpoint_ns,
            position.checkpoint_id,
            entry.parent_id,
            blob(entry.checkpoint),
            blob(entry.metadata),
            dict(entry.versions),
            {channel: blob(value) for channel, value in branch.values(entry.versions)},
            tuple((task_id, write.channel, blob(write.value)) for task_id, write in writes),
        )

    # ------------------------------------------------------------------ histories

    def _channel_histories(self, query: GetChannelHistory) -> ChannelHistories:
        """Walk back along the parents of a checkpoint, once for all channels."""
        branch = self._threads.branch(query.thread_id, query.checkpoint_ns)
        writes: dict[str, list[tuple[str, str, Blob]]] = {c: [] for c in query.channels}
        seeds: dict[str, Blob] = {}
        parts: dict[str, dict[str, Blob]] = {}
        if branch is not None and branch.order:
            entry = branch.entries.get(query.checkpoint_id or branch.order[-1])
            ancestor = entry.parent_id if entry else None
            seen: set[str] = set()  # ids come from outside: they may go in a circle
            while ancestor is not None and len(seeds) < len(writes) and ancestor not in seen:
                seen.add(ancestor)
                entry = branch.entries.get(ancestor)
                if entry is None:
                    break
                for task_id, write in reversed(branch.writes_in_order(ancestor)):
                    if write.channel in writes and write.channel not in seeds:
                        blob = self._values.blob(write.value)
                        writes[write.channel].append((task_id, write.channel, blob))
                for channel in writes.keys() - seeds.keys():
                    value = branch.value(entry, channel)
                    if value is not None:
                        seeds[channel] = self._values.blob(value)
                        if str(entry.versions[channel]).startswith(HIDDEN):
                            parts[channel] = self._parts(branch, entry)
                ancestor = entry.parent_id
        return ChannelHistories(
            tuple(
                ChannelHistory(tuple(writes[c][::-1]), seeds.get(c), parts.get(c, {}))
                for c in query.channels
            )
        )

    def _parts(self, branch: Branch, entry: StoredCheckpoint) -> dict[str, Blob]:
        """What any of a checkpoint's values consist of."""
        return {
            channel: self._values.blob(value)
            for channel, value in branch.values(entry.versions)
            if channel.startswith(HIDDEN)
        }

    # ------------------------------------------------------------------ whole threads

    def _read(self, query: ReadThread) -> ThreadPage:
        """One page of a thread, as the commands that would write it."""
        checkpoints: list[PutCheckpoint] = []
        writes: list[PutWrites] = []
        size = 0
        last: Position | None = None
        for ns, branch in sorted(self._threads.branches(query.thread_id).items()):
            known: dict[str, Version] = {}
            for checkpoint_id in sorted({*branch.entries, *branch.writes}):
                position = Position(checkpoint_id, query.thread_id, ns)
                entry = branch.entries.get(checkpoint_id)
                versions = entry.versions if entry else {}
                fresh = {
                    channel: value
                    for channel, value in branch.values(versions)
                    if known.get(channel) != versions[channel]
                }
                if entry is not None:
                    known = entry.versions
                if query.after is not None and (ns, checkpoint_id) <= (
                    query.after.checkpoint_ns,
                    query.after.checkpoint_id,
                ):
                    continue
                size += branch.bytes_of(checkpoint_id, fresh.values())
                if last is not None and size > PAGE_BYTES:
                    return ThreadPage(tuple(checkpoints), tuple(writes), last)
                if entry is not None:
                    checkpoints.append(self._as_command(position, entry, fresh))
                writes += self._writes_as_commands(position, branch)
                last = position
        return ThreadPage(tuple(checkpoints), tuple(writes), None)

    def _as_command(
        self, position: Position, entry: StoredCheckpoint, fresh: dict[str, Value]
    ) -> PutCheckpoint:
        blob = self._values.blob
        return PutCheckpoint(
            position.thread_id,
            position.checkpoint_ns,
            position.checkpoint_id,
            entry.parent_id,
            blob(entry.checkpoint),
            blob(entry.metadata),
            dict(entry.facets),
            dict(entry.versions),
            {channel: blob(value) for channel, value in fresh.items()},
            deltas=entry.deltas,
        )

    def _writes_as_commands(self, position: Position, branch: Branch) -> Iterator[PutWrites]:
        tasks: dict[tuple[str, str], list[Write]] = {}
        for (task_id, index), write in branch.writes.get(position.checkpoint_id, {}).items():
            stored = Write(index, write.channel, self._values.blob(write.value))
            tasks.setdefault((task_id, write.task_path), []).append(stored)
        for (task_id, task_path), stored_writes in tasks.items():
            yield PutWrites(
                position.thread_id,
                position.checkpoint_ns,
                position.checkpoint_id,
                task_id,
                task_path,
                tuple(stored_writes),
            )


def _branch_newest_first(
    branch: Branch, thread_id: str, ns: str, query: ListCheckpoints
) -> Iterator[tuple[Position, Branch]]:
    begin, end = 0, len(branch.order)
    if query.checkpoint_id:
        begin = bisect_left(branch.order, query.checkpoint_id)
        end = bisect_right(branch.order, query.checkpoint_id)
    if query.before:
        end = min(end, bisect_left(branch.order, query.before))
    if query.after is not None:
        # ids above the position were listed; at the position itself, (thread, ns) decides
        end = min(end, bisect_right(branch.order, query.after.checkpoint_id))
    for index in range(end - 1, begin - 1, -1):
        position = Position(branch.order[index], thread_id, ns)
        if query.after is None or position < query.after:
            yield position, branch


def _position(candidate: tuple[Position, Branch]) -> Position:
    return candidate[0]
