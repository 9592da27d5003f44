"""What a checkpointer does: commands to shards, and results made from their replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import filterfalse
from typing import Any

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
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.engine.commands import (
    GetChannelHistory,
    GetCheckpoint,
    ListCheckpoints,
    ListThreads,
    PutCheckpoint,
    PutWrites,
)
from flowgentic_actors.engine.limits import CheckpointHead, CheckpointPlace, check
from flowgentic_actors.engine.model import Blob, ThreadPosition, Write
from flowgentic_actors.engine.replies import (
    CheckpointRow,
    Conflict,
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


class _Put(msgspec.Struct, eq=False):
    """A checkpoint on its way.

    Attributes:
        command: What stores it.
        size: Bytes of what that has serialized.
        values: The channels' values.
        new_versions: As for `put`.
        known: The values' lists that may be stored already.
        outgoing: What makes the commands once it is not sent as it is.
    """

    command: PutCheckpoint
    size: int
    values: dict[str, Any]
    new_versions: ChannelVersions
    known: Mapping[str, Sequence[ChunkedList]]
    outgoing: Outgoing | None = None


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

    # ------------------------------------------------------------------ commands and results

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

    def _copied(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
    ) -> tuple[RunnableConfig, Checkpoint, CheckpointMetadata]:
        """Copy what is stored when its turn has come: LangGraph goes on changing some of it.

        Raises:
            InvalidRequestError: If it cannot be stored: that is refused before it waits.
        """
        copied = checkpoint.copy()
        copied["channel_values"] = {}
        copied["channel_versions"] = dict(checkpoint["channel_versions"])
        kept: RunnableConfig = {"configurable": dict(config["configurable"])}
        if fields := config.get("metadata"):
            kept["metadata"] = dict(fields)
        self._new(kept, copied, metadata, {})
        copied["channel_values"] = dict(checkpoint["channel_values"])
        return kept, copied, metadata.copy()

    def _new(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> _Put:
        """Build the command that stores a checkpoint; all of it is serialized here and now."""
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
        blobs: dict[str, Blob] = {}
        for channel in new_versions:
            if channel in values and channel in versions and channel not in known:
                blobs[channel] = dumps(values[channel])
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
            tuple(filterfalse(blobs.__contains__, values)),
            head.deltas,
            self._detects_conflicts and self._must_follow(config, parent_id, merged.get("source")),
        )
        put = _Put(command, size_of(command), values, new_versions, known)
        if known or put.size >= SPLIT:
            self._cut(put, ())
        return put

    def _cut(self, put: _Put, missing: Sequence[str]) -> None:
        """Send long lists as their chunks.

        Args:
            put: The checkpoint.
            missing: What the shard does not have: values that came with no new version and that it
                has never seen, or chunks that it has no more.
        """
        if put.outgoing is None:
            put.outgoing = Outgoing(
                put.command, put.values, put.new_versions, self.serde.dumps_typed, put.known
            )
        if missing:
            put.outgoing.send_again(missing)
        put.command = put.outgoing.command()
        put.size = size_of(put.command)

    def _stored(self, put: _Put, reply: Reply) -> RunnableConfig:
        """The config of a checkpoint that is stored.

        Raises:
            ThreadConflictError: If the reply says that it is not.
        """
        command = put.command
        thread_id, ns = command.thread_id, command.checkpoint_ns
        if type(reply) is Conflict:
            raise ThreadConflictError(
                f"thread {thread_id!r} was written to by another writer: its latest checkpoint is "
                f"{reply.found or 'none'}, and this one follows {command.parent_id or 'none'}. "
                "Read the thread again and decide anew (setting: detect_conflicts)"
            )
        if put.outgoing is not None and ((lists := put.outgoing.lists()) or put.known):
            self._lists.remember(thread_id, ns, command.checkpoint_id, lists)
        return config_of(thread_id, ns, command.checkpoint_id)

    def _must_follow(self, config: RunnableConfig, parent_id: str | None, source: object) -> bool:
        if source == "fork":
            return False
        configurable = config.get("configurable", {})
        if parent_id:
            return not isinstance(configurable["checkpoint_id"], _Addressed)
        # A subgraph that is replayed from before its first checkpoint has no parent to name.
        return not configurable.get(_REPLAY)

    def _copied_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, path: str
    ) -> Sequence[tuple[str, Any]]:
        """Copy the list of what is stored when its turn has come; see `_copied`."""
        copied = list(writes)
        self._new_writes(config, [(c, None) for c, _ in copied], task_id, path)
        return copied

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

    def _history_query(self, config: RunnableConfig, channels: Sequence[str]) -> GetChannelHistory:
        return check(GetChannelHistory(*identify(config), tuple(channels)))

    def _history(self, channels: Sequence[str], reply: Any) -> Mapping[str, DeltaChannelHistory]:
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
