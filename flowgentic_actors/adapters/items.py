"""Items as users see them, made from a shard's rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import Item, SearchItem

from flowgentic_actors.engine.replies import ItemRow
from flowgentic_actors.errors import TypeNotAllowedError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_new = object.__new__


class VersionedItem(Item):
    """An item with its version, for `aput(expected_version=)`.

    Attributes:
        version: Grows with every put, also over a deletion in between; 0 in an item that was made
            from another one's `dict()`, which does not have it.
    """

    __slots__ = ("_created_us", "version")

    _created_us: int

    def __init__(self, *, version: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.version = version

    def __getattr__(self, name: str) -> Any:
        return _time(self, name)


class VersionedSearchItem(SearchItem):
    """A found item with its version and score, as a search returns it."""

    __slots__ = ("_created_us", "version")

    _created_us: int

    def __init__(self, *, version: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.version = version

    def __getattr__(self, name: str) -> Any:
        return _time(self, name)


def item_of(row: ItemRow, serde: SerializerProtocol) -> VersionedItem:
    """Make an item from its row."""
    item = _new(VersionedItem)
    _fill(item, row, serde)
    return item


def search_item_of(
    row: ItemRow, score: float | None, serde: SerializerProtocol
) -> VersionedSearchItem:
    """Make a found item from its row."""
    item = _new(VersionedSearchItem)
    item.score = score
    _fill(item, row, serde)
    return item


def time_of(microseconds: int) -> datetime:
    """Convert microseconds since the Unix epoch to a time."""
    return _EPOCH + timedelta(microseconds=microseconds)


def micros_of(time: datetime) -> int:
    """Convert a time to microseconds since the epoch; without a zone, it is local time."""
    return (time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _time(item: VersionedItem | VersionedSearchItem, name: str) -> datetime:
    """Make an item's time when it is first asked for; most never are.

    LangGraph's attribute is not set until then, so Python asks `__getattr__` for it.
    """
    if name == "created_at":
        item.created_at = time_of(item._created_us)  # noqa: SLF001 - of this module
        return item.created_at
    if name == "updated_at":
        item.updated_at = time_of(item.version)
        return item.updated_at
    kind = type(item).__name__
    raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=item)


def _fill(
    item: VersionedItem | VersionedSearchItem, row: ItemRow, serde: SerializerProtocol
) -> None:
    item.namespace = row.namespace
    item.key = row.key
    item._created_us = row.created_us  # noqa: SLF001 - of this module
    item.version = row.updated_us
    try:
        item.value = serde.loads_typed(row.value)
    except TypeNotAllowedError as error:
        raise TypeNotAllowedError(f"the item {row.key!r} in {row.namespace}: {error}") from error
