"""What a checkpointer does: commands and plans of questions to shards, and rows as tuples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors.adapters.backlog import InFlightBytes
from flowgentic_actors.adapters.chunked_lists.format import (
    KIND,
    MARK,
    ChunkedList,
    decode_manifest,
    find,
    load,
    no_version,
)
from flowgentic_actors.adapters.chunked_lists.outgoing import SPLIT, Outgoing
from flowgentic_actors.adapters.chunked_lists.recent import RecentLists
from flowgentic_actors.adapters.decoding import serializer_of
from flowgentic_actors.adapters.heads import checked, checked_task, metadata_of
from flowgentic_actors.adapters.ids import identify, limit_of, optional, text_of, thread_of
from flowgentic_actors.adapters.indexed_metadata import MetadataFilter
from flowgentic_actors.adapters.items import micros_of
from flowgentic_actors.adapters.listing import (
    Listing,
    ThreadInfo,
    checkpoint_position,
    thread_position,
)
from flowgentic_actors.adapters.operations import Operation, ShardRequest, WriteOperation, run_sync
from flowgentic_actors.cluster.client.remote import MemoryClient
from flowgentic_actors.engine.commands import (
    DeleteThread,
    GetChannelHistory,
    GetCheckpoint,
    ListCheckpoints,
    ListThreads,
    PutCheckpoint,
    PutWrites,
)
from flowgentic_actors.engine.limits import CheckpointHead, CheckpointPlace, check
from flowgentic_actors.engine.model import ThreadPosition, Write
from flowgentic_actors.engine.replies import (
    CheckpointRow,
    Conflict,
    Done,
    MissingBlobs,
    Reply,
    ThreadRow,
)
from flowgentic_actors.errors import InvalidRequestError, ThreadConflictError, TypeNotAllowedError

_MOST = 2**53
_REPLAY = "__pregel_replay_state"  # LangGraph's: this run replays a checkpoint of its parent graph


class _Addressed(str):
    """Id of a checkpoint that the caller named, or found in a listing.

    While conflicts are detected, such ids are given out marked like this. LangGraph hands them on
    to `put` as the parent's: what follows it is a branch that is meant.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        # Other kinds of text may have an idea of their own of what they equal.
        return str.__eq__(self, other) if type(other) in (str, _Addressed) else NotImplemented


_Known: TypeAlias = Mapping[str, Sequence[ChunkedList]]


class CheckpointOperations(BaseCheckpointSaver[str]):
    """The half of `AsyncCheckpointSaver` that is no public method.

    It is a base class, and not a part of that one: both serialize with one `serde`, which a caller
    may replace, and a call on a hot path goes through nothing more.

    Args:
        client: How to reach the shards.
        serde: Serializer of checkpoints, metadata and values, None for the client's.
        detect_conflicts: Whether to refuse what does not follow the latest of its namespace.
        backlog: Bytes of one thread that may wait to be acknowledged.
        request_timeout: Seconds that a further write of it waits for its turn.
    """

    def __init__(
        self,
        client: MemoryClient,
        *,
        serde: SerializerProtocol | None,
        detect_conflicts: bool,
        backlog: int,
        request_timeout: float,
    ) -> None:
        super().__init__(serde=serde or serializer_of(client))
        self._client = client
        self._direct: bool = getattr(client, "direct", False)
        self._detects_conflicts = detect_conflicts
        self._backlog = InFlightBytes(backlog, request_timeout)
        self._crowded = self._backlog.crowded
        self._lists = RecentLists()

    # ------------------------------------------------------------------ plans

    def _query(self, config: RunnableConfig) -> GetCheckpoint:
        thread_id, ns, checkpoint_id = identify(config)
        query = GetCheckpoint(thread_id, ns, checkpoint_id)
        if not (thread_id + ns + (checkpoint_id or "")).isascii():
            check(query)
        return query

    def _found(self, query: GetCheckpoint, reply: Any) -> CheckpointTuple | None:
        if reply.row is None:
            check(CheckpointPlace(query.thread_id, query.checkpoint_ns, query.checkpoint_id))
            return None
        found = self._tuple(reply.row, remember=True)
        if self._detects_conflicts and query.checkpoint_id:
            found.config["configurable"]["checkpoint_id"] = _Addressed(query.checkpoint_id)
        return found

    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> WriteOperation[RunnableConfig]:
        if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
            # Everything is copied before the write waits for its turn: LangGraph goes on changing
            # some of these containers. What cannot be stored is refused before it waits.
            config, checkpoint, metadata = _copied(config, checkpoint, metadata)
            self._new(config, {**checkpoint, "channel_values": {}}, metadata, {})
            yield self._backlog.turn(thread_id)
        new = self._new(config, checkpoint, metadata, new_versions)
        return (yield from self._send(*new, new_versions, None))

    def _put_directly(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint in a local memory, where no write ever waits for another."""
        command, values, known = self._new(config, checkpoint, metadata, new_versions)
        reply = None
        if not known and size_of(command) < SPLIT:
            reply = self._client.ask_sync(0, command)
            if type(reply) is Done:
                return config_of(command.thread_id, command.checkpoint_ns, command.checkpoint_id)
        return run_sync(self._client, self._send(command, values, known, new_versions, reply))

    async def _counted(self, command: PutCheckpoint | PutWrites, size: int) -> Reply:
        """Ask for a write that is counted as under way."""
        thread_id, write = command.thread_id, object()
        try:
            self._backlog.begin(thread_id, size, write)
            reply = await self._client.ask(self._client.table.of_thread(thread_id), command)
            self._backlog.end(thread_id, write)
        except BaseException:  # of a signal's handler, too, and within `end`: no `finally` would do
            self._backlog.end(thread_id, write)
            raise
        return reply

    def _new(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> tuple[PutCheckpoint, dict[str, Any], _Known]:
        """The command that stores a checkpoint; all of it is serialized here and now.

        Returns:
            It, the channels' values, and their lists that may be stored already.
        """
        thread_id, ns, parent_id = identify(config)
        merged, facets = metadata_of(config, metadata)
        body: dict[str, Any] = {**checkpoint}
        values: dict[str, Any] = {**body.pop("channel_values")}
        own_id = checkpoint["id"]
        head = checked(
            CheckpointHead(
                thread_id,
                ns,
                own_id if type(own_id) is str else text_of("checkpoint['id']", own_id),
                parent_id,
                facets,
                body.pop("channel_versions"),
                tuple(merged.get("counters_since_delta_snapshot") or ()),
            )
        )
        versions = head.channel_versions
        checkpoint_id = body["id"] = head.checkpoint_id
        dumps = self.serde.dumps_typed
        known = self._lists.of(thread_id, ns, parent_id)
        blobs = {
            c: dumps(values[c])
            for c in new_versions
            if c in values and c in versions and c not in known
        }
        if not values.keys() <= versions.keys():
            unversioned = tuple([c for c in values if c not in versions])
            check(GetChannelHistory(thread_id, ns, None, unversioned))  # their names
            versions[MARK] = 0
            for channel in unversioned:
                versions[channel] = no_version()
                blobs[channel] = dumps(values[channel])
        command = PutCheckpoint(
            thread_id,
            ns,
            checkpoint_id,
            parent_id,
            dumps(body),
            dumps(merged),
            head.metadata,
            versions,
            blobs,
            tuple([c for c in values if c not in blobs]),
            head.deltas,
            self._detects_conflicts and self._must_follow(config, parent_id, merged.get("source")),
        )
        return command, values, known

    def _send(
        self,
        command: PutCheckpoint,
        values: dict[str, Any],
        known: _Known,
        new_versions: ChannelVersions,
        reply: Reply | None,
    ) -> Operation[RunnableConfig]:
        """Store a checkpoint; a long list is sent as its parts.

        Args:
            command: What stores it.
            values: Its channels' values.
            known: Their lists that may be stored already.
            new_versions: As for `put`.
            reply: To the command as it is, None if it was not asked.
        """
        thread_id, ns = command.thread_id, command.checkpoint_ns
        checkpoint_id, parent_id = command.checkpoint_id, command.parent_id
        dumps = self.serde.dumps_typed
        shard = self._client.table.of_thread(thread_id)
        size = size_of(command)
        outgoing: Outgoing | None = None
        if known or size >= SPLIT:
            outgoing = Outgoing(command, values, new_versions, dumps, known)
            command = outgoing.command()
            size = size_of(command)
        write = object()
        try:
            self._backlog.begin(thread_id, size, write)
            if reply is None:
                reply = yield ShardRequest(shard, command)
            while isinstance(reply, MissingBlobs):
                # Values that came with no new version and that the shard has never seen, or parts
                # of lists that it has no more.
                outgoing = outgoing or Outgoing(command, values, new_versions, dumps, known)
                outgoing.send_again(reply.channels)
                reply = yield ShardRequest(shard, outgoing.command())
            self._backlog.end(thread_id, write)
        except BaseException:  # as in `_counted`
            self._backlog.end(thread_id, write)
            raise
        if isinstance(reply, Conflict):
            raise ThreadConflictError(
                f"thread {thread_id!r} was written to by another writer: its latest checkpoint is "
                f"{reply.found or 'none'}, and this one follows {parent_id or 'none'}. Read the "
                "thread again and decide anew (setting: detect_conflicts)"
            )
        if outgoing is not None and ((lists := outgoing.lists()) or known):
            self._lists.remember(thread_id, ns, checkpoint_id, lists)
        return config_of(thread_id, ns, checkpoint_id)

    def _must_follow(self, config: RunnableConfig, parent_id: str | None, source: object) -> bool:
        if source == "fork":
            return False
        configurable = config.get("configurable", {})
        if parent_id:
            return not isinstance(configurable["checkpoint_id"], _Addressed)
        # A subgraph that is replayed from before its first checkpoint has no parent to name.
        return not configurable.get(_REPLAY)

    def _put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> WriteOperation[None]:
        if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
            writes = list(writes)
            self._new_writes(config, [(c, None) for c, _ in writes], task_id, task_path)
            yield self._backlog.turn(thread_id)
        command, size = self._new_writes(config, writes, task_id, task_path)
        thread_id = command.thread_id
        write = object()
        try:
            self._backlog.begin(thread_id, size, write)
            yield ShardRequest(self._client.table.of_thread(thread_id), command)
            self._backlog.end(thread_id, write)
        except BaseException:  # as above
            self._backlog.end(thread_id, write)
            raise

    def _new_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, path: str
    ) -> tuple[PutWrites, int]:
        """The command that stores pending writes, and their size; they are serialized here."""
        thread_id, ns, checkpoint_id = identify(config)
        if not checkpoint_id:
            raise InvalidRequestError("put_writes: the config has no configurable.checkpoint_id")
        task_id, path = checked_task((thread_id, ns, checkpoint_id), task_id, path, writes)
        dumps, special = self.serde.dumps_typed, WRITES_IDX_MAP.get
        stored: list[Write] = []
        size = 0
        for channel, value in writes:
            blob = dumps(value)
            stored.append(Write(special(channel, len(stored)), channel, blob))
            size += len(blob[1])
        return PutWrites(thread_id, ns, checkpoint_id, task_id, path, tuple(stored)), size

    def _delete_thread(self, thread_id: str) -> WriteOperation[None]:
        command = check(DeleteThread(text_of("thread_id", thread_id)))
        if self._crowded and command.thread_id in self._crowded:
            yield self._backlog.turn(command.thread_id)  # or writes that wait bring it back
        yield ShardRequest(self._client.table.of_thread(command.thread_id), command)

    def _channel_history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Operation[Mapping[str, DeltaChannelHistory]]:
        if not channels:
            return {}
        thread_id, ns, checkpoint_id = identify(config)
        command = check(GetChannelHistory(thread_id, ns, checkpoint_id, tuple(channels)))
        reply = yield ShardRequest(self._client.table.of_thread(thread_id), command)
        loads = self.serde.loads_typed
        found: dict[str, DeltaChannelHistory] = {}
        for channel, history in zip(channels, reply.histories, strict=True):
            writes = [(task, name, loads(blob)) for task, name, blob in history.writes]
            found[channel] = {"writes": writes}
            if history.seed is not None and history.seed[0] == KIND:
                seed = decode_manifest(channel, "", history.seed[1], history.parts)
                found[channel]["seed"] = load(seed.parts, history.parts, loads)
            elif history.seed is not None:
                found[channel]["seed"] = loads(history.seed)
        return found

    # ------------------------------------------------------------------ listings

    def _listing(
        self,
        config: RunnableConfig | None,
        wanted: MetadataFilter,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Listing[CheckpointRow]:
        limit = limit_of(limit)
        configurable = config.get("configurable", {}) if config else {}
        below = before["configurable"].get("checkpoint_id") if before else None
        query = ListCheckpoints(
            # None and {} are for all threads, as in LangGraph; any other config has to name one.
            thread_of(configurable.get("thread_id")) if config else None,
            optional("checkpoint_ns", configurable.get("checkpoint_ns")),
            optional("checkpoint_id", configurable.get("checkpoint_id")) or None,
            optional("before: checkpoint_id", below),
            wanted.facets,
            # What the shard cannot decide is decided here, on more rows than are wanted.
            min(limit, _MOST) if limit is not None and wanted.decided else None,
        )
        check(query)
        return Listing(self._client, query, limit, checkpoint_position)

    def _thread_listing(
        self, prefix: str, limit: int | None, before: datetime | ThreadInfo | None
    ) -> Listing[ThreadRow]:
        limit = limit_of(limit)
        query = check(ListThreads(prefix, _MOST if limit is None else min(limit, _MOST)))
        if isinstance(before, ThreadInfo):
            after = ThreadPosition(micros_of(before.updated_at), before.thread_id)
            query = msgspec.structs.replace(query, after=after)
        elif before is not None:
            query = msgspec.structs.replace(query, before=max(0, micros_of(before)))
        return Listing(self._client, query, limit, thread_position)

    def _listed(self, row: CheckpointRow, wanted: MetadataFilter) -> CheckpointTuple | None:
        found = self._tuple(row)
        if not wanted.matches(found.metadata):
            return None
        if self._detects_conflicts:
            found.config["configurable"]["checkpoint_id"] = _Addressed(row.checkpoint_id)
        return found

    def _tuple(self, row: CheckpointRow, *, remember: bool = False) -> CheckpointTuple:
        try:
            loads = self.serde.loads_typed
            body: Checkpoint = loads(row.checkpoint)
            values = body.get("channel_values", {})  # without a version, of an earlier release
            versions, blobs = row.versions, row.blobs
            if MARK in versions:
                versions, blobs, lists = find(versions, blobs)
                values.update(
                    (c, load(found.parts, row.blobs, loads)) for c, found in lists.items()
                )
                if remember:
                    self._lists.remember(row.thread_id, row.checkpoint_ns, row.checkpoint_id, lists)
            values.update((channel, loads(blob)) for channel, blob in blobs.items())
            body["channel_versions"] = versions  # a dict of our own
            body["channel_values"] = values
            return CheckpointTuple(
                config=config_of(row.thread_id, row.checkpoint_ns, row.checkpoint_id),
                checkpoint=body,
                metadata=loads(row.metadata),
                parent_config=(
                    config_of(row.thread_id, row.checkpoint_ns, row.parent_id)
                    if row.parent_id
                    else None
                ),
                pending_writes=[(task, channel, loads(blob)) for task, channel, blob in row.writes],
            )
        except TypeNotAllowedError as error:
            raise TypeNotAllowedError(
                f"checkpoint {row.checkpoint_id!r} of thread {row.thread_id!r}: {error}"
            ) from error


def _copied(
    config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
) -> tuple[RunnableConfig, Checkpoint, CheckpointMetadata]:
    copied = checkpoint.copy()
    copied["channel_values"] = dict(checkpoint["channel_values"])
    copied["channel_versions"] = dict(checkpoint["channel_versions"])
    kept: RunnableConfig = {"configurable": dict(config["configurable"])}
    if fields := config.get("metadata"):
        kept["metadata"] = dict(fields)
    return kept, copied, metadata.copy()


def size_of(command: PutCheckpoint) -> int:
    """Bytes of what it has serialized."""
    size = len(command.checkpoint[1]) + len(command.metadata[1])
    for _, data in command.blobs.values():
        size += len(data)
    return size


def config_of(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": ns,
            "checkpoint_id": checkpoint_id,
        }
    }
