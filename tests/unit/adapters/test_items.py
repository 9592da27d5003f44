"""Items whose times are made when they are asked for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors.adapters.items import (
    VersionedItem,
    VersionedSearchItem,
    item_of,
    search_item_of,
)
from flowgentic_actors.engine.replies import ItemRow

SERDE = JsonPlusSerializer()
ROW = ItemRow(("a", "b"), "k", SERDE.dumps_typed({"n": 1}), 1_000_000, 2_000_000)
CREATED, UPDATED = (datetime.fromtimestamp(n, UTC) for n in (1, 2))

Found = VersionedItem | VersionedSearchItem
made = pytest.mark.parametrize(
    "make", [lambda: item_of(ROW, SERDE), lambda: search_item_of(ROW, 0.5, SERDE)]
)


@made
def test_times_are_those_of_the_row(make: Callable[[], Found]) -> None:
    item = make()
    assert (item.created_at, item.updated_at, item.version) == (CREATED, UPDATED, 2_000_000)
    item.created_at = UPDATED
    assert item.created_at == UPDATED
    with pytest.raises(AttributeError, match=r"'Versioned.*Item' object has no attribute 'times'"):
        _ = item.times


@made
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda item: pickle.loads(pickle.dumps(item)),
        lambda item: type(item)(**item.dict(), version=item.version),
    ],
)
def test_copies_have_them(make: Callable[[], Found], again: Callable[[Found], Found]) -> None:
    copied = again(make())
    assert copied == make()
    assert hash(copied) == hash(make())
    assert (copied.created_at, copied.version) == (CREATED, 2_000_000)
    assert repr(copied) == repr(make())
