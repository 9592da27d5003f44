"""Items as users see them, made from a shard's rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import Item, SearchItem

from flowgentic_actors.engine.replies import ItemRow
from flowgentic_actors.errors import TypeNotAllowedError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class VersionedItem(Item):
    """An item with its version, for `aput(expected_version=)`.

    Attributes:
        version: Grows with every put, also over a deletion in between; 0 in an item that was made
            from another one's `dict()`, which does not have it.
    """

    __slots__ = ("version",)

    def __init__(self, *, version: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.version = version


class VersionedSearchItem(SearchItem):
    """The same as a search gives it."""

    __slots__ = ("version",)

    def __init__(self, *, version: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.version = version


def item_of(row: ItemRow, serde: SerializerProtocol) -> VersionedItem:
    """An item from its row."""
    return VersionedItem(version=row.updated_us, **_fields(row, serde))


def search_item_of(
    row: ItemRow, score: float | None, serde: SerializerProtocol
) -> VersionedSearchItem:
    """An item that a search found, from its row."""
    return VersionedSearchItem(version=row.updated_us, score=score, **_fields(row, serde))


def time_of(microseconds: int) -> datetime:
    """A time from microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=microseconds)


def micros_of(time: datetime) -> int:
    """Microseconds since the Unix epoch; a time without a zone is local time, as in Python."""
    return (time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _fields(row: ItemRow, serde: SerializerProtocol) -> dict[str, Any]:
    updated = time_of(row.updated_us)
    try:
        return {
            "namespace": row.namespace,
            "key": row.key,
            "value": serde.loads_typed(row.value),
            "created_at": updated if row.created_us == row.updated_us else time_of(row.created_us),
            "updated_at": updated,
        }
    except TypeNotAllowedError as error:
        raise TypeNotAllowedError(f"the item {row.key!r} in {row.namespace}: {error}") from error
