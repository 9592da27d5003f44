"""Errors for values that cannot be serialized, with the name of the value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors.errors import FlowgenticError, NotSerializableError

Named: TypeAlias = Iterable[tuple[str, Any]]
"""Values, each with a description for error messages."""


def name_unserializable(error: BaseException, serde: SerializerProtocol, values: Named) -> None:
    """Raise an error that names the value that cannot be serialized, if there is one.

    Args:
        error: What a call that serializes these values failed with.
        serde: Serializes them.
        values: The values; iterated only when the serializer may have raised the error.

    Raises:
        NotSerializableError: With the name, from `error`.
    """
    if isinstance(error, FlowgenticError) or not isinstance(error, Exception):
        return
    for name, value in values:
        try:
            serde.dumps_typed(value)
        except Exception as reason:  # noqa: BLE001 - a serializer may raise anything
            raise NotSerializableError(
                f"{name} cannot be serialized, and nothing was stored: "
                f"{str(reason) or type(reason).__name__}. Give plain data, or a type that the "
                "serializer knows, such as a dataclass or a pydantic model"
            ) from error


def entries(name: str, values: Mapping[str, Any]) -> Named:
    """The values of a mapping, by the mapping's name and their keys."""
    return ((f"{name}[{key!r}]", value) for key, value in values.items())


def checkpoint_values(
    config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
) -> Named:
    """All serialized values of a checkpoint, by name."""
    thread = f"thread {config['configurable'].get('thread_id')!r}: "
    for channel, value in checkpoint["channel_values"].items():
        yield f"{thread}the value of channel {channel!r}", value
    yield from entries(f"{thread}metadata", get_checkpoint_metadata(config, metadata))
    yield from entries(f"{thread}checkpoint", checkpoint)


def written_values(config: RunnableConfig, writes: Sequence[tuple[str, Any]]) -> Named:
    """All serialized values of pending writes, by name."""
    thread = f"thread {config['configurable'].get('thread_id')!r}: "
    for channel, value in writes:
        yield f"{thread}the value written to channel {channel!r}", value
