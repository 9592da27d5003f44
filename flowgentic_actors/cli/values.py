"""Stored values for people to read: decoded where that is safe, their type and size where not."""

from __future__ import annotations

import math
from typing import Any

import msgspec

_DEEPEST = 100


def readable(kind: str, data: bytes) -> Any:
    """A value as plain JSON types; nothing is unpickled and no class is looked up.

    Args:
        kind: Its type, as its serializer named it.
        data: Its bytes.
    """
    try:
        if kind in ("null", "empty"):
            return None
        if kind == "msgpack":
            return _plain(msgspec.msgpack.decode(data, ext_hook=_extension))
        if kind == "json":
            return _plain(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        pass  # told like a type that is not known
    return f"<{kind}, {len(data)} bytes>"


def _extension(code: int, data: memoryview) -> Any:
    """Show LangGraph's objects, (module, class, arguments, ...) in msgpack, without making them."""
    try:
        return {"ext": code, "value": msgspec.msgpack.decode(data, ext_hook=_extension)}
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError):
        return f"<ext {code}, {len(data)} bytes>"


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        return "<nested too deep>"
    match value:
        case dict():
            return {str(key): _plain(v, depth + 1) for key, v in value.items()}
        case list() | tuple():
            return [_plain(v, depth + 1) for v in value]
        case bytes():
            return f"<{len(value)} bytes>"
    told = value is None or isinstance(value, bool | int | str)
    return value if told or (isinstance(value, float) and math.isfinite(value)) else str(value)
