"""Decoding of stored values, limited to allowed types.

LangGraph's serializer notes with each object of what type it is, and imports and calls that when it
decodes it. So the writer of a memory decides what its readers call, unless they are strict.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from langgraph.checkpoint.serde import _msgpack as langgraph_setting
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors.adapters.items import VersionedItem, VersionedSearchItem
from flowgentic_actors.errors import TypeNotAllowedError

AllowedTypes: TypeAlias = Iterable[type | tuple[str, str]]
"""Classes, themselves or as (module, name)."""

_OURS: Final = (VersionedItem, VersionedSearchItem)  # of a store's items that are put into a state
_KINDS: Final = frozenset({"null", "bytes", "bytearray", "msgpack"})  # what the serializer writes
_HOW: Final = "(settings: allowed_types, LANGGRAPH_STRICT_MSGPACK)"


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer, decoding to plain values, LangGraph's own types and named ones only.

    A memory with `allowed_types` uses it. Use it also within a serializer of your own:

        memory.checkpointer.serde = EncryptedSerializer(cipher, StrictSerializer([Person]))

    Where LangGraph's strict mode gives the data of a type that it blocks, this one raises. Plain
    are also dates, sets, UUIDs and such of the standard library; LangGraph lists them in
    `SAFE_MSGPACK_TYPES`. No type of any other kind is imported.

    Args:
        allowed_types: Further classes, themselves or as (module, name). `with_msgpack_allowlist`
            gives a serializer with more of them, as LangGraph asks for when it compiles a graph
            while `LANGGRAPH_STRICT_MSGPACK` is set.
    """

    def __init__(self, allowed_types: AllowedTypes = ()) -> None:
        super().__init__(allowed_msgpack_modules=(*_OURS, *allowed_types))

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Decode a value.

        Raises:
            TypeNotAllowedError: If it has an object of another type; none such was made.
        """
        if data[0] not in _KINDS:
            raise TypeNotAllowedError(
                f"a stored value is encoded as {data[0]!r}, which is not decoded here {_HOW}. It "
                "was written with a serializer that this reader does not have, or by somebody who "
                "should not write to this memory"
            )
        outer, _noted.refused = _noted.refused, []
        try:
            value = super().loads_typed(data)
            refused = _noted.refused
        finally:
            _noted.refused = outer
        if refused:
            raise _refusal(refused[0])
        return value


def serializer_of(client: object) -> JsonPlusSerializer:
    """The serializer of adapters over a client, where they are given none.

    Strict if the client has `allowed_types`, or `LANGGRAPH_STRICT_MSGPACK` is set.
    """
    allowed: AllowedTypes | None = getattr(client, "allowed_types", None)
    if allowed is None and not langgraph_setting.STRICT_MSGPACK_ENABLED:
        return JsonPlusSerializer()
    return StrictSerializer(allowed or ())


# LangGraph decodes from the inside out and swallows what is raised meanwhile, but tells of it.


class _Noted(threading.local):
    refused: list[SerdeEvent] | None = None


_noted = _Noted()


def _note(event: SerdeEvent) -> None:
    if _noted.refused is not None and event["kind"].endswith("_blocked"):
        _noted.refused.append(event)


register_serde_event_listener(_note)


def _refusal(event: SerdeEvent) -> TypeNotAllowedError:
    place = event["module"], event["name"]
    told = (
        f"a stored value is of type {'.'.join(map(str, place))}, which is not decoded here {_HOW}"
    )
    if "method" in event:
        return TypeNotAllowedError(
            f"{told}: it would be made by {event['method']}(), and such types cannot be allowed. "
            "Store plain data, such as the standard library's datetime, in its place"
        )
    return TypeNotAllowedError(
        f"{told}. If it is one of yours, allow it: allowed_types=[{place!r}]. If not, somebody who "
        "should not has written to this memory"
    )
