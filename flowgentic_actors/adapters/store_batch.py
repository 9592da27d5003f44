"""A batch of store operations as questions to shards, and their replies as results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
    validate_op_namespace,
)

from flowgentic_actors.adapters.items import item_of, search_item_of
from flowgentic_actors.adapters.plan import Ask, Plan, each, together
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
from flowgentic_actors.engine.model import ItemPosition, RankPosition, Vector
from flowgentic_actors.engine.replies import Conflict, ScoredRow
from flowgentic_actors.errors import InvalidRequestError, VersionConflictError

if TYPE_CHECKING:
    from flowgentic_actors.adapters.embedding import Embedded, Index

_MOST = 2**52  # more than any shard holds; a limit and an offset of it still fit into one number
_MINUTE_US = 60_000_000
_PLAIN = (str, int, float, bool, bytes, type(None))

Search: TypeAlias = SearchItems | RankItems


class _Put(NamedTuple):
    """A put or delete whose value is serialized already, and what of it is to be embedded."""

    number: int
    command: PutItem | DeleteItem
    texts: list[tuple[str, str]]


class Batch:
    """Operations that were looked at and copied: what becomes of their values later is no matter.

    Args:
        table: Which shard a namespace belongs to.
        serde: Serializer of values.
        ops: The operations.
        index: How items are embedded, None without.
        expired: Whether items are given whose time is over and that are still there.
        expected: Version that the items put or deleted must have.

    Attributes:
        documents: Texts of items to be embedded.
        queries: Texts of searches.

    Raises:
        InvalidRequestError: If an operation is impossible.
        InvalidNamespaceError: If a namespace is.
    """

    def __init__(
        self,
        table: SlotTable,
        serde: SerializerProtocol,
        ops: Iterable[Op],
        *,
        index: Index | None,
        expired: bool,
        expected: int | None,
    ) -> None:
        self._table = table
        self._serde = serde
        self._index = index
        self._expired = expired
        self._expected = expected
        self._ops = list(ops)
        self._puts: dict[tuple[tuple[str, ...], str], _Put] = {}
        self.queries: list[str] = []
        for number, op in enumerate(self._ops):
            validate_op_namespace(op)
            match op:
                case PutOp():
                    place = tuple(op.namespace), str(op.key)
                    self._puts.pop(place, None)  # the last one counts, in its place
                    self._puts[place] = self._prepare(number, op, *place)
                case SearchOp():
                    _window(op)
                    if index is not None and op.query:
                        self.queries.append(op.query)
                case ListNamespacesOp():
                    _window(op)
                case GetOp():
                    pass
                case _:
                    raise InvalidRequestError(f"{type(op).__name__} is not a store operation")
        self.documents = [text for put in self._puts.values() for _, text in put.texts]

    def _prepare(self, number: int, op: PutOp, namespace: tuple[str, ...], key: str) -> _Put:
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if op.value is None:
            return _Put(number, DeleteItem(namespace, key, self._expected), [])
        value = dict(op.value)
        texts = [] if self._index is None else self._index.texts(value, op.index)
        blob = self._serde.dumps_typed(value)
        return _Put(number, PutItem(namespace, key, blob, _ttl_us(op), self._expected), texts)

    # ------------------------------------------------------------------ plans

    def plan(self, embedded: Embedded | None) -> Plan[list[Result]]:
        """Reads first, then puts; an operation that fails keeps no other from being done."""
        results: list[Result] = [None] * len(self._ops)
        errors: dict[int, Exception] = {}
        reads = {
            number: self._read(op, embedded)
            for number, op in enumerate(self._ops)
            if not isinstance(op, PutOp)
        }
        puts = {put.number: self._put(put, embedded) for put in self._puts.values()}
        for plans in (reads, puts):
            found = yield from each(list(plans.values()))
            for number, result in zip(plans, found, strict=True):
                if isinstance(result, Exception):
                    errors[number] = result
                else:
                    results[number] = result
        if errors:
            first = min(errors)
            if len(self._ops) > 1:
                others = f", and so did {len(errors) - 1} others" if len(errors) > 1 else ""
                errors[first].add_note(f"operation {first} of the batch failed{others}")
            raise errors[first]
        return results

    def _read(self, op: Op, embedded: Embedded | None) -> Plan[Result]:
        match op:
            case GetOp():
                return self._get(op)
            case SearchOp() if embedded is not None and op.query:
                return self._rank(op, embedded.queries[op.query])
            case SearchOp():
                return self._search(op)
            case ListNamespacesOp():
                return self._list_namespaces(op)
        raise AssertionError(f"{op!r} was not checked")

    def _put(self, put: _Put, embedded: Embedded | None) -> Plan[Result]:
        command = put.command
        if embedded is not None and put.texts:
            vectors = tuple(Vector(path, embedded.documents[text]) for path, text in put.texts)
            command = msgspec.structs.replace(command, vectors=vectors)
        (reply,) = yield [Ask(self._table.of_namespace(command.namespace), command)]
        if isinstance(reply, Conflict):
            assert isinstance(reply.found, int)
            there = f"version {reply.found}" if reply.found else "not there"
            raise VersionConflictError(
                f"the item {command.key!r} in {command.namespace} is {there}, and was expected in "
                f"version {self._expected}: read it again and decide anew",
                reply.found,
            )
        return None

    def _get(self, op: GetOp) -> Plan[Result]:
        namespace = tuple(op.namespace)
        query = GetItem(namespace, str(op.key), bool(op.refresh_ttl), self._expired)
        (reply,) = yield [Ask(self._table.of_namespace(namespace), query)]
        return None if reply.row is None else item_of(reply.row, self._serde)

    def _search(self, op: SearchOp) -> Plan[Any]:
        limit, offset = _window(op)
        query = SearchItems(
            tuple(op.namespace_prefix),
            _encode_filter(op.filter),
            limit,
            offset,
            refresh=bool(op.refresh_ttl),
            expired=self._expired,
        )
        found = yield from self._over_shards(query, _place)
        return [search_item_of(row, None, self._serde) for row in found]

    def _rank(self, op: SearchOp, vector: bytes) -> Plan[Any]:
        limit, offset = _window(op)
        query = RankItems(
            tuple(op.namespace_prefix),
            _encode_filter(op.filter),
            vector,
            limit,
            offset,
            refresh=bool(op.refresh_ttl),
            expired=self._expired,
        )
        found = yield from self._over_shards(query, _rank)
        return [search_item_of(scored.row, scored.score, self._serde) for scored in found]

    def _over_shards(self, query: Search, order: Any) -> Plan[Sequence[Any]]:
        """The rows of one shard, or those of several in order."""
        shards = self._table.below(query.prefix)
        if len(shards) == 1:
            return (yield from _search_shard(shards[0], query))
        # Each shard gives its first offset + limit; which of them count is known only here.
        first = query.limit + query.offset
        wide = msgspec.structs.replace(query, limit=first, offset=0)
        found = yield from together([_search_shard(shard, wide) for shard in shards])
        return list(islice(merge(*found, key=order), query.offset, first))

    def _list_namespaces(self, op: ListNamespacesOp) -> Plan[Result]:
        limit, offset = _window(op)
        conditions = tuple(
            Match(condition.match_type, tuple(condition.path))
            for condition in op.match_conditions or ()
        )
        query = ListNamespaces(conditions, op.max_depth, limit + offset, 0, self._expired)
        replies = yield [Ask(shard, query) for shard in self._table.below(())]
        # Cut to max_depth, one namespace may come from several shards.
        found = sorted({namespace for reply in replies for namespace in reply.namespaces})
        return found[offset : offset + limit]


def _search_shard(shard: int, query: Search) -> Plan[Sequence[Any]]:
    """All pages of one shard's answer."""
    rows: list[Any] = []
    after: ItemPosition | RankPosition | None = None
    offset = query.offset
    while True:
        limit = query.limit - len(rows)
        page = msgspec.structs.replace(query, limit=limit, offset=offset, after=after)
        (reply,) = yield [Ask(shard, page)]
        rows.extend(reply.rows)
        after, offset = reply.after, offset - reply.skipped
        if after is None or len(rows) >= query.limit:
            return rows


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
        return msgspec.msgpack.encode(conditions)
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


def _ttl_us(op: PutOp) -> int:
    if op.ttl is None:
        return 0
    if not 0 < op.ttl < math.inf:
        raise InvalidRequestError(f"ttl must be a positive number of minutes, not {op.ttl!r}")
    return max(1, min(int(op.ttl * _MINUTE_US), _MOST))


def _window(op: SearchOp | ListNamespacesOp) -> tuple[int, int]:
    """Limit and offset of an operation, within what a shard takes."""
    for name, value in (("limit", op.limit), ("offset", op.offset)):
        if value < 0:
            raise InvalidRequestError(f"{name} must be at least 0, not {value}")
    if isinstance(op, ListNamespacesOp) and op.max_depth is not None and op.max_depth < 1:
        raise InvalidRequestError(f"max_depth must be at least 1, not {op.max_depth}")
    return min(op.limit, _MOST), min(op.offset, _MOST)
