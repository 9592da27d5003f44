"""Queries about threads: checkpoints, listings, histories."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final, TypeAlias

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
from flowgentic_actors.engine.order import CheckpointOrder
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

_BEGINNING: Final = Position("\U0010ffff", "", "")
"""After it comes all that there is: the place of a page before the first row."""

_MANY: Final = 64
"""Channels of a checkpoint that take long to copy: the clock is looked at after each such row."""

_LATEST: Final = ThreadPosition(2**63, "")

_Candidate: TypeAlias = tuple[Position, Branch | None]
"""Position, and branch; None for one that is no candidate, but was looked at."""


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
        pace = Pace()
        after = None if query.after == _BEGINNING else query.after
        if query.thread_id is None:
            order = self._threads.in_order(pace)
            if order is None:
                return CheckpointPage((), after or _BEGINNING)
            candidates = self._of_all(query, order, after)
        else:
            candidates = self._of_thread(query.thread_id, query, after)
        last: Position | None = None
        for looked, (position, branch) in enumerate(candidates, 1):
            entry = None if branch is None else branch.entries.get(position.checkpoint_id)
            costly = not looked % pace.step
            if (
                branch is not None
                and entry is not None
                and all(entry.facets.get(k, _ABSENT) == v for k, v in query.facets.items())
            ):
                size += branch.row_bytes(position.checkpoint_id)
                if rows and size > PAGE_BYTES:
                    return CheckpointPage(tuple(rows), last)
                rows.append(self._row(branch, position))
                costly = costly or len(entry.versions) > _MANY
            if len(rows) == room or (costly and pace.is_over()):
                return CheckpointPage(tuple(rows), position)
            last = position
        return CheckpointPage(tuple(rows), None)

    def _of_all(
        self, query: ListCheckpoints, order: CheckpointOrder, after: Position | None
    ) -> Iterator[_Candidate]:
        wanted, shown = query.checkpoint_id, self._threads.shown
        ends = []  # what is listed is below each of these
        if wanted:
            ends.append((wanted + "\0", "", ""))
        if query.before:
            ends.append((query.before, "", ""))
        if after is not None:
            ends.append((after.checkpoint_id, after.thread_id, after.checkpoint_ns))
        for place in order.newest_first(min(ends, default=None)):
            checkpoint_id, thread_id, ns = place
            if wanted and checkpoint_id != wanted:
                return
            found = query.checkpoint_ns in (None, ns) and (shown is None or shown(thread_id))
            yield Position(*place), self._threads.branch(thread_id, ns) if found else None

    def _of_thread(
        self, thread_id: str, query: ListCheckpoints, after: Position | None
    ) -> Iterator[_Candidate]:
        branches = self._threads.branches(thread_id)
        heads: list[tuple[Position, int]] = []  # of each branch the next one, and where that is
        begins: dict[str, int] = {}
        for ns, branch in branches.items():
            if query.checkpoint_ns in (None, ns):
                begins[ns], end = _range(branch, query)
                if after is not None:
                    # ids above the position were listed; at the position itself, the ns decides
                    end = min(end, bisect_right(branch.order, after.checkpoint_id))
                    if end and Position(branch.order[end - 1], thread_id, ns) >= after:
                        end -= 1
                if end > begins[ns]:
                    heads.append((Position(branch.order[end - 1], thread_id, ns), end - 1))
        heads.sort()
        while heads:
            position, at = heads.pop()
            ns = position.checkpoint_ns
            yield position, branches[ns]
            if at > begins[ns]:
                insort(heads, (Position(branches[ns].order[at - 1], thread_id, ns), at - 1))

    def _list_threads(self, query: ListThreads) -> ThreadListing:
        """One page of threads, the one that was written to last first."""
        rows: list[ThreadRow] = []
        room = min(query.limit, MAX_PAGE)
        if not room:
            return ThreadListing((), None)
        looked = 0
        last: ThreadPosition | None = None
        pace = Pace()
        after = query.after or _LATEST
        latest = (
            after.updated_us if query.before is None else min(after.updated_us, query.before - 1)
        )
        for thread_id, thread in self._threads.newest_first():
            if thread.updated_us > latest:
                continue
            position = ThreadPosition(thread.updated_us, thread_id)
            if position >= after:
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
        """The chunks that values of a checkpoint consist of."""
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
        size = looked = 0
        last: Position | None = None
        pace, after = Pace(), query.after
        for ns, branch in sorted(self._threads.branches(query.thread_id).items()):
            if after is not None and ns < after.checkpoint_ns:
                continue
            begun = after.checkpoint_id if after is not None and ns == after.checkpoint_ns else None
            known: dict[str, Version] = {}
            if begun is not None and (before := bisect_right(branch.order, begun)):
                known = branch.entries[branch.order[before - 1]].versions
            for checkpoint_id in branch.ids_after(begun):
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
                size += branch.bytes_of(checkpoint_id, fresh.values())
                looked += 1 + len(versions)
                late = looked >= pace.step and pace.is_over()
                if last is not None and (size > PAGE_BYTES or late):
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


def _range(branch: Branch, query: ListCheckpoints) -> tuple[int, int]:
    """The range in a branch's order that a listing asks for."""
    begin, end = 0, len(branch.order)
    if query.checkpoint_id:
        begin = bisect_left(branch.order, query.checkpoint_id)
        end = bisect_right(branch.order, query.checkpoint_id)
    if query.before:
        end = min(end, bisect_left(branch.order, query.before))
    return begin, end
