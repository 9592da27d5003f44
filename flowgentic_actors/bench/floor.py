"""The floor of every saver: LangGraph's own work, and serializing what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)


class SerializingSaver(BaseCheckpointSaver[Any]):
    """A saver that serializes each value once, drops the bytes, and keeps the last checkpoint.

    No saver that keeps what it is given can take less time. It has no history, lists nothing, and
    a thread has one checkpoint namespace.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, CheckpointTuple] = {}

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The last checkpoint of a thread."""
        return self._last.get(config["configurable"]["thread_id"])

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Serialize a checkpoint: the values that are new, its metadata, and the rest."""
        values = checkpoint["channel_values"]
        for channel in new_versions:
            if channel in values:
                self.serde.dumps_typed(values[channel])
        self.serde.dumps_typed({**checkpoint, "channel_values": {}})
        self.serde.dumps_typed(metadata)
        thread = config["configurable"]["thread_id"]
        at: RunnableConfig = {
            "configurable": {
                "thread_id": thread,
                "checkpoint_ns": config["configurable"].get("checkpoint_ns", ""),
                "checkpoint_id": checkpoint["id"],
            }
        }
        self._last[thread] = CheckpointTuple(at, checkpoint, metadata, config, [])
        return at

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",  # noqa: ARG002 - LangGraph's signature
    ) -> None:
        """Serialize pending writes."""
        last = self._last.get(config["configurable"]["thread_id"])
        for channel, value in writes:
            self.serde.dumps_typed(value)
            if last is not None and last.pending_writes is not None:
                last.pending_writes.append((task_id, channel, value))

    async def adelete_thread(self, thread_id: str) -> None:
        """Forget a thread."""
        self._last.pop(thread_id, None)

    def get_next_version(self, current: Any, channel: None) -> int:  # noqa: ARG002 - the same
        """The next version of a channel."""
        return (current or 0) + 1
