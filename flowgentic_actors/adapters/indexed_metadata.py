"""Indexed metadata: the fields by which shards select checkpoints, and filters on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from flowgentic_actors.engine.limits import CheckpointHead, check
from flowgentic_actors.engine.model import MAX_TEXT, Scalar

INT64: Final = 2**63
_NO_SCALAR = object()


def facets_of(metadata: Mapping[str, Any]) -> dict[str, Scalar]:
    """The fields that a shard can compare: scalars that are encoded without loss."""
    facets: dict[str, Scalar] = {}
    for name, value in metadata.items():
        add_facet(facets, name, value)
    return facets


def add_facet(facets: dict[str, Scalar], name: str, value: Any) -> None:
    """Add a field, if a shard can compare it."""
    if type(value) is str:
        facets[name] = value
    elif (facet := _scalar(value)) is not _NO_SCALAR:
        facets[name] = facet


def sendable(facets: Mapping[Any, Scalar]) -> dict[str, Scalar]:
    """The indexed fields that a command can hold: their names are text, and not too long."""
    return {
        replaced(str.__str__(name)): replaced(value) if isinstance(value, str) else value
        for name, value in facets.items()
        if isinstance(name, str) and len(name) <= MAX_TEXT
    }


def mended(head: CheckpointHead) -> CheckpointHead:
    """A copy of a head that cannot be sent as it is, with sendable fields.

    Raises:
        InvalidRequestError: If it cannot be sent then either.
    """
    head.metadata = sendable(head.metadata)
    return check(head)


def replaced(text: str) -> str:
    """Text as LangGraph's serializer stores it: "?" for each half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class MetadataFilter:
    """A filter on the metadata of checkpoints.

    Args:
        wanted: Fields and the values that they must be equal to. A UUID also equals its text.

    Attributes:
        facets: The part of it that a shard can decide.
        decided: Whether that is all of it.
    """

    __slots__ = ("_wanted", "decided", "facets")

    def __init__(self, wanted: Mapping[str, Any] | None) -> None:
        self._wanted = {
            name: replaced(value) if type(value) is str else value
            for name, value in (wanted or {}).items()
        }
        given = {name: value for name, value in self._wanted.items() if value is not None}
        self.facets = sendable(facets_of(given))
        self.decided = len(self.facets) == len(self._wanted)

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's metadata matches the filter."""
        return all(_equal(metadata.get(name), value) for name, value in self._wanted.items())


def _equal(found: Any, wanted: Any) -> bool:
    return bool(found == wanted) or (isinstance(wanted, UUID) and found == str(wanted))


def _scalar(value: object) -> Any:
    """A value as plain data, an enum's text included, or `_NO_SCALAR`."""
    if isinstance(value, int):
        if isinstance(value, bool):
            return value
        return int(value) if -INT64 <= value < INT64 else _NO_SCALAR
    if value is None:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return float(value) if isinstance(value, float) else _NO_SCALAR
