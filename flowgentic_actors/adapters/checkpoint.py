"""`AsyncCheckpointSaver`: LangGraph's checkpointer over the memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from flowgentic_actors.adapters.backlog import WriteInFlight
from flowgentic_actors.adapters.checkpoint_ops import CheckpointOperations
from flowgentic_actors.adapters.ids import identify, text_of
from flowgentic_actors.adapters.indexed_metadata import MetadataFilter
from flowgentic_actors.adapters.listing import ThreadInfo, thread_info
from flowgentic_actors.adapters.not_picklable import NotPicklable
from flowgentic_actors.adapters.operations import run, run_sync
from flowgentic_actors.adapters.ready_result import ReadyResult
from flowgentic_actors.adapters.serializing import (
    checkpoint_values,
    name_unserializable,
    written_values,
)
from flowgentic_actors.adapters.thread_plans import copy_thread, delete_for_runs, prune
from flowgentic_actors.engine.commands import DeleteThread
from flowgentic_actors.engine.limits import check
from flowgentic_actors.engine.replies import MissingBlobs


class AsyncCheckpointSaver(NotPicklable, CheckpointOperations):
    """Stores LangGraph checkpoints in a cluster's memory actors.

    Get it as `memory.checkpointer`. Every method has its sync form, which may be called from any
    thread, an event loop's own included. Values are serialized here, in the caller: actors keep
    them as opaque (type, bytes), so encrypted serializers work. The scalar fields of a
    checkpoint's metadata are also sent in the clear, as listings filter on them.

    Args:
        client: How to reach the shards.
        serde: Serializer of checkpoints, metadata and values. Default: LangGraph's
            `JsonPlusSerializer`, a `StrictSerializer` where `allowed_types` says so.
        detect_conflicts: Whether to refuse a checkpoint that does not follow the latest of its
            namespace, because another writer wrote to the thread meanwhile.
        backlog: Bytes of one thread that may wait to be acknowledged.
        request_timeout: Seconds that a further write of it waits for its turn.
    """

    # ------------------------------------------------------------------ async

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint: the one named in the config, or the latest of its namespace."""
        query, client = self._query(config), self._client
        reply = client.ask_sync(query) if self._direct else await client.ask(query)
        return self._found(query, reply)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first, over all threads when there is no config.

        Nothing is held open between two items: the iteration may be left at any point.

        Args:
            config: The thread, and optionally namespace and checkpoint, to list.
            filter: Metadata fields that must be equal.
            before: Only checkpoints with an id below this config's.
            limit: At most this many.
        """
        wanted = MetadataFilter(filter)
        listing = self._listing(config, wanted, before, limit)
        while (row := await run(self._client, listing.next())) is not None:
            if (found := self._listed(row, wanted)) is not None:
                yield found
                if listing.count():
                    return

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; the config's checkpoint becomes its parent.

        Returns:
            The config of the stored checkpoint.

        Raises:
            ThreadConflictError: If conflicts are detected and this is one. A checkpoint of source
                `"fork"`, or whose parent was asked for by its id, is none: that is time travel.
            BackpressureError: If too much of the thread was under way for `request_timeout`.
            NotSerializableError: If a value cannot be serialized; it is named.
        """
        write = WriteInFlight()
        try:
            if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
                config, checkpoint, metadata = self._copied(config, checkpoint, metadata)
                await self._backlog.wait(write, thread_id)
            put = self._new(config, checkpoint, metadata, new_versions)
            while True:
                if self._direct:  # where no write ever waits for another
                    reply = self._client.ask_sync(put.command)
                else:
                    self._backlog.begin(write, put.command.thread_id, put.size)
                    reply = await self._client.ask(put.command)
                if type(reply) is not MissingBlobs:
                    break
                self._cut(put, reply.channels)
            if not self._direct:
                self._backlog.end(write)
            return self._stored(put, reply)
        except BaseException as error:  # of a signal's handler, and in `end`: no `finally` would do
            self._backlog.end(write)
            name_unserializable(error, self.serde, checkpoint_values(config, checkpoint, metadata))
            raise

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store a task's pending writes on a checkpoint, which may not have arrived yet."""
        write = WriteInFlight()
        try:
            if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
                writes = self._copied_writes(config, writes, task_id, task_path)
                await self._backlog.wait(write, thread_id)
            command, size = self._new_writes(config, writes, task_id, task_path)
            if self._direct:
                self._client.ask_sync(command)
                return
            self._backlog.begin(write, command.thread_id, size)
            await self._client.ask(command)
            self._backlog.end(write)
        except BaseException as error:  # as in `aput`
            self._backlog.end(write)
            name_unserializable(error, self.serde, written_values(config, writes))
            raise

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        command, write = check(DeleteThread(text_of("thread_id", thread_id))), WriteInFlight()
        try:
            if command.thread_id in self._crowded:  # or writes that wait bring it back
                await self._backlog.wait(write, command.thread_id)
            self._backlog.begin(write, command.thread_id, 0)
            await self._client.ask(command)
            self._backlog.end(write)
        except BaseException:  # as in `aput`
            self._backlog.end(write)
            raise

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of some runs, their writes, and the values that only they had.

        Runs are known by the field `run_id` of a checkpoint's metadata. What other checkpoints'
        delta channels are made from goes as well: see LangGraph's note on `delete_for_runs`.
        """
        await run(self._client, delete_for_runs(self._client, run_ids))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints of some threads.

        Args:
            thread_ids: The threads.
            strategy: `"keep_latest"`: all but the latest of each namespace, and those that its
                delta channels are made from. `"delete"`: everything.
        """
        await run(self._client, prune(self._client, thread_ids, strategy))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, all of its checkpoints and pending writes, onto another one.

        What the target thread has stays, but for checkpoints of the same ids. The copy is made
        page by page: it is whole when this returns, and an interrupted one can be made again.
        """
        await run(self._client, copy_thread(self._client, source_thread_id, target_thread_id))

    async def athreads(
        self,
        *,
        prefix: str = "",
        limit: int | None = None,
        before: datetime | ThreadInfo | None = None,
    ) -> AsyncIterator[ThreadInfo]:
        """List threads, the one that was written to last first.

        Args:
            prefix: What their ids begin with.
            limit: At most this many.
            before: Only those that were last written to before a time; or go on after a thread of
                an earlier listing.
        """
        listing = self._thread_listing(prefix, limit, before)
        while (row := await run(self._client, listing.next())) is not None:
            yield thread_info(row)
            if listing.count():
                return

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What led to the values of some channels at a checkpoint, in one request.

        Args:
            config: The checkpoint.
            channels: The channels; each is followed along the checkpoint's parents to the nearest
                that has a value for it, which is the `seed`.
        """
        if not channels:
            return {}
        query = self._history_query(config, channels)
        return self._history(channels, await self._client.ask(query))

    # ------------------------------------------------------------------ sync

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint; see `aget_tuple`."""
        query = self._query(config)
        return self._found(query, self._client.ask_sync(query))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints; see `alist`."""
        wanted = MetadataFilter(filter)
        listing = self._listing(config, wanted, before, limit)
        while (row := run_sync(self._client, listing.next())) is not None:
            if (found := self._listed(row, wanted)) is not None:
                yield found
                if listing.count():
                    return

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; see `aput`."""
        write = WriteInFlight()
        try:
            if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
                config, checkpoint, metadata = self._copied(config, checkpoint, metadata)
                self._backlog.wait_sync(write, thread_id)
            put = self._new(config, checkpoint, metadata, new_versions)
            while True:
                if not self._direct:
                    self._backlog.begin(write, put.command.thread_id, put.size)
                reply = self._client.ask_sync(put.command)
                if type(reply) is not MissingBlobs:
                    break
                self._cut(put, reply.channels)
            if not self._direct:
                self._backlog.end(write)
            return self._stored(put, reply)
        except BaseException as error:  # as in `aput`
            self._backlog.end(write)
            name_unserializable(error, self.serde, checkpoint_values(config, checkpoint, metadata))
            raise

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store pending writes; see `aput_writes`."""
        write = WriteInFlight()
        try:
            if self._crowded and (thread_id := identify(config)[0]) in self._crowded:
                writes = self._copied_writes(config, writes, task_id, task_path)
                self._backlog.wait_sync(write, thread_id)
            command, size = self._new_writes(config, writes, task_id, task_path)
            if self._direct:
                self._client.ask_sync(command)
                return
            self._backlog.begin(write, command.thread_id, size)
            self._client.ask_sync(command)
            self._backlog.end(write)
        except BaseException as error:  # as in `aput`
            self._backlog.end(write)
            name_unserializable(error, self.serde, written_values(config, writes))
            raise

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread; see `adelete_thread`."""
        command, write = check(DeleteThread(text_of("thread_id", thread_id))), WriteInFlight()
        try:
            if command.thread_id in self._crowded:
                self._backlog.wait_sync(write, command.thread_id)
            self._backlog.begin(write, command.thread_id, 0)
            self._client.ask_sync(command)
            self._backlog.end(write)
        except BaseException:  # as in `aput`
            self._backlog.end(write)
            raise

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of some runs; see `adelete_for_runs`."""
        run_sync(self._client, delete_for_runs(self._client, run_ids))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints of some threads; see `aprune`."""
        run_sync(self._client, prune(self._client, thread_ids, strategy))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread; see `acopy_thread`."""
        run_sync(self._client, copy_thread(self._client, source_thread_id, target_thread_id))

    def threads(
        self,
        *,
        prefix: str = "",
        limit: int | None = None,
        before: datetime | ThreadInfo | None = None,
    ) -> Iterator[ThreadInfo]:
        """List threads; see `athreads`."""
        listing = self._thread_listing(prefix, limit, before)
        while (row := run_sync(self._client, listing.next())) is not None:
            yield thread_info(row)
            if listing.count():
                return

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What led to channels' values; see `aget_delta_channel_history`."""
        if not channels:
            return {}
        query = self._history_query(config, channels)
        return self._history(channels, self._client.ask_sync(query))

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002
        """The version after `current`, unique even among branches of one thread.

        The random part keeps two forks of a checkpoint from giving one version to two values.
        """
        number = int(str(current).partition(".")[0]) if current is not None else 0
        return f"{number + 1:032}.{random.random():016}"  # noqa: S311 - told apart, not secret

    # ------------------------------------------------------------------ what other savers need

    def setup(self) -> ReadyResult[None]:
        """Do nothing: there are no tables to create. It may be awaited."""
        return ReadyResult(None)

    async def asetup(self) -> None:
        """Do nothing; see `setup`."""
