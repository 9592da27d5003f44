"""Items of the engine against a model that is slow, plain and obviously right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    GetItem,
    ListNamespaces,
    Match,
    PutItem,
    SearchItems,
)
from flowgentic_actors.engine.model import Blob
from flowgentic_actors.engine.replies import Conflict, ItemPage, ItemReply, ItemRow, NamespacePage
from flowgentic_actors.engine.shard import ShardSize
from tests.conftest import amounts
from tests.support.shard_machine import PROFILE, ShardMachine

# every value can go cold, however small
pytestmark = pytest.mark.usefixtures("no_value_is_small")

_encoder = msgspec.msgpack.Encoder()


LABELS = ("a", "a\0", "b")
KEYS = ("", "k", "k\0", "l")
VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"n": 1, "text": "b"},
    {"n": 2.5, "text": "B"},
    {"n": True},
    {"n": None, "tags": ["x", 1]},
    {"n": "2", "deep": {"er": {"n": 3}, "other": 1}},
)


def _number(value: object) -> float | None:
    return value if type(value) in (int, float) else None  # type: ignore[return-value]


FILTERS: tuple[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]], ...] = (
    ({"n": 1}, lambda v: type(v.get("n")) is int and v["n"] == 1),
    ({"n": None}, lambda v: v.get("n") is None),
    ({"n": {"$ne": 1}}, lambda v: type(v.get("n")) is not int or v["n"] != 1),
    ({"n": {"$gte": 1, "$lt": 2.5}}, lambda v: 1 <= (_number(v.get("n")) or 0) < 2.5),
    ({"text": {"$gt": "B"}}, lambda v: "text" in v and v["text"] > "B"),
    ({"deep": {"er": {"n": 3}}}, lambda v: "deep" in v),
    ({"tags": ["x", {"$gt": 0}], "n": None}, lambda v: "tags" in v),
    ({"deep": {"other": {"$ne": 1}}}, lambda v: False),
)

labels = st.sampled_from(LABELS)
paths = st.lists(labels, max_size=2).map(tuple)
keys = st.sampled_from(KEYS)


class Item(NamedTuple):
    value: dict[str, Any]
    created_us: int
    updated_us: int
    expires_us: int  # 0 for never
    ttl_us: int


def _encoded(value: dict[str, Any]) -> Blob:
    return "msgpack", _encoder.encode(value)


def _begins(namespace: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(namespace) >= len(path) and all(
        wanted in ("*", label) for wanted, label in zip(path, namespace, strict=False)
    )


class ItemsMachine(ShardMachine):
    def __init__(self) -> None:
        super().__init__()
        self.items: dict[tuple[tuple[str, ...], str], Item] = {}

    # ------------------------------------------------------------------ writes

    def living(self) -> dict[tuple[tuple[str, ...], str], Item]:
        return {
            place: item
            for place, item in self.items.items()
            if not item.expires_us or item.expires_us > self.now_us
        }

    @rule(
        puts=st.lists(
            st.tuples(
                paths,
                keys,
                st.sampled_from(VALUES),
                st.integers(1, 5),
                st.sampled_from((0, 0, 1, 8, 30)),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def put(self, puts: list[tuple[tuple[str, ...], str, dict[str, Any], int, int]]) -> None:
        for namespace, key, value, elapsed, ttl_us in puts:
            self.now_us += elapsed
            old = self.living().get((namespace, key))
            self.write(PutItem(namespace, key, _encoded(value), ttl_us), changes=True)
            created = old.created_us if old else self.now_us
            expires = self.now_us + ttl_us if ttl_us else 0
            self.items[namespace, key] = Item(value, created, self.now_us, expires, ttl_us)

    @rule(namespace=paths, key=keys, deletes=st.booleans())
    def write_the_version_that_is_not_there(
        self, namespace: tuple[str, ...], key: str, deletes: bool
    ) -> None:
        self.now_us += 1
        item = self.living().get((namespace, key))
        found = item.updated_us if item else 0
        for expected in {0, found + 1, found - 1} - {found}:
            command: Command = PutItem(namespace, key, _encoded({}), expected=expected)
            if deletes:
                command = DeleteItem(namespace, key, expected)
            assert self.ask(command) == Conflict(found)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def put_the_version_that_is_there(self, data: st.DataObject) -> None:
        self.now_us += 1
        place = data.draw(st.sampled_from(sorted(self.items)))
        old = self.living().get(place)
        expected = old.updated_us if old else 0
        self.write(PutItem(*place, _encoded({"a": 1}), 0, expected), changes=True)
        created = old.created_us if old else self.now_us
        self.items[place] = Item({"a": 1}, created, self.now_us, 0, 0)

    @rule(namespace=paths, key=keys)
    def delete_any(self, namespace: tuple[str, ...], key: str) -> None:
        self.write(DeleteItem(namespace, key), changes=(namespace, key) in self.items)
        self.items.pop((namespace, key), None)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def delete_known(self, data: st.DataObject) -> None:
        self.delete_any(*data.draw(st.sampled_from(sorted(self.items))))

    @rule(elapsed=st.integers(1, 20), sweeps=st.booleans())
    def pass_time(self, elapsed: int, sweeps: bool) -> None:
        self.now_us += elapsed
        if sweeps:
            self.sweep()
            self.items = self.living()
            due = [item.expires_us for item in self.items.values() if item.expires_us]
            next_us = self.shard.next_expiry_us()
            assert (next_us is None) == (not due)
            assert next_us is None or next_us <= min(due)

    def refreshed(self, places: Iterable[tuple[tuple[str, ...], str]]) -> None:
        for place in places:
            item = self.items[place]
            if item.expires_us:
                later = max(item.expires_us, self.now_us + item.ttl_us)
                self.items[place] = item._replace(expires_us=later)

    # ------------------------------------------------------------------ reads

    @rule(namespace=paths, key=keys, refresh=st.booleans(), expired=st.booleans())
    def get(self, namespace: tuple[str, ...], key: str, refresh: bool, expired: bool) -> None:
        there = (namespace, key) in (self.items if expired else self.living())
        row = self.row(namespace, key) if there else None
        assert self.ask(GetItem(namespace, key, refresh, expired)) == ItemReply(row)
        if there and refresh:
            self.refreshed([(namespace, key)])

    @rule(
        prefix=paths,
        chosen=st.none() | st.sampled_from(FILTERS),
        limit=st.integers(0, 10),
        offset=st.integers(0, 3),
        page=st.integers(1, 3),
        refresh=st.booleans(),
    )
    def search(
        self,
        prefix: tuple[str, ...],
        chosen: tuple[dict[str, Any], Callable[[dict[str, Any]], bool]] | None,
        limit: int,
        offset: int,
        page: int,
        refresh: bool = False,
    ) -> None:
        expected = [
            self.row(*place)
            for place in sorted(self.living())
            if place[0][: len(prefix)] == prefix
            and (chosen is None or chosen[1](self.items[place].value))
        ][offset:][:limit]
        encoded = _encoder.encode(chosen[0]) if chosen else b""
        query = SearchItems(prefix, encoded, limit, offset)
        whole = self.ask(query)
        assert isinstance(whole, ItemPage)
        assert list(whole.rows) == expected

        rows: list[ItemRow] = []
        for _ in range(len(expected) // page + 1):
            answer = self.ask(replace(query, limit=min(page, limit - len(rows))))
            assert isinstance(answer, ItemPage)
            rows += answer.rows
            query = replace(query, after=answer.after, offset=query.offset - answer.skipped)
            if answer.after is None:
                break
        assert rows == expected
        if refresh:
            assert (
                self.ask(replace(query, limit=limit, offset=offset, after=None, refresh=True))
                == whole
            )
            self.refreshed((row.namespace, row.key) for row in expected)

    @rule(
        conditions=st.lists(
            st.builds(
                Match,
                kind=st.sampled_from(("prefix", "suffix")),
                path=st.lists(labels | st.just("*"), max_size=3).map(tuple),
            ),
            max_size=2,
        ),
        max_depth=st.none() | st.integers(1, 3),
        limit=st.integers(0, 10),
        offset=st.integers(0, 3),
    )
    def list_namespaces(
        self, conditions: list[Match], max_depth: int | None, limit: int, offset: int
    ) -> None:
        found = {
            namespace[:max_depth]
            for namespace, _ in self.living()
            if all(
                _begins(namespace, c.path)
                if c.kind == "prefix"
                else _begins(namespace[::-1], c.path[::-1])
                for c in conditions
            )
        }
        expected = sorted(found)[offset:][:limit]
        query = ListNamespaces(tuple(conditions), max_depth, limit, offset)
        whole = self.ask(query)
        assert isinstance(whole, NamespacePage)
        assert list(whole.namespaces) == expected

        listed: list[tuple[str, ...]] = []
        while len(listed) < limit:
            answer = self.ask(replace(query, limit=1))
            assert isinstance(answer, NamespacePage)
            listed += answer.namespaces
            query = replace(query, after=answer.after, offset=query.offset - answer.skipped)
            if answer.after is None:
                break
        assert listed == expected

    def row(self, namespace: tuple[str, ...], key: str) -> ItemRow:
        item = self.items[namespace, key]
        return ItemRow(namespace, key, _encoded(item.value), item.created_us, item.updated_us)

    def expected_size(self) -> ShardSize:
        return ShardSize(
            threads=0,
            checkpoints=0,
            items=len(self.items),
            blob_bytes=sum(len(_encoder.encode(item.value)) for item in self.items.values()),
        )

    def questions(self) -> list[Command]:
        return [
            SearchItems((), b"", 10**6, 0, expired=True),
            SearchItems((), b"", 10**6, 0),
            ListNamespaces((), None, 10**6, 0),
        ]

    def teardown(self) -> None:
        """Search below every namespace there is, and match namespaces by many patterns."""
        for prefix in sorted({namespace for namespace, _ in self.items} | {()}):
            for chosen in (None, *FILTERS):
                self.search(prefix, chosen, limit=100, offset=0, page=2)
        for begin, end in product([(), ("*",), ("a",), ("a", "*"), ("*", "b")], repeat=2):
            conditions = [Match("suffix", end), Match("prefix", begin)]
            for max_depth in None, 1:
                self.list_namespaces(conditions, max_depth, limit=100, offset=0)
        super().teardown()


@pytest.mark.parametrize("examples", amounts(20, 70))
def test_items_answer_like_the_model(examples: int) -> None:
    profile = settings(PROFILE, max_examples=examples)
    run_state_machine_as_test(ItemsMachine, settings=profile)
