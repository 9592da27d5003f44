"""Heads of checkpoints and writes: ids, versions and metadata, checked without values.

Most of it is plain ASCII text within the limits, which costs little to see. All other is encoded
and decoded as on its way to an actor: that refuses what cannot be sent (`engine.limits`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata

from flowgentic_actors.adapters.ids import text_of
from flowgentic_actors.adapters.indexed_metadata import INT64, add_facet, mended
from flowgentic_actors.engine.limits import (
    UNFIT,
    CheckpointHead,
    WritesHead,
    check,
    decode_checkpoint,
    decode_writes,
    encode,
)
from flowgentic_actors.engine.model import MAX_TEXT, Scalar

_VERSION: Final = 256  # characters of a version
_NAME: Final = 256  # characters of a name that is remembered
_MOST_NAMES: Final = 4096
_names: set[str] = set()  # of channels and fields, which are few: short ASCII text
_all_plain = frozenset({str}).issuperset


def metadata_of(
    config: RunnableConfig, metadata: CheckpointMetadata
) -> tuple[dict[str, Any], dict[str, Scalar]]:
    """A checkpoint's metadata, as by `get_checkpoint_metadata`, and its indexed fields.

    Returns:
        The metadata, and those of its fields that a shard can compare.
    """
    merged: dict[str, Any] = {}
    facets: dict[str, Scalar] = {}
    value: Any
    for name, value in metadata.items():
        kind = type(value)
        if kind is str:
            merged[name] = facets[name] = value.replace("\0", "")
        elif kind is int and -INT64 <= value < INT64:
            merged[name] = facets[name] = value
        elif kind is dict:
            merged[name] = value
        else:
            if isinstance(value, str):
                value = value.replace("\0", "")  # noqa: PLW2901 - as LangGraph does
            merged[name] = value
            add_facet(facets, name, value)
    for fields in (config.get("metadata"), config.get("configurable")):
        if fields:
            _add_fields(merged, facets, fields)
    return merged, facets


def _add_fields(
    merged: dict[str, Any], facets: dict[str, Scalar], fields: Mapping[str, Any]
) -> None:
    for name, value in fields.items():
        if name in merged or name in EXCLUDED_METADATA_KEYS or name.startswith("__"):
            continue
        if isinstance(value, str):
            merged[name] = facets[name] = value.replace("\0", "")
        elif isinstance(value, (int, float)):
            merged[name] = value
            add_facet(facets, name, value)


def checked(head: CheckpointHead) -> CheckpointHead:
    """Check the head of a checkpoint.

    Returns:
        It as it can be sent, with versions of its own.

    Raises:
        InvalidRequestError: If it cannot be stored.
    """
    parent_id, facets, names = head.parent_id or "", head.metadata, head.channel_versions
    ids = head.thread_id, head.checkpoint_ns, head.checkpoint_id, parent_id
    if not head.deltas and type(names) is dict:
        versions: Any = names.values()
        if (
            _all_plain(map(type, (*ids, *names, *versions, *facets)))
            and _names.issuperset(names)
            and _names.issuperset(facets)
            and max(map(len, versions), default=0) <= _VERSION
            and len("".join(ids)) <= MAX_TEXT
            and "".join((*ids, *versions, *map(str, facets.values()))).isascii()
        ):
            head.channel_versions = names.copy()
            return head
    try:
        arrived = decode_checkpoint(encode(head))
    except UNFIT:
        return mended(head)
    _remember((*arrived.channel_versions, *arrived.metadata))
    return arrived


def checked_task(
    ids: tuple[str, str, str], task_id: str, task_path: str, writes: Sequence[tuple[str, Any]]
) -> tuple[str, str]:
    """Check the head of a task's pending writes.

    Args:
        ids: Thread, namespace and checkpoint.
        task_id: The task.
        task_path: Its path.
        writes: What it wrote, by channel.

    Returns:
        The task and its path as they can be sent.

    Raises:
        InvalidRequestError: If the writes cannot be stored.
    """
    try:
        named = dict(writes)
        if (
            _all_plain(map(type, (task_id, task_path, *named)))
            and _names.issuperset(named)
            and (text := "".join(ids) + task_id + task_path).isascii()
            and len(text) <= MAX_TEXT
        ):
            return task_id, task_path
        # the encoder would take an enumeration's member as its value
        task_id, task_path = text_of("task_id", task_id), text_of("task_path", task_path)
        head = decode_writes(encode(WritesHead(*ids, task_id, task_path, [*named])))
    except UNFIT:
        task_id, task_path = text_of("task_id", task_id), text_of("task_path", task_path)
        channels = [channel for channel, _ in writes]
        head = check(WritesHead(*ids, task_id, task_path, channels))
    _remember(head.channel)
    return head.task_id, head.task_path


def _remember(names: Collection[str]) -> None:
    """Remember names that were checked, to skip their check next time."""
    if len(_names) + len(names) > _MOST_NAMES:
        _names.clear()
    if len(names) <= _MOST_NAMES:
        _names.update([name for name in names if len(name) <= _NAME and name.isascii()])
