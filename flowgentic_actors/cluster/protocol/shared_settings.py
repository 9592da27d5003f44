"""Settings that the opener decides for all programs of a cluster, and that a memory records.

An embedding function does not travel, so each program gives one. What it has to agree on with the
others is noted with the memory, and told to all who attach.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from flowgentic_actors.errors import ClusterOpenError, PersistError

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig

WHOLE_VALUE: Final = ("$",)
"""LangGraph's default of `index["fields"]`: the whole value."""


class IndexSettings(Struct, frozen=True, kw_only=True):
    """Settings of the embedding of items, without the embedding function.

    Attributes:
        dims: Components of each vector.
        fields: Paths of what is embedded.
        distance_type: How vectors are compared.
    """

    dims: int
    fields: tuple[str, ...] = WHOLE_VALUE
    distance_type: str = "cosine"

    @classmethod
    def of(cls, index: Mapping[str, Any]) -> IndexSettings:
        """The settings in LangGraph's `IndexConfig`."""
        return cls(
            dims=index["dims"],
            fields=tuple(index.get("fields") or index.get("text_fields") or WHOLE_VALUE),
            distance_type=index.get("distance_type") or "cosine",
        )

    def same_scores(self, other: IndexSettings) -> bool:
        """Whether both give the same scores: `dims` and `distance_type` are equal."""
        return (self.dims, self.distance_type) == (other.dims, other.distance_type)

    def __str__(self) -> str:
        return f"dims {self.dims}, distance_type {self.distance_type!r}"


class SharedSettings(Struct, frozen=True, kw_only=True):
    """The settings that all programs of a cluster share; see `MemoryConfig` for their meaning.

    Attributes:
        index: How items are embedded, None where they are not.
    """

    namespace_depth: int
    detect_conflicts: bool = False
    thread_backlog: int | None = None
    ttl: dict[str, Any] | None = None
    index: IndexSettings | None = None

    @classmethod
    def of(cls, config: MemoryConfig) -> SharedSettings:
        """The shared settings of the opener's configuration."""
        return cls(
            namespace_depth=config.namespace_depth,
            detect_conflicts=config.detect_conflicts,
            thread_backlog=config.thread_backlog,
            ttl=None if config.ttl is None else dict(config.ttl),
            index=None if config.index is None else IndexSettings.of(config.index),
        )

    def completed(self, config: MemoryConfig) -> MemoryConfig:
        """The configuration of an attaching program, completed with the shared settings.

        Raises:
            ClusterOpenError: If its `index` has other `dims` or `distance_type` than the opener's.
        """
        changes: dict[str, Any] = {"namespace_depth": self.namespace_depth}
        for name in ("detect_conflicts", "thread_backlog", "ttl"):
            if name not in config.model_fields_set and (decided := getattr(self, name)) is not None:
                changes[name] = decided
        if config.index is not None and self.index is not None:
            given = IndexSettings.of(config.index)
            if not given.same_scores(self.index):
                raise ClusterOpenError(
                    f"index= says {given}, and the cluster was opened with {self.index}: give the "
                    "embedding function and index= that its opener has"
                )
            if given.fields == WHOLE_VALUE and "$" not in (config.index.get("fields") or ()):
                changes["index"] = {**config.index, "fields": list(self.index.fields)}
        return config.model_copy(update=changes)


def reopened_index(
    path: Path, found: IndexSettings | None, given: IndexSettings | None, *, reindex: bool
) -> IndexSettings | None:
    """The index settings for a memory on disk that is opened again.

    Vectors are kept as they were given, so that another `distance_type` needs no others.

    Args:
        path: The memory's folder.
        found: What is noted there, None where it never had an index.
        given: The opener's.
        reindex: Whether another one is wanted.

    Raises:
        PersistError: If the vectors that it has could not be compared with new ones.
    """
    if given is None or found is None or reindex or given.dims == found.dims:
        return given or found
    raise PersistError(
        f"the memory in {path} has vectors of {found}, and index= says {given}: they cannot be "
        "compared. Open it with the index that it was made with. To change to the new one, "
        "re-index it: open it once with reindex=True and put every item again"
    )
