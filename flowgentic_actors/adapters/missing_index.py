"""Stand-in for the index of a store without an embedding function, over indexed items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Never

from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings
from flowgentic_actors.errors import InvalidRequestError


class MissingIndex:
    """Stand-in for an `Index`: refuses operations that need one.

    A put would take the place of an item that has a vector, and leave one that has none: no search
    by similarity would find it any more. A search could only ignore its query.

    Args:
        settings: How the memory's items are embedded.
    """

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings

    def texts(self, value: dict[str, Any], index: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return no texts for a put with `index=False`, and raise for others.

        Raises:
            InvalidRequestError: For any other.
        """
        if index is not False:
            self._refuse(
                "put() would store an item that has no vector, and that no search by similarity "
                "finds",
                ", or index=False to this put",
            )
        return []

    async def aembed(self, documents: Sequence[str], queries: Sequence[str]) -> Never:  # noqa: ARG002
        """Raise: no query can be embedded.

        Raises:
            InvalidRequestError: Always.
        """
        self.embed((), queries)

    def embed(self, documents: Sequence[str], queries: Sequence[str]) -> Never:  # noqa: ARG002
        """Raise, blocking; see `aembed`."""
        self._refuse(f"a search for {queries[0]!r:.80} by similarity needs an embedding function")

    def _refuse(self, what: str, instead: str = "") -> Never:
        fields = list(self._settings.fields)
        raise InvalidRequestError(
            f"{what}: this memory's items are embedded ({self._settings}, fields {fields}), and "
            f"this program gave no index=. Nothing was done. Give MemoryCluster(...) or attach(...)"
            f" the index= that the memory was opened with{instead}"
        )
