"""Item filters: LangGraph's filter language over values that are msgpack maps.

The rules, where LangGraph's own stores disagree with each other: numbers compare as numbers and
text as text; an ordering operator never matches a missing field or another type, and never
raises; `$ne` matches a missing field; nested maps match recursively and partially, lists element
by element.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flowgentic_actors.errors import InvalidRequestError

FILTERABLE = "msgpack"
"""The blob type whose bytes are a msgpack map, as LangGraph's default serializer writes."""

_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS = frozenset({"$eq", "$ne", *_ORDER})

# Only the top level is decoded for every candidate; fields are decoded when a filter names them.
_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_any = msgspec.msgpack.Decoder()


def compile_filter(encoded: bytes) -> Callable[[str, bytes], bool]:
    """Make a predicate on (blob type, blob bytes) from a filter.

    Args:
        encoded: A msgpack map of field to condition.

    Returns:
        A function that tells whether a value matches.

    Raises:
        InvalidRequestError: If the filter is not a map or names an unknown operator.
    """
    try:
        conditions = msgspec.msgpack.decode(encoded, type=dict[str, Any])
        for condition in conditions.values():
            _check_operators(condition)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"filter is not a map of field to condition: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError("filter is nested too deeply") from error

    def matches_value(kind: str, data: bytes) -> bool:
        if kind != FILTERABLE:
            raise InvalidRequestError(
                f"items serialized as {kind!r} cannot be filtered by their shard: search without "
                "filter=, or store them with a serializer that is not encrypted"
            )
        try:
            fields = _fields.decode(data)
            return all(
                _matches(_any.decode(fields[name]) if name in fields else None, condition)
                for name, condition in conditions.items()
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # not a map with text keys, not plain data, or nested too deeply

    return matches_value


def _check_operators(condition: object) -> None:
    if isinstance(condition, dict):
        unknown = [k for k in condition if _is_operator(k) and k not in _OPERATORS]
        if unknown:
            raise InvalidRequestError(
                f"unknown filter operator {unknown[0]!r}; known: {', '.join(sorted(_OPERATORS))}"
            )
        for name, inner in condition.items():
            if not _is_operator(name):  # an operator's operand is a plain value
                _check_operators(inner)
    elif isinstance(condition, list):
        for inner in condition:
            _check_operators(inner)


def _matches(value: object, condition: object) -> bool:
    if isinstance(condition, dict):
        if any(map(_is_operator, condition)):
            return all(_compare(value, name, operand) for name, operand in condition.items())
        return isinstance(value, dict) and all(
            _matches(value.get(k), inner) for k, inner in condition.items()
        )
    if isinstance(condition, list):
        return (
            isinstance(value, list)
            and len(value) == len(condition)
            and all(map(_matches, value, condition))
        )
    return _equal(value, condition)


def _compare(value: object, name: str, operand: object) -> bool:
    if name == "$eq":
        return _equal(value, operand)
    if name == "$ne":
        return not _equal(value, operand)
    if name not in _ORDER:  # a plain field beside an operator: {"$gt": 1, "a": 2}
        return isinstance(value, dict) and _matches(value.get(name), operand)
    if (_is_number(value) and _is_number(operand)) or (
        isinstance(value, str) and isinstance(operand, str)
    ):
        return _ORDER[name](value, operand)
    return False


def _equal(value: object, operand: object) -> bool:
    # True == 1 in Python; in the JSON that users think of they are different values.
    if isinstance(value, dict) and isinstance(operand, dict):
        return value.keys() == operand.keys() and all(_equal(value[k], operand[k]) for k in value)
    if isinstance(value, list) and isinstance(operand, list):
        return len(value) == len(operand) and all(map(_equal, value, operand))
    return isinstance(value, bool) == isinstance(operand, bool) and value == operand


def _is_operator(name: object) -> bool:
    return isinstance(name, str) and name.startswith("$")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
