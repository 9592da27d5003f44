"""Namespaces that are no tuples of labels, and values that are no dicts, in every mode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from pydantic import BaseModel

from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import StoreFace, unique

pytestmark = pytest.mark.anyio

CALLS: dict[str, Callable[[StoreFace, Any], Awaitable[Any]]] = {
    "put": lambda store, name: store.put(name, "key", {}),
    "get": lambda store, name: store.get(name, "key"),
    "delete": lambda store, name: store.delete(name, "key"),
    "search": lambda store, name: store.search(name),
    "prefix": lambda store, name: store.list_namespaces(prefix=name),
    "suffix": lambda store, name: store.list_namespaces(suffix=name),
    "PutOp": lambda store, name: store.batch([PutOp(name, "key", {})]),
    "GetOp": lambda store, name: store.batch([GetOp(name, "key")]),
    "SearchOp": lambda store, name: store.batch([SearchOp(name)]),
    "ListNamespacesOp": lambda store, name: store.batch(
        [ListNamespacesOp((MatchCondition("prefix", name),))]
    ),
}


async def test_a_text_is_no_namespace(store: StoreFace) -> None:
    for call in CALLS.values():
        with pytest.raises(InvalidNamespaceError, match=r"\('adam',\), with a comma"):
            await call(store, "adam")


async def test_what_holds_no_labels_is_no_namespace(store: StoreFace) -> None:
    checked_before = ("search", "prefix", "suffix")  # where LangGraph's own base class is first
    for call in [call for name, call in CALLS.items() if name not in checked_before]:
        with pytest.raises(InvalidNamespaceError, match=r"tuple of labels.*not 7"):
            await call(store, 7)


class Model(BaseModel):
    text: str = "tea"


async def test_a_value_that_is_no_dict_is_refused_in_words(store: StoreFace) -> None:
    root = unique()
    values: list[tuple[Any, str]] = [
        ("text", "str"),
        ([("text", "tea")], "list"),
        (7, "int"),
        (Model(), r"Model: give its model_dump\(\)"),
    ]
    for value, name in values:
        message = rf"value of 'key' in \('{root}',\) must be a dict, and is a {name}"
        with pytest.raises(InvalidRequestError, match=message):
            await store.put((root,), "key", value)
        with pytest.raises(InvalidRequestError, match=message):
            await store.batch([PutOp((root,), "other", {}), PutOp((root,), "key", value)])
    assert await store.search((root,)) == []


async def test_lists_of_labels_and_other_mappings_are_taken(store: StoreFace) -> None:
    root = unique()
    await store.put([root, "a"], "key", MappingProxyType({"text": "tea"}))
    assert await store.value((root, "a"), "key") == {"text": "tea"}
    assert [item.key for item in await store.search([root])] == ["key"]


async def test_what_is_no_operation_is_refused_in_words(store: StoreFace) -> None:
    for op in (None, 7, ()):
        with pytest.raises(InvalidRequestError, match="is not a store operation"):
            await store.batch([op])  # type: ignore[list-item]
