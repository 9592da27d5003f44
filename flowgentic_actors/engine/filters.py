"""Item filters: LangGraph's filter language over values that are msgpack maps.

The rules, where LangGraph's own stores disagree with each other: numbers compare as numbers and
text as text; an ordering operator never matches a missing field or another type, and never
raises; `$ne` matches a missing field; nested maps match recursively and partially, lists element
by element.

Operators that LangGraph does not have are MongoDB's: `$in` and `$nin` look into a field that is a
list, too; `$not` and `$nin` match a missing field; `$exists` tells a field that is None from one
that is missing. `$and`, `$or` and `$not` stand for the whole value, or within one of its fields.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from flowgentic_actors.errors import InvalidRequestError

FILTERABLE = "msgpack"
"""The blob type whose bytes are a msgpack map, as LangGraph's default serializer writes."""

_Comparison: TypeAlias = Callable[[Any, Any], bool]
"""Of a field's value, or `_MISSING`, with an operand."""

MAX_DEPTH = 100
"""Most levels of conditions within conditions."""

_MISSING = object()

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
        InvalidRequestError: If the filter is not a map, names an unknown operator, or gives one
            what it cannot take.
    """
    try:
        conditions = msgspec.msgpack.decode(encoded, type=dict[str, Any])
        _check(conditions, whole=True)
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
            return _whole_matches(_fields.decode(data), conditions)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # not a map with text keys, not plain data, or nested too deeply

    return matches_value


def _check(condition: object, *, whole: bool = False, depth: int = 0) -> None:
    """Refuse what cannot be decided.

    Args:
        condition: A filter, or a part of one.
        whole: Whether it is about the whole value, not about a field.
        depth: Conditions that it is within.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"filter is nested too deeply: at most {MAX_DEPTH} levels")
    if isinstance(condition, dict):
        for name, operand in condition.items():
            if _is_operator(name):
                for inner in _conditions_of(name, operand, whole=whole):
                    _check(inner, whole=whole, depth=depth + 1)
            else:
                _check(operand, depth=depth + 1)
    elif isinstance(condition, list):
        for inner in condition:
            _check(inner, depth=depth + 1)


def _conditions_of(name: str, operand: Any, *, whole: bool) -> list[Any]:
    """The conditions in an operator's operand; that of a comparison is a plain value."""
    if name not in _OPERATORS:
        known = ", ".join(_OPERATORS)
        raise InvalidRequestError(f"unknown filter operator {name!r}; known: {known}")
    if whole and name not in _CONNECTIVES:
        raise InvalidRequestError(
            f"filter operator {name} compares one field: {{'field': {{{name!r}: ...}}}}"
        )
    takes, is_taken = _OPERANDS.get(name, _ANYTHING)
    if not is_taken(operand):
        raise InvalidRequestError(f"filter operator {name} takes {takes}")
    if name == "$not":
        return [operand]
    return operand if name in _CONNECTIVES else []


def _whole_matches(fields: dict[str, msgspec.Raw], conditions: dict[str, Any]) -> bool:
    for name, condition in conditions.items():
        if name == "$and":
            matches = all(_whole_matches(fields, inner) for inner in condition)
        elif name == "$or":
            matches = any(_whole_matches(fields, inner) for inner in condition)
        elif name == "$not":
            matches = not _whole_matches(fields, condition)
        else:
            value = _any.decode(fields[name]) if name in fields else _MISSING
            matches = _matches(value, condition)
        if not matches:
            return False
    return True


def _matches(value: object, condition: object) -> bool:
    if isinstance(condition, dict):
        if any(map(_is_operator, condition)):
            return all(_compare(value, name, operand) for name, operand in condition.items())
        return isinstance(value, dict) and all(
            _matches(value.get(k, _MISSING), inner) for k, inner in condition.items()
        )
    if isinstance(condition, list):
        return (
            isinstance(value, list)
            and len(value) == len(condition)
            and all(map(_matches, value, condition))
        )
    return _equal(value, condition)


def _compare(value: object, name: str, operand: Any) -> bool:
    compare = _OPERATORS.get(name)
    if compare is None:  # a plain field beside an operator: {"$gt": 1, "a": 2}
        return isinstance(value, dict) and _matches(value.get(name, _MISSING), operand)
    return compare(value, operand)


def _ordered(compare: Callable[[Any, Any], bool]) -> _Comparison:
    def matches(value: object, operand: object) -> bool:
        comparable = (_is_number(value) and _is_number(operand)) or (
            isinstance(value, str) and isinstance(operand, str)
        )
        return comparable and compare(value, operand)

    return matches


def _is_among(value: object, operands: list[Any]) -> bool:
    found = [value, *value] if isinstance(value, list) else [value]
    return any(_equal(each, operand) for each in found for operand in operands)


def _equal(value: object, operand: object) -> bool:
    if value is _MISSING:
        return operand is None
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


def _are_conditions(operand: object) -> bool:
    return (
        isinstance(operand, list)
        and len(operand) > 0
        and all(isinstance(condition, dict) for condition in operand)
    )


def _are_values(operand: object) -> bool:
    return isinstance(operand, list) and not any(
        isinstance(value, dict) and any(map(_is_operator, value)) for value in operand
    )


_OPERATORS: Mapping[str, _Comparison] = {
    "$eq": _equal,
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
    "$ne": lambda value, operand: not _equal(value, operand),
    "$in": _is_among,
    "$nin": lambda value, operand: not _is_among(value, operand),
    "$exists": lambda value, operand: (value is not _MISSING) is operand,
    "$and": lambda value, operand: all(_matches(value, inner) for inner in operand),
    "$or": lambda value, operand: any(_matches(value, inner) for inner in operand),
    "$not": lambda value, operand: not _matches(value, operand),
}
_CONNECTIVES = ("$and", "$or", "$not")

_ANYTHING: tuple[str, Callable[[Any], bool]] = ("anything", lambda _: True)
_OPERANDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "$in": ("a list of values, and no conditions: use $or for these", _are_values),
    "$nin": ("a list of values, and no conditions: use $and of $not for these", _are_values),
    "$exists": ("True or False", lambda operand: isinstance(operand, bool)),
    "$and": ("a list of conditions, at least one", _are_conditions),
    "$or": ("a list of conditions, at least one", _are_conditions),
    "$not": ("a condition", lambda operand: isinstance(operand, dict) and len(operand) > 0),
}
"""Operands of the operators that do not take every value."""
