"""Refusal to pickle adapters, which belong to their process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, SupportsIndex

if TYPE_CHECKING:
    from flowgentic_actors.cluster.client.memory_client import MemoryClient


class NotPicklable:
    """Base of classes that refuse to be pickled or deep-copied; shallow copies are possible.

    LangGraph's own classes would fail on a part of theirs that has nothing to do with it.
    """

    _client: MemoryClient

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        return self._client.__reduce_ex__(protocol)
