"""The async and the sync form of savers and stores behind one face, and what tests put there.

The sync form is called on the event loop's own thread: LangGraph does that too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    empty_checkpoint,
)
from langgraph.store.base import Op, Result

from flowgentic_actors import AsyncCheckpointSaver, AsyncStore, MemoryCluster


class SaverFace:
    """A saver whose methods are all awaited and, if `blocking`, carried out by the sync ones."""

    def __init__(self, saver: AsyncCheckpointSaver, *, blocking: bool) -> None:
        self.saver = saver
        self.blocking = blocking

    async def get(self, config: RunnableConfig) -> CheckpointTuple | None:
        if self.blocking:
            return self.saver.get_tuple(config)
        return await self.saver.aget_tuple(config)

    async def found(self, config: RunnableConfig) -> CheckpointTuple:
        """What must be there."""
        found = await self.get(config)
        assert found is not None
        return found

    async def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any] | None = None,
        new_versions: ChannelVersions | None = None,
    ) -> RunnableConfig:
        """Store a checkpoint; by default with all its versions as new ones."""
        described: CheckpointMetadata = {"source": "loop", "step": 0, "parents": {}}
        described.update(metadata or {})  # type: ignore[typeddict-item]  # users add fields
        new = checkpoint["channel_versions"] if new_versions is None else new_versions
        if self.blocking:
            return self.saver.put(config, checkpoint, described, new)
        return await self.saver.aput(config, checkpoint, described, new)

    async def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str = "task",
        task_path: str = "",
    ) -> None:
        if self.blocking:
            self.saver.put_writes(config, writes, task_id, task_path)
        else:
            await self.saver.aput_writes(config, writes, task_id, task_path)

    async def copy_thread(self, source: str, target: str) -> None:
        if self.blocking:
            self.saver.copy_thread(source, target)
        else:
            await self.saver.acopy_thread(source, target)

    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        if self.blocking:
            self.saver.delete_for_runs(run_ids)
        else:
            await self.saver.adelete_for_runs(run_ids)

    async def prune(self, thread_ids: Sequence[str], strategy: str = "keep_latest") -> None:
        if self.blocking:
            self.saver.prune(thread_ids, strategy=strategy)
        else:
            await self.saver.aprune(thread_ids, strategy=strategy)

    async def channel_history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, Any]:
        if self.blocking:
            return self.saver.get_delta_channel_history(config=config, channels=channels)
        return await self.saver.aget_delta_channel_history(config=config, channels=channels)

    async def each(
        self, config: RunnableConfig | None, **options: Any
    ) -> AsyncGenerator[CheckpointTuple, None]:
        if self.blocking:
            for found in self.saver.list(config, **options):
                yield found
        else:
            async for found in self.saver.alist(config, **options):
                yield found

    async def ids(self, config: RunnableConfig | None, **options: Any) -> list[str]:
        """Ids of the checkpoints that a listing gives, in its order."""
        return [id_of(found.config) async for found in self.each(config, **options)]

    async def delete_thread(self, thread_id: str) -> None:
        if self.blocking:
            self.saver.delete_thread(thread_id)
        else:
            await self.saver.adelete_thread(thread_id)


class StoreFace:
    """A store whose operations are all awaited and, if `blocking`, done by the sync ones."""

    def __init__(self, store: AsyncStore, *, blocking: bool) -> None:
        self.store = store
        self._blocking = blocking

    def __getattr__(self, operation: str) -> Any:
        async def carry_out(*args: Any, **kwargs: Any) -> Any:
            if self._blocking:
                return getattr(self.store, operation)(*args, **kwargs)
            return await getattr(self.store, "a" + operation)(*args, **kwargs)

        return carry_out

    async def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self.store.batch(ops) if self._blocking else await self.store.abatch(ops)

    async def value(self, namespace: tuple[str, ...], key: str) -> dict[str, Any] | None:
        """The value of an item, None when it is not there."""
        item = await self.get(namespace, key)
        return None if item is None else item.value

    async def keys(self, namespace: tuple[str, ...], **options: Any) -> list[str]:
        """Keys of the items that a search gives, in its order."""
        return [item.key for item in await self.search(namespace, **options)]


def unique() -> str:
    """A thread id or label that no other test uses: clusters are shared."""
    return uuid4().hex


def config_of(thread_id: Any, ns: Any = "", checkpoint_id: Any = None) -> Any:
    """A config as LangGraph makes them."""
    given = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in given.items() if value is not None}}


def checkpoint_of(values: Mapping[str, Any] | None = None, **given: Any) -> Checkpoint:
    """A new checkpoint with these channel values, each at a version of its own."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = dict(values or {})
    checkpoint["channel_versions"] = {channel: f"1.{unique()}" for channel in values or {}}
    checkpoint.update(given)  # type: ignore[typeddict-item]  # its own fields
    return checkpoint


def id_of(config: RunnableConfig) -> str:
    checkpoint_id = config["configurable"]["checkpoint_id"]
    assert isinstance(checkpoint_id, str)
    return checkpoint_id


async def remembers(memory: MemoryCluster) -> None:
    """The memory works, awaited and blocking."""
    thread, label = unique(), unique()
    checkpoint = checkpoint_of({"a": 1})
    versions = checkpoint["channel_versions"]
    await memory.checkpointer.aput(config_of(thread), checkpoint, {}, versions)
    assert memory.checkpointer.get_tuple(config_of(thread)) is not None
    memory.store.put((label,), "key", {"v": 1})
    item = await memory.store.aget((label,), "key")
    assert item is not None
    assert item.value == {"v": 1}
