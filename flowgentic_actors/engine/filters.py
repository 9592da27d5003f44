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

from flowgentic_actors.engine.limits import check_filter
from flowgentic_actors.errors import InvalidRequestError

FILTERABLE = "msgpack"
"""The blob type whose bytes are a msgpack map, as LangGraph's default serializer writes."""

_Comparison: TypeAlias = Callable[[Any, Any], bool]
"""Of a field's value, or `_MISSING`, with an operand."""

_MISSING = object()

_Raw = msgspec.Raw
# Only the top level is decoded for every candidate; fields are decoded when a filter names them.
_fields: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"filter is not a map of field to condition: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError("filter is nested too deeply") from error
    check_filter(conditions)
    _check(conditions, whole=True)
    of_parts: dict[int, frozenset[Any]] = {}
    conditions = _Preparation(of_parts).of_whole(conditions)

    def matches_value(kind: str, data: bytes) -> bool:
        if kind != FILTERABLE:
            raise InvalidRequestError(
                f"items serialized as {kind!r} cannot be filtered by their shard: search without "
                "filter=, or store them with a serializer that is not encrypted"
            )
        if of_parts:
            of_parts.clear()
        try:
            return _whole_matches(_fields.decode(data), conditions)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # not a map with text keys, not plain data, or nested too deeply

    return matches_value


def _check(condition: object, *, whole: bool = False) -> None:
    """Check a filter: refuse conditions that cannot be decided.

    Args:
        condition: A filter, or a part of one.
        whole: Whether it is about the whole value, not about a field.
    """
    if isinstance(condition, dict):
        for name, operand in condition.items():
            if _is_operator(name):
                for inner in _conditions_of(name, operand, whole=whole):
                    _check(inner, whole=whole)
            else:
                _check(operand)
    elif isinstance(condition, list):
        for inner in condition:
            _check(inner)


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


def _whole_matches(fields: dict[str, Any], conditions: dict[str, Any]) -> bool:
    for name, condition in conditions.items():
        if name == "$and":
            matches = all(_whole_matches(fields, inner) for inner in condition)
        elif name == "$or":
            matches = any(_whole_matches(fields, inner) for inner in condition)
        elif name == "$not":
            matches = not _whole_matches(fields, condition)
        else:
            value = fields.get(name, _MISSING)
            if type(value) is _Raw:
                value = fields[name] = _any.decode(value)  # the next condition has it decoded
            matches = _matches(value, condition)
        if not matches:
            return False
    return True


def _matches(value: object, condition: object) -> bool:
    if type(condition) is _Comparisons:
        for compare, operand in condition:  # noqa: SIM110 - a generator costs as much again
            if not compare(value, operand):
                return False
        return True
    if isinstance(condition, dict):
        return isinstance(value, dict) and all(
            _matches(value.get(k, _MISSING), inner) for k, inner in condition.items()
        )
    return (
        isinstance(condition, list)
        and isinstance(value, list)
        and len(value) == len(condition)
        and all(map(_matches, value, condition))
    )


def _ordered(compare: Callable[[Any, Any], bool]) -> _Comparison:
    def matches(value: object, operand: object) -> bool:
        comparable = (_is_number(value) and _is_number(operand)) or (
            isinstance(value, str) and isinstance(operand, str)
        )
        return comparable and compare(value, operand)

    return matches


class _Among:
    """The operand of `$in` and `$nin`: looking a value up takes no longer for many operands.

    Args:
        operands: The values.
        of_parts: What the present candidate's lists and maps are looked up by, by their ids: each
            is gone through once, however many conditions look into it. Shared by all conditions of
            a filter.
    """

    __slots__ = ("_keys", "_of_parts")

    def __init__(self, operands: list[Any], of_parts: dict[int, frozenset[Any]]) -> None:
        self._keys = frozenset(map(_key, operands))
        self._of_parts = of_parts

    def has(self, value: object) -> bool:
        if type(value) is not list and type(value) is not dict:
            return _key(value) in self._keys
        found = self._of_parts.get(id(value))
        if found is None:
            found = self._of_parts[id(value)] = _keys_of(value)
        return not self._keys.isdisjoint(found)


def _keys_of(value: list[Any] | dict[Any, Any]) -> frozenset[Any]:
    """The lookup keys of a list or map, and of the elements of a list."""
    if isinstance(value, dict):
        return frozenset((_key(value),))
    elements = [*map(_key, value)]
    return frozenset(((list, tuple(elements)), *elements))


def _key(value: Any) -> Any:
    """A hashable key that is equal for values which `_equal` calls equal."""
    kind = type(value)
    if kind is str or kind is int or kind is float:
        return value
    if kind is bool or kind is msgspec.msgpack.Ext:
        return kind, value if kind is bool else (value.code, bytes(value.data))
    if kind is list:
        return kind, tuple(map(_key, value))
    if kind is dict:
        return kind, frozenset((name, _key(each)) for name, each in value.items())
    return None if value is _MISSING else value


class _Comparisons(list[tuple[_Comparison, Any]]):
    """The comparisons of a field in a condition that has operators."""


class _Preparation:
    """Compiles a checked filter into the form that is tried on each candidate.

    Args:
        of_parts: See `_Among`.
    """

    def __init__(self, of_parts: dict[int, frozenset[Any]]) -> None:
        self._of_parts = of_parts

    def of_whole(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """Compile conditions about the whole value."""
        prepared: dict[str, Any] = {}
        for name, operand in conditions.items():
            if name == "$not":
                prepared[name] = self.of_whole(operand)
            elif name in _CONNECTIVES:
                prepared[name] = [self.of_whole(each) for each in operand]
            else:
                prepared[name] = self.of_field(operand)
        return prepared

    def of_field(self, condition: Any) -> Any:
        """Compile a condition about one field."""
        if isinstance(condition, list):
            return [self.of_field(each) for each in condition]
        if not isinstance(condition, dict):
            return _Comparisons([(_equal_plain, condition)])
        if any(map(_is_operator, condition)):
            return _Comparisons(self._comparison(*each) for each in condition.items())
        return {name: self.of_field(inner) for name, inner in condition.items()}

    def _comparison(self, name: Any, operand: Any) -> tuple[_Comparison, Any]:
        if not _is_operator(name):  # a plain field beside an operator: {"$gt": 1, "a": 2}
            return _matches, {name: self.of_field(operand)}
        if name in ("$in", "$nin"):
            operand = _Among(operand, self._of_parts)
        elif name in _CONNECTIVES:
            operand = self.of_field(operand)
        return _OPERATORS[name], operand


def _equal(value: object, operand: object) -> bool:
    if value is _MISSING:
        return operand is None
    # True == 1 in Python; in the JSON that users think of they are different values.
    if isinstance(value, dict) and isinstance(operand, dict):
        return value.keys() == operand.keys() and all(_equal(value[k], operand[k]) for k in value)
    if isinstance(value, list) and isinstance(operand, list):
        return len(value) == len(operand) and all(map(_equal, value, operand))
    return isinstance(value, bool) == isinstance(operand, bool) and value == operand


def _equal_plain(value: object, operand: object) -> bool:
    """Compare with an operand that is neither a map nor a list; otherwise as `_equal`."""
    if value is _MISSING:
        return operand is None
    return value == operand and isinstance(value, bool) == isinstance(operand, bool)


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
    "$in": lambda value, operand: operand.has(value),
    "$nin": lambda value, operand: not operand.has(value),
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
