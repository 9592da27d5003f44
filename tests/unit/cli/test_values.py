"""Values as people read them: safe, whatever is in them."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors.cli.values import readable


class Bomb:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("msgpack", msgspec.msgpack.encode({"a": [1, None, "x"]}), {"a": [1, None, "x"]}),
        ("msgpack", msgspec.msgpack.encode({1: b"raw", "inf": float("inf")}), None),
        ("json", b'{"a": 1}', {"a": 1}),
        ("null", b"", None),
        ("bytes", b"12345", "<bytes, 5 bytes>"),
        ("msgpack", b"\xc1", "<msgpack, 1 bytes>"),
        ("msgpack", b"\xa2\xff\xff", "<msgpack, 3 bytes>"),
        ("json", b"{", "<json, 1 bytes>"),
        ("msgpack", b"\x91" * 100_000, "<msgpack, 100000 bytes>"),
        ("pickle", pickle.dumps(Bomb()), None),
    ],
)
def test_values_are_decoded_where_that_is_safe(kind: str, data: bytes, expected: Any) -> None:
    found = readable(kind, data)
    json.dumps(found, allow_nan=False)
    if kind == "pickle":
        assert found == f"<pickle, {len(data)} bytes>"
    elif expected is not None or kind == "null":
        assert found == expected


def test_objects_of_langgraph_are_shown_and_not_made() -> None:
    stored = JsonPlusSerializer().dumps_typed({"when": datetime(2026, 1, 2, tzinfo=UTC)})
    assert "2026-01-02" in json.dumps(readable(*stored))
