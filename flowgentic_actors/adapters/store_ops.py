"""The operations of a store, each as a plan: questions to shards, and replies as results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
    validate_op_namespace,
)

from flowgentic_actors.adapters.facets import replaced
from flowgentic_actors.adapters.ids import text_of, whole
from flowgentic_actors.adapters.items import item_of, search_item_of
from flowgentic_actors.adapters.plan import Ask, Plan, over_shards, over_table
from flowgentic_actors.adapters.serializing import entries, name_unserializable
from flowgentic_actors.adapters.shapes import not_a_dict
from flowgentic_actors.cluster.client import MemoryClient
from flowgentic_actors.cluster.slots import SlotTable
from flowgentic_actors.engine.commands import (
    DeleteItem,
    GetItem,
    ListNamespaces,
    Match,
    PutItem,
    RankItems,
    SearchItems,
)
from flowgentic_actors.engine.limits import ItemPlace
from flowgentic_actors.engine.limits import check as within_limits
from flowgentic_actors.engine.model import MAX_LABELS, MAX_TEXT, ItemPosition, RankPosition
from flowgentic_actors.engine.replies import Conflict, ScoredRow
from flowgentic_actors.errors import InvalidRequestError, VersionConflictError

if TYPE_CHECKING:
    from flowgentic_actors.adapters.embedding import Embedded
    from flowgentic_actors.engine.similarity import Metric

_MOST = 2**52  # more than any shard holds; a limit and an offset of it still fit into one number
_MINUTE_US = 60_000_000
_plain_text = str.__str__
_PLAIN = (str, int, float, bool, bytes, type(None))

Search: TypeAlias = SearchItems | RankItems
Change: TypeAlias = PutItem | DeleteItem


class Operations:
    """What a store can do.

    Args:
        client: How to reach the shards.
        serde: Serializer of values.
        expired: Whether items are given whose time is over and that are still there.
    """

    __slots__ = ("_client", "_expired", "_serde")

    def __init__(self, client: MemoryClient, serde: SerializerProtocol, *, expired: bool) -> None:
        self._client = client
        self._serde = serde
        self._expired = expired

    def plan(self, op: Op, expected: int | None) -> Plan[Result]:
        """The plan of one operation that needs no embedding.

        Args:
            op: The operation.
            expected: Version that an item put or deleted must have.

        Raises:
            InvalidRequestError: If it is impossible.
            InvalidNamespaceError: If its namespace is.
        """
        if isinstance(op, PutOp):
            return self.change(self.change_of(op, expected))
        check(op)
        return self.read(op, None)

    def read(self, op: Op, embedded: Embedded | None) -> Plan[Result]:
        """The plan of an operation that was checked and changes nothing."""
        match op:
            case GetOp():
                return self._get(op)
            case SearchOp() if embedded is not None and op.query:
                return self._rank(op, embedded.queries[op.query], embedded.metric)
            case SearchOp():
                return self._search(op)
            case ListNamespacesOp():
                return self._list_namespaces(op)
        raise AssertionError(f"{op!r} was not checked")

    def change_of(self, op: PutOp, expected: int | None) -> Change:
        """The command of a put or delete; its value is serialized here and now.

        Raises:
            InvalidRequestError: If it is impossible, or its value cannot be serialized.
            InvalidNamespaceError: If its namespace is.
        """
        namespace, key = place_of(op)
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if expected is not None:
            expected = whole("expected_version", expected)
        if op.value is None:
            return DeleteItem(namespace, key, expected)
        try:
            value = {**op.value}  # other than dict(), this takes no list of pairs
        except TypeError as error:
            raise not_a_dict(op) from error
        try:
            blob = self._serde.dumps_typed(value)
        except Exception as error:
            item = f"the item {key!r} in {namespace}: value"
            name_unserializable(error, self._serde, entries(item, value))
            raise
        return PutItem(namespace, key, blob, _ttl_us(op), expected)

    def change(self, command: Change) -> Plan[Result]:
        """The plan of a put or delete."""
        reply = yield Ask(self._client.table.of_namespace(command.namespace), command)
        if isinstance(reply, Conflict):
            raise conflict(command, reply)
        return None

    def query_of(self, op: GetOp) -> GetItem:
        """The query of a get.

        Raises:
            InvalidRequestError: If it is impossible.
            InvalidNamespaceError: If its namespace is.
        """
        namespace, key = place_of(op)
        return GetItem(namespace, key, bool(op.refresh_ttl), self._expired)

    def item(self, reply: Any) -> Item | None:
        """What a get found."""
        return None if reply.row is None else item_of(reply.row, self._serde)

    def _get(self, op: GetOp) -> Plan[Result]:
        query = self.query_of(op)
        return self.item((yield Ask(self._client.table.of_namespace(query.namespace), query)))

    def _search(self, op: SearchOp) -> Plan[Any]:
        query = _search_of(op, self._expired)
        found = yield from self._over_shards(query, _place)
        return [search_item_of(row, None, self._serde) for row in found]

    def _rank(self, op: SearchOp, vector: bytes, metric: Metric) -> Plan[Any]:
        unranked = _search_of(op, self._expired)
        query = RankItems(
            unranked.prefix,
            unranked.filter,
            vector,
            unranked.limit,
            unranked.offset,
            refresh=unranked.refresh,
            expired=self._expired,
            metric=metric,
        )
        found = yield from self._over_shards(query, _rank)
        return [search_item_of(scored.row, scored.score, self._serde) for scored in found]

    def _over_shards(self, query: Search, order: Any) -> Plan[Sequence[Any]]:
        """The rows of one shard, or those of several in order."""
        table = self._client.table
        if len(query.prefix) >= table.namespace_depth:
            return (yield from _search_shard(table.of_namespace(query.prefix), query))

        def ask(table: SlotTable) -> Plan[Sequence[Any]]:
            asked, shards = msgspec.structs.replace(query, table=table.version), table.owners
            if len(shards) == 1:
                return (yield from _search_shard(shards[0], asked))
            # Each shard gives its first offset + limit; which of them count is known only here.
            first = query.limit + query.offset
            wide = msgspec.structs.replace(asked, limit=first, offset=0)
            found = yield from over_shards({shard: _search_shard(shard, wide) for shard in shards})
            return list(islice(merge(*found, key=order), query.offset, first))

        return (yield from over_table(self._client, ask))

    def _list_namespaces(self, op: ListNamespacesOp) -> Plan[Result]:
        query = _listing_of(op, self._expired)
        last = query.limit + query.offset

        def ask(table: SlotTable) -> Plan[list[list[tuple[str, ...]]]]:
            asked = msgspec.structs.replace(query, limit=last, offset=0, table=table.version)
            return over_shards({shard: _list_shard(shard, asked) for shard in table.owners})

        of_shards = yield from over_table(self._client, ask)
        # Cut to max_depth, one namespace may come from several shards.
        return sorted({*chain.from_iterable(of_shards)})[query.offset : last]


def conflict(command: Change, reply: Conflict) -> VersionConflictError:
    """The error of a put or delete that expected another version."""
    assert isinstance(reply.found, int)
    there = f"version {reply.found}" if reply.found else "not there"
    return VersionConflictError(
        f"the item {command.key!r} in {command.namespace} is {there}, and was expected in "
        f"version {command.expected}: read it again and decide anew",
        reply.found,
    )


def check(op: Op) -> None:
    """Make sure that an operation is possible.

    Raises:
        InvalidRequestError: If it is not.
        InvalidNamespaceError: If its namespace is not.
    """
    if isinstance(op, (GetOp, PutOp)):
        place_of(op)
        return
    validate_op_namespace(op)
    if isinstance(op, SearchOp):
        within_limits(_search_of(op, expired=False))
    elif isinstance(op, ListNamespacesOp):
        within_limits(_listing_of(op, expired=False))
    else:
        raise InvalidRequestError(f"{type(op).__name__} is not a store operation")


def place_of(op: GetOp | PutOp) -> tuple[tuple[str, ...], str]:
    """The labels and the key of an item as plain text.

    Those of an item to delete may be of any length: it may be there from an earlier version.

    Raises:
        InvalidRequestError: If there cannot be such an item.
        InvalidNamespaceError: If there cannot be such a namespace.
    """
    key = op.key if type(op.key) is str else text_of("key", op.key)
    try:
        labels = tuple(map(_plain_text, op.namespace))
    except TypeError:
        validate_op_namespace(op)
        raise
    joined = "".join(labels)
    if "." in joined or "\0" in joined or not all(labels):
        validate_op_namespace(op)
    if (
        len(joined) + len(key) > MAX_TEXT
        or len(labels) > MAX_LABELS
        or not (joined.isascii() and key.isascii())
    ):
        deletes = isinstance(op, PutOp) and op.value is None
        within_limits(DeleteItem(labels, key) if deletes else ItemPlace(labels, key))
    return labels, key


def _search_of(op: SearchOp, expired: bool) -> SearchItems:
    limit, offset = window(op)
    return SearchItems(
        tuple(op.namespace_prefix),
        _encode_filter(op.filter),
        limit,
        offset,
        refresh=bool(op.refresh_ttl),
        expired=expired,
    )


def _listing_of(op: ListNamespacesOp, expired: bool) -> ListNamespaces:
    limit, offset = window(op)
    conditions = tuple(
        Match(condition.match_type, tuple(condition.path))
        for condition in op.match_conditions or ()
    )
    depth = None if op.max_depth is None else whole("max_depth", op.max_depth)
    return ListNamespaces(conditions, depth, limit, offset, expired)


def _search_shard(shard: int, query: Search) -> Plan[Sequence[Any]]:
    """All pages of one shard's answer."""
    rows: list[Any] = []
    after: ItemPosition | RankPosition | None = None
    offset = query.offset
    while True:
        limit = query.limit - len(rows)
        page = msgspec.structs.replace(query, limit=limit, offset=offset, after=after)
        reply = yield Ask(shard, page)
        rows.extend(reply.rows)
        after, offset = reply.after, offset - reply.skipped
        if after is None or len(rows) >= query.limit:
            return rows


def _list_shard(shard: int, query: ListNamespaces) -> Plan[list[tuple[str, ...]]]:
    """The same of a listing of namespaces."""
    found: list[tuple[str, ...]] = []
    page = query
    while True:
        reply = yield Ask(shard, page)
        found.extend(reply.namespaces)
        if reply.after is None or len(found) >= query.limit:
            return found
        page = msgspec.structs.replace(query, limit=query.limit - len(found), after=reply.after)


def _place(row: Any) -> tuple[tuple[str, ...], str]:
    return row.namespace, row.key


def _rank(scored: ScoredRow) -> tuple[bool, float, tuple[str, ...], str]:
    score = scored.score
    return score is None, -(score or 0.0), scored.row.namespace, scored.row.key


def _encode_filter(conditions: dict[str, Any] | None) -> bytes:
    if not conditions:
        return b""
    try:
        _check_plain(conditions, "filter")
        try:
            return msgspec.msgpack.encode(conditions)
        except UnicodeEncodeError:
            return msgspec.msgpack.encode(_replaced(conditions))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(f"filter holds what no shard can compare: {error}") from error


def _check_plain(value: object, where: str) -> None:
    """Refuse what is stored in a serializer's own form, which a shard does not look into."""
    if type(value) is dict:
        for name, inner in value.items():
            _check_plain(inner, f"{where}[{name!r}]")
    elif type(value) in (list, tuple):
        for inner in value:  # type: ignore[attr-defined]
            _check_plain(inner, where)
    elif type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value).__name__}. Store such values as text or numbers to filter "
            "on them"
        )


def _replaced(value: Any) -> Any:
    """A filter on text as it is stored; see `facets.replaced`."""
    match value:
        case str():
            return replaced(value)
        case dict():
            return {_replaced(name): _replaced(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_replaced(inner) for inner in value]
    return value


def _ttl_us(op: PutOp) -> int:
    if op.ttl is None:
        return 0
    if not 0 < op.ttl < math.inf:
        raise InvalidRequestError(f"ttl must be a positive number of minutes, not {op.ttl!r}")
    return max(1, min(int(op.ttl * _MINUTE_US), _MOST))


def window(op: SearchOp | ListNamespacesOp) -> tuple[int, int]:
    """Limit and offset of an operation, within what a shard takes."""
    limit, offset = whole("limit", op.limit), whole("offset", op.offset)
    for name, value in (("limit", limit), ("offset", offset)):
        if value < 0:
            raise InvalidRequestError(f"{name} must be at least 0, not {value}")
    if isinstance(op, ListNamespacesOp) and op.max_depth is not None and op.max_depth < 1:
        raise InvalidRequestError(f"max_depth must be at least 1, not {op.max_depth}")
    return min(limit, _MOST), min(offset, _MOST)
