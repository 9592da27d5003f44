"""What is stored beside the values of checkpoints and writes: ids, versions and metadata, checked.

Most of it is plain ASCII text within the limits, which costs little to see. All other is encoded
and decoded as on its way to an actor: that refuses what cannot be sent (`engine.limits`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS, CheckpointMetadata

from flowgentic_actors.adapters.facets import INT64, add_facet, mended
from flowgentic_actors.adapters.ids import text_of
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
    """A checkpoint's metadata, as LangGraph's `get_checkpoint_metadata` makes it, and its facets.

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
    """Check what a checkpoint has beside its values.

    Returns:
        It as it can be sent, with versions of its own.

    Raises:
        InvalidRequestError: If it cannot be stored.
    """
    checkpoint_id, facets, versions = head.checkpoint_id, head.metadata, head.channel_versions
    if (
        not head.deltas
        and type(checkpoint_id) is str
        and type(versions) is dict
        and _is_short(head.thread_id + head.checkpoint_ns + checkpoint_id + (head.parent_id or ""))
        and _are_names(versions)
        and _are_names(facets)
        and _are_short(versions.values(), _VERSION)
        and _are_short([v for v in facets.values() if isinstance(v, str)], MAX_TEXT)
    ):
        head.channel_versions = versions.copy()
        return head
    try:
        return decode_checkpoint(encode(head))
    except UNFIT:
        return mended(head)


def checked_writes(head: WritesHead) -> WritesHead:
    """Check what pending writes have beside their values; see `checked`."""
    task_id, task_path = head.task_id, head.task_path
    if (
        type(task_id) is str
        and type(task_path) is str
        and _is_short(
            head.thread_id + head.checkpoint_ns + head.checkpoint_id + task_id + task_path
        )
        and _are_names(head.channel)
    ):
        return head
    try:
        return decode_writes(encode(head))
    except UNFIT:
        head.task_id, head.task_path = text_of("task_id", task_id), text_of("task_path", task_path)
        return check(head)


def _is_short(text: str) -> bool:
    return text.isascii() and len(text) <= MAX_TEXT


def _are_names(names: Collection[str]) -> bool:
    """Whether all are plain, short names; they are remembered."""
    if not _all_plain(map(type, names)):  # other kinds of text may equal what they are not
        return False
    if _names.issuperset(names):
        return True
    if len(_names) + len(names) > _MOST_NAMES:
        _names.clear()
        if len(names) > _MOST_NAMES:
            return False
    if not _are_short(names, _NAME):
        return False
    _names.update(names)
    return True


def _are_short(texts: Collection[Any], most: int) -> bool:
    """Whether all are plain ASCII text of at most so many characters."""
    if not _all_plain(map(type, texts)):
        return False
    joined = "".join(texts)
    return joined.isascii() and (len(joined) <= most or max(map(len, texts)) <= most)
