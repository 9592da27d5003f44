"""Filters of searches: rules of LangGraph's stores, one test each."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors.engine import Shard, filters
from flowgentic_actors.engine.commands import PutItem, SearchItems
from flowgentic_actors.engine.limits import MAX_LEVELS
from flowgentic_actors.errors import InvalidRequestError
from tests.support.engine_commands import MANY, blob, keys, pack, put_item, search, work


@pytest.mark.parametrize(
    ("value", "filter_", "expected"),
    [
        # equality, plain and spelt out
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": {"$eq": 1}}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 3}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {}, True),
        # any text is a field's name
        ({'a"b': 1, "": 2, "f0": 3}, {'a"b': 1, "": 2, "f0": 3}, True),
        ({'a"b': 1, "f1": 2}, {"f1": 2, 'a"b': 2}, False),
        ({"a\n": 1}, {"a\n": None}, False),
        ({"b": 1}, {"a\n": None}, True),
        # $ne
        ({"a": 1}, {"a": {"$ne": 1}}, False),
        ({"a": 1}, {"a": {"$ne": 2}}, True),
        ({"a": 1}, {"a": {"$ne": "1"}}, True),
        # order, of numbers and of text
        ({"a": 10}, {"a": {"$gt": 9}}, True),
        ({"a": 9}, {"a": {"$gt": 9}}, False),
        ({"a": 9}, {"a": {"$gte": 9}}, True),
        ({"a": 8.5}, {"a": {"$gte": 9}}, False),
        ({"a": 8.5}, {"a": {"$lt": 9}}, True),
        ({"a": 9}, {"a": {"$lt": 9}}, False),
        ({"a": 9}, {"a": {"$lte": 9.0}}, True),
        ({"a": 10}, {"a": {"$lte": 9}}, False),
        ({"a": "10"}, {"a": {"$gt": "9"}}, False),
        ({"a": "2026-02-01"}, {"a": {"$gte": "2026-01-31"}}, True),
        ({"a": 5}, {"a": {"$gt": 1, "$lt": 9}}, True),
        ({"a": 9}, {"a": {"$gt": 1, "$lt": 9}}, False),
        # order between different types never matches, and never raises
        ({"a": "10"}, {"a": {"$gt": 9}}, False),
        ({"a": 10}, {"a": {"$gt": "9"}}, False),
        ({"a": None}, {"a": {"$lt": 9}}, False),
        ({"a": [1]}, {"a": {"$lt": [2]}}, False),
        ({"a": {"b": 1}}, {"a": {"$gt": 0}}, False),
        # a missing field
        ({}, {"a": 1}, False),
        ({}, {"a": {"$ne": 1}}, True),
        ({}, {"a": {"$gt": 1}}, False),
        ({}, {"a": {"$lte": 1}}, False),
        ({}, {"a": {"b": 1}}, False),
        ({}, {"a": None}, True),
        # truth values are not numbers
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": True}, {"a": {"$ne": 1}}, True),
        ({"a": True}, {"a": {"$gt": 0}}, False),
        ({"a": 1}, {"a": {"$gte": False}}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": [True]}, {"a": {"$eq": [1]}}, False),
        ({"a": {"b": True}}, {"a": {"$eq": {"b": 1}}}, False),
        # nested maps match partly, $eq wholly
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 2}}, False),
        ({"a": {"b": {"c": 5}}}, {"a": {"b": {"c": {"$gt": 4}}}}, True),
        ({"a": {"b": {"c": 5}}}, {"a": {"b": {"c": {"$gt": 5}}}}, False),
        ({"a": {"c": 2}}, {"a": {"b": {"$ne": 1}}}, True),
        ({"a": 5}, {"a": {"b": 5}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"$eq": {"b": 1}}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"$eq": {"c": 2, "b": 1}}}, True),
        ({"a": {"$ref": 1}}, {"a": {"$eq": {"$ref": 1}}}, True),
        ({"a": {1: "x"}}, {"a": {1: "x"}}, True),
        ({"a": {1: "x"}}, {"a": {1: "y"}}, False),
        # lists match element by element
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [1, 2]}, {"a": [1, {"$gt": 1}]}, True),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": "xy"}, {"a": ["x", "y"]}, False),
        ({"a": [1, 2]}, {"a": 1}, False),
        # $in and $nin, of the value or of what is in it
        ({"a": 2}, {"a": {"$in": [1, 2.0]}}, True),
        ({"a": 3}, {"a": {"$in": [1, 2]}}, False),
        ({"a": 3}, {"a": {"$in": []}}, False),
        ({"a": True}, {"a": {"$in": [1]}}, False),
        ({"a": ["x", "y"]}, {"a": {"$in": ["y", "z"]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$in": [["x", "y"]]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$nin": ["z"]}}, True),
        ({"a": ["x", "y"]}, {"a": {"$nin": ["y"]}}, False),
        ({"a": 3}, {"a": {"$nin": [1, 2], "$gt": 2}}, True),
        ({}, {"a": {"$nin": [1]}}, True),
        ({}, {"a": {"$in": [1, None]}}, True),
        # $exists
        ({"a": None}, {"a": {"$exists": True}}, True),
        ({}, {"a": {"$exists": True}}, False),
        ({}, {"a": {"$exists": False}}, True),
        ({"a": {"b": None}}, {"a": {"b": {"$exists": True}}}, True),
        ({"a": {}}, {"a": {"b": {"$exists": False}}}, True),
        ({"a": 1}, {"a": {"b": {"$exists": False}}}, False),  # no map, as any nested condition
        # $and, $or and $not, of the whole value and of a field
        ({"a": 1, "b": 2}, {"$or": [{"a": 2}, {"b": 2}]}, True),
        ({"a": 1, "b": 2}, {"$or": [{"a": 2}, {"b": 1}]}, False),
        ({"a": 1, "b": 2}, {"$and": [{"a": 1}, {"b": {"$gt": 1}}], "b": {"$lt": 3}}, True),
        ({"a": 1, "b": 2}, {"$and": [{"a": 1}, {"b": {"$gt": 2}}]}, False),
        ({"a": 1, "b": 2}, {"$not": {"a": 1, "b": 2}}, False),
        ({"a": 1, "b": 3}, {"$not": {"a": 1, "b": 2}}, True),
        ({"a": 1}, {"$not": {"$or": [{"a": 2}, {"$and": [{"a": 3}]}]}}, True),
        ({"a": 5}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": 6}, {"a": {"$not": {"$gt": 5}}}, False),
        ({}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": "x"}, {"a": {"$not": {"$gt": 5}}}, True),
        ({"a": 7}, {"a": {"$or": [{"$lt": 2}, {"$and": [{"$gt": 5}, {"$ne": 6}]}]}}, True),
        ({"a": 6}, {"a": {"$or": [{"$lt": 2}, {"$and": [{"$gt": 5}, {"$ne": 6}]}]}}, False),
        ({"a": {"b": 1}}, {"a": {"$or": [{"b": 2}, {"b": {"$in": [1]}}]}}, True),
        ({"a": [{"b": 1}, 5]}, {"a": [{"$not": {"b": 2}}, {"$in": [5]}]}, True),
    ],
)
def test_filters_match_as_documented(
    shard: Shard, value: dict[str, Any], filter_: dict[str, Any], expected: bool
) -> None:
    put_item(shard, ("n",), "k", value)
    assert (keys(search(shard, (), filter_)) == "k") is expected


@pytest.mark.parametrize(
    "filter_",
    [
        {"a": {"$regex": "x"}},
        {"a": {"b": {"$regex": "x"}}},
        {"a": [{"$regex": "x"}]},
        {"$regex": "x"},
        {"$or": [{"a": 1}, {"$regex": "x"}]},
        {"$and": [{"a": {"$not": {"$regex": "x"}}}]},
        {"a": {"$or": [{"$gt": 1}, {"b": {"$regex": "x"}}]}},
    ],
)
def test_an_unknown_operator_is_refused_and_named(shard: Shard, filter_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"'\$regex'; known: \$eq, \$gt, \$gte, \$lt"):
        search(shard, (), filter_)


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"$and": []}, r"\$and takes a list of conditions, at least one"),
        ({"$or": {"a": 1}}, r"\$or takes a list of conditions"),
        ({"$or": [1]}, r"\$or takes a list of conditions"),
        ({"a": {"$and": [1]}}, r"\$and takes a list of conditions"),
        ({"$not": 1}, r"\$not takes a condition"),
        ({"a": {"$not": {}}}, r"\$not takes a condition"),
        ({"a": {"$in": 1}}, r"\$in takes a list of values"),
        ({"a": {"$nin": "abc"}}, r"\$nin takes a list of values"),
        ({"a": {"$in": [{"$gt": 1}]}}, r"\$in takes a list of values, and no conditions"),
        ({"a": {"$exists": 1}}, r"\$exists takes True or False"),
        ({"$gt": 1}, r"\$gt compares one field: \{'field': \{'\$gt': \.\.\.\}\}"),
        ({"$or": [{"$eq": 1}]}, r"\$eq compares one field"),
    ],
)
def test_an_operator_with_an_operand_that_it_cannot_take_is_refused(
    shard: Shard, filter_: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"filter operator {message}"):
        search(shard, (), filter_)


@pytest.mark.parametrize("value", [{f"k{n}": n for n in range(5000)}, [[*range(5000)]]])
def test_what_many_conditions_look_into_is_gone_through_once(shard: Shard, value: Any) -> None:
    put_item(shard, ("n",), "k", {"f": value})
    one, many = (
        pack({"$and": [{"f": {"$nin": [f"no {n}"]}} for n in range(count)]}) for count in (1, 100)
    )
    least, most = (work(shard, SearchItems((), each, MANY, 0)) for each in (one, many))
    assert most < 5 * least


@pytest.mark.parametrize("operator", ["$in", "$nin"])
@pytest.mark.parametrize("count", [0, 40], ids=["short", "long"])
def test_what_a_list_is_compared_with_is_found_as_by_equality(
    shard: Shard, operator: str, count: int
) -> None:
    plain: list[Any] = [1, True, 1.0, 0, False, None, "1", "", b"1"]
    operands = [*plain, [1], [True], {"a": 1}, {"a": True}, [[]]]
    values = [*operands, *([*[f"filler {n}" for n in range(count)], each] for each in operands)]
    for number, value in enumerate(values):
        put_item(shard, ("n",), f"{number:02}", {"x": value})
    for operand in operands:
        equal = [
            any(filters._equal(each, operand) for each in [v, *(v if type(v) is list else [])])
            for v in values
        ]
        expected = [
            f"{n:02}" for n, is_equal in enumerate(equal) if is_equal == (operator == "$in")
        ]
        found = keys(search(shard, ("n",), {"x": {operator: ["no", operand]}})).split()
        assert found == expected


@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ({f"f{n}": {"$ne": 1} for n in range(300)}, 300),
        ({"$or": [{"a": n} for n in range(257)]}, 257),
        ({"$and": [{"a": 1, "b": {"c": 1, "d": {"$gt": 1, "$lt": 2}}}] * 100}, 400),
        ({"a": {"$in": [[n] for n in range(300)]}}, 300),
        ({"a": [{} for n in range(300)]}, 300),
    ],
)
def test_a_filter_with_too_many_conditions_is_refused(
    shard: Shard, filter_: dict[str, Any], count: int
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^filter: {count} conditions, at most 256$"):
        search(shard, (), filter_)


def test_a_filter_may_name_as_many_values_as_fit(shard: Shard) -> None:
    put_item(shard, ("n",), "k", {"id": "id 5000", "ids": list(range(1000))})
    ids = [f"id {n}" for n in range(5001)]
    assert keys(search(shard, (), {"id": {"$in": ids}, "ids": list(range(1000))})) == "k"
    assert keys(search(shard, (), {"$or": [{"id": each} for each in ids[-256:]]})) == "k"


@pytest.mark.parametrize("name", ["$not", "$and", "a"])
@pytest.mark.parametrize("depth", [16, 17, 30, 31, 32, 400])
def test_deep_filters_are_decided_rightly_or_refused(shard: Shard, name: str, depth: int) -> None:
    put_item(shard, ("n",), "k", {"x": 1})
    filter_: Any = {"x": {"$eq": 1}}
    for _ in range(depth - 1):
        filter_ = {name: [filter_] if name == "$and" else filter_}
    levels = 2 * depth if name == "$and" else depth + 1  # the innermost condition is two maps
    if levels > MAX_LEVELS:
        words = f"filter: more than {MAX_LEVELS} levels of maps and lists"
        with pytest.raises(InvalidRequestError, match=words):
            search(shard, (), filter_)
        return
    expected = {"a": "", "$and": "k", "$not": "k" if depth % 2 else ""}[name]
    assert keys(search(shard, (), filter_)) == expected


@pytest.mark.parametrize(
    "encoded",
    [pack([1]), pack("a"), pack({1: 2}), b"\xc1", pack({"a": 1})[:-1]],
    ids=["list", "text", "number as field", "invalid", "cut off"],
)
def test_a_filter_that_is_no_map_of_fields_is_refused(shard: Shard, encoded: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="filter is not a map"):
        shard.execute(SearchItems((), encoded, 1, 0), 0)


def test_a_bottomless_filter_is_refused(shard: Shard) -> None:
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        shard.execute(SearchItems((), b"\x81\xa1a" * 20_000 + b"\x01", 1, 0), 0)


def test_an_encrypted_item_cannot_be_filtered_and_the_error_says_what_to_do(shard: Shard) -> None:
    shard.execute(PutItem(("n",), "k", ("msgpack+aes", b"secret")), 0)
    with pytest.raises(InvalidRequestError, match=r"'msgpack\+aes' cannot be filtered.*filter="):
        search(shard, ("n",), {"a": 1})
    assert keys(search(shard, ("n",))) == "k"
    assert keys(search(shard, ("other",), {"a": 1})) == ""


def test_an_item_that_is_no_plain_map_does_not_match_and_hides_no_other(shard: Shard) -> None:
    strange = {
        "bottomless": b"\x81\xa1a" * 20_000 + b"\x01",
        "cut off": pack({"a": 1})[:-1],
        "list": pack(["a"]),
        "number as field": pack({1: 1}),
    }
    for key, data in strange.items():
        shard.execute(PutItem(("n",), key, blob(data)), 0)
    put_item(shard, ("n",), "plain", {"a": 1})
    assert keys(search(shard, (), {"a": 1})) == "plain"


def test_values_of_langgraphs_serializer_can_be_filtered(shard: Shard) -> None:
    value = {"text": "ü", "n": 2, "tags": ("x", "y"), "ids": {1, 2}, "map": {3: None}}
    shard.execute(PutItem(("n",), "k", JsonPlusSerializer().dumps_typed(value)), 0)
    assert keys(search(shard, (), {"text": "ü", "n": {"$gt": 1}, "map": {3: None}})) == "k"
    assert keys(search(shard, (), {"ids": {"$ne": 1}, "tags": {"$ne": None}})) == "k"
    assert keys(search(shard, (), {"ids": {"$gt": 0}})) == ""


_plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b", "$eq", "$ne", "$gt", "$lte"]) | st.integers(0, 2),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, database=None)
@given(
    data=st.binary(max_size=20) | st.dictionaries(st.sampled_from("ab"), _plain).map(pack),
    filter_=st.dictionaries(st.sampled_from("ab"), _plain),
)
def test_no_value_and_no_filter_raise_anything_else(data: bytes, filter_: dict[str, Any]) -> None:
    shard = Shard()
    shard.execute(PutItem(("n",), "k", blob(data)), 0)
    with suppress(InvalidRequestError):
        search(shard, (), filter_)


@settings(max_examples=200, deadline=None, database=None)
@given(value=_plain, other=_plain)
def test_eq_matches_what_was_stored_and_ne_is_its_opposite(value: Any, other: Any) -> None:
    shard = Shard()
    put_item(shard, ("n",), "k", {"a": value})
    assert keys(search(shard, (), {"a": {"$eq": value}})) == "k"
    equal = keys(search(shard, (), {"a": {"$eq": other}})) == "k"
    unequal = keys(search(shard, (), {"a": {"$ne": other}})) == "k"
    assert equal != unequal
