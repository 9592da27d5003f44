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
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from flowgentic_actors.engine.limits import check_filter
from flowgentic_actors.engine.values import Value
from flowgentic_actors.errors import InvalidRequestError

FILTERABLE = "msgpack"
"""The blob type whose bytes are a msgpack map, as LangGraph's default serializer writes."""

_Test: TypeAlias = Callable[[Any], bool]
"""Of a field's value, or `_MISSING`; of a whole value, as the fields of it that a filter names."""

_MISSING = msgspec.UNSET


def compile_filter(encoded: bytes) -> Callable[[Value], bool]:
    """Make a predicate on hot values from a filter.

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
    compiler = _Compiler(of_parts)
    test = compiler.of_whole(conditions)
    fields_of = _decoder(tuple(compiler.names))

    def matches_value(value: Value) -> bool:
        if value.kind != FILTERABLE:
            raise InvalidRequestError(
                f"items serialized as {value.kind!r} cannot be filtered by their shard: search "
                "without filter=, or store them with a serializer that is not encrypted"
            )
        if of_parts:
            of_parts.clear()
        try:
            return test(fields_of(value.data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # not a map with text keys, not plain data, or nested too deeply

    return matches_value


@lru_cache(maxsize=256)  # making a type takes as long as trying a thousand candidates
def _decoder(names: tuple[str, ...]) -> Callable[[Any], Any]:
    """Make a decoder of some fields of a map, which are the attributes f0, f1, ... of its result.

    The other fields are passed over, which takes a third of the time that a dict of them takes.
    """
    attributes = [f"f{number}" for number in range(len(names))]
    fields = [(attribute, Any, _MISSING) for attribute in attributes]
    try:
        renamed = dict(zip(attributes, names, strict=True))
        return msgspec.msgpack.Decoder(msgspec.defstruct("Fields", fields, rename=renamed)).decode
    except ValueError:  # a name with a quote, say
        make = msgspec.defstruct("Fields", fields)
        decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
        return lambda data: make(*(decode(data).get(name, _MISSING) for name in names))


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
    if name not in _OPERATORS and name not in _CONNECTIVES:
        known = ", ".join((*_OPERATORS, *_CONNECTIVES))
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


class _Compiler:
    """Compiles a checked filter into a test of each candidate.

    Args:
        of_parts: See `_Among`.

    Attributes:
        names: The fields that the filter names, in the order of the decoder's attributes.
    """

    def __init__(self, of_parts: dict[int, frozenset[Any]]) -> None:
        self._of_parts = of_parts
        self.names: dict[str, Callable[[Any], Any]] = {}

    def of_whole(self, conditions: dict[str, Any]) -> _Test:
        """Compile conditions about the whole value."""
        return _every([self._of_part(*each) for each in conditions.items()])

    def _of_part(self, name: str, operand: Any) -> _Test:
        if name in _CONNECTIVES:
            return _connected(name, operand, self.of_whole)
        attribute = operator.attrgetter(f"f{len(self.names)}")
        get, test = self.names.setdefault(name, attribute), self.of_field(operand)
        return lambda fields: test(get(fields))

    def of_field(self, condition: Any) -> _Test:
        """Compile a condition about one field."""
        if isinstance(condition, list):
            each = [self.of_field(inner) for inner in condition]
            return lambda value: (
                isinstance(value, list)
                and len(value) == len(each)
                and all(test(part) for test, part in zip(each, value, strict=True))
            )
        if not isinstance(condition, dict):
            return _equal_to(condition)
        if any(map(_is_operator, condition)):
            return _every([self._comparison(*each) for each in condition.items()])
        parts = {name: self.of_field(inner) for name, inner in condition.items()}
        return lambda value: (
            isinstance(value, dict)
            and all(test(value.get(name, _MISSING)) for name, test in parts.items())
        )

    def _comparison(self, name: Any, operand: Any) -> _Test:
        if not _is_operator(name):  # a plain field beside an operator: {"$gt": 1, "a": 2}
            return self.of_field({name: operand})
        if name in _CONNECTIVES:
            return _connected(name, operand, self.of_field)
        if name in ("$in", "$nin"):
            operand = _Among(operand, self._of_parts)
        return _OPERATORS[name](operand)


def _connected(name: str, operand: Any, compiled: Callable[[Any], _Test]) -> _Test:
    if name == "$not":
        return _not(compiled(operand))
    tests = [compiled(each) for each in operand]
    return _every(tests) if name == "$and" else _some(tests)


def _not(test: _Test) -> _Test:
    return lambda value: not test(value)


def _every(tests: list[_Test]) -> _Test:
    if len(tests) == 1:
        return tests[0]

    def matches(value: object) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs as much again
            if not test(value):
                return False
        return True

    return matches


def _some(tests: list[_Test]) -> _Test:
    def matches(value: object) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs as much again
            if test(value):
                return True
        return False

    return matches


def _equal_to(operand: Any) -> _Test:
    # True == 1 in Python; in the JSON that users think of they are different values.
    if operand is None:
        return lambda value: value is None or value is _MISSING
    if isinstance(operand, bool):
        return lambda value: value is operand
    if isinstance(operand, int | float):
        return lambda value: value == operand and type(value) is not bool
    if isinstance(operand, list | dict):
        return lambda value: _equal(value, operand)
    return lambda value: bool(value == operand)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], _Test]:
    def compared_with(operand: Any) -> _Test:
        kinds = (int, float) if _is_number(operand) else (str,)
        if type(operand) not in kinds:
            return lambda _: False
        return lambda value: type(value) in kinds and compare(value, operand)

    return compared_with


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


_OPERATORS: Mapping[str, Callable[[Any], _Test]] = {
    "$eq": _equal_to,
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
    "$ne": lambda operand: _not(_equal_to(operand)),
    "$in": lambda operand: operand.has,
    "$nin": lambda operand: _not(operand.has),
    "$exists": lambda operand: lambda value: (value is not _MISSING) is operand,
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
