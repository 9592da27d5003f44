"""The operations of a store: requests to shards, and replies turned into results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

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

from flowgentic_actors.adapters.ids import text_of, whole
from flowgentic_actors.adapters.indexed_metadata import replaced
from flowgentic_actors.adapters.items import item_of, search_item_of
from flowgentic_actors.adapters.operations import (
    Independent,
    Operation,
    over_shards,
    retry_on_new_table,
    routed,
)
from flowgentic_actors.adapters.serializing import entries, name_unserializable
from flowgentic_actors.adapters.shapes import check_namespace, check_shape, not_a_dict
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.client.routing import shard_of
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
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
from flowgentic_actors.engine.replies import Conflict, ItemReply, ScoredRow
from flowgentic_actors.errors import FlowgenticError, InvalidRequestError, VersionConflictError

if TYPE_CHECKING:
    from flowgentic_actors.adapters.embedding import Embedded
    from flowgentic_actors.engine.similarity import Metric

_MOST = 2**52  # more than any shard holds; a limit and an offset of it still fit into one number
_MINUTE_US = 60_000_000
_plain_text = str.__str__
_PLAIN = (str, int, float, bool, bytes, type(None))
_all_plain = frozenset({str}).issuperset

_KEY: Final = MAX_TEXT - 512  # characters of a key that a namespace in `_checked` leaves room for
_MOST_CHECKED: Final = 1024
_checked: set[tuple[str, ...]] = set()  # namespaces of ASCII text within the limits

Search: TypeAlias = SearchItems | RankItems
Change: TypeAlias = PutItem | DeleteItem
Wide: TypeAlias = SearchItems | ListNamespaces


class Operations:
    """The operations of one store.

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

    def command_of(self, op: Op, expected: int | None) -> GetItem | Change | Wide:
        """The command of one of LangGraph's `Op`s that needs no embedding.

        Args:
            op: The operation.
            expected: Version that an item put or deleted must have.

        Raises:
            InvalidRequestError: If it is impossible.
            InvalidNamespaceError: If its namespace is.
        """
        if isinstance(op, PutOp):
            return self.change_of(op.namespace, op.key, op.value, op.ttl, expected)
        return self.question_of(op)

    def read(
        self, question: Wide, op: Op | None = None, embedded: Embedded | None = None
    ) -> Operation[Any]:
        """The operation of a search or a listing.

        Args:
            question: What `question_of` made.
            op: The search, if it has a query.
            embedded: Its query's vector, None without an index.
        """
        if isinstance(question, ListNamespaces):
            return self._list_namespaces(question)
        if embedded is not None and isinstance(op, SearchOp) and op.query:
            return self._rank(question, embedded.queries[op.query], embedded.metric)
        return self._search(question)

    def change_of(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any] | None,
        minutes: float | None,
        expected: int | None,
    ) -> Change:
        """The command of a put or delete; its value is serialized at once.

        Args:
            namespace: Where.
            key: Under which key.
            value: What, None to delete it.
            minutes: How long it lives, None for ever.
            expected: Version that the item must have.

        Raises:
            InvalidRequestError: If it is impossible, or its value cannot be serialized.
            InvalidNamespaceError: If its namespace is.
        """
        namespace, key = place_of(namespace, key, deletes=value is None)
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if expected is not None:
            expected = whole("expected_version", expected)
        if value is None:
            return DeleteItem(namespace, key, expected)
        if type(value) is not dict:
            try:
                value = {**value}  # other than dict(), this takes no list of pairs
            except TypeError as error:
                raise not_a_dict(namespace, key, value) from error
        try:
            blob = self._serde.dumps_typed(value)
        except Exception as error:
            item = f"the item {key!r} in {namespace}: value"
            name_unserializable(error, self._serde, entries(item, value))
            raise
        return PutItem(namespace, key, blob, 0 if minutes is None else _ttl_us(minutes), expected)

    def query_of(self, namespace: tuple[str, ...], key: str, refresh: object) -> GetItem:
        """The query of a get operation.

        Raises:
            InvalidRequestError: If it is impossible.
            InvalidNamespaceError: If its namespace is.
        """
        namespace, key = place_of(namespace, key)
        return GetItem(namespace, key, bool(refresh), self._expired)

    def question_of(self, op: Op) -> GetItem | Wide:
        """The query of a read, with its fields checked.

        Raises:
            InvalidRequestError: If it is impossible.
            InvalidNamespaceError: If a namespace is.
        """
        if isinstance(op, GetOp):
            return self.query_of(op.namespace, op.key, op.refresh_ttl)
        check_shape(op)
        validate_op_namespace(op)
        if isinstance(op, SearchOp):
            return within_limits(_search_of(op, self._expired))
        if isinstance(op, ListNamespacesOp):
            return within_limits(_listing_of(op, self._expired))
        raise InvalidRequestError(f"{type(op).__name__} is not a store operation")

    def item(self, reply: Any) -> Item | None:
        """The item in the reply to a get."""
        return None if reply.row is None else item_of(reply.row, self._serde)

    def result(self, command: GetItem | Change, reply: Any) -> Result:
        """The result of a get, put or delete from its reply.

        Raises:
            VersionConflictError: If it expected another version.
        """
        if type(reply) is ItemReply:
            return self.item(reply)
        if type(reply) is Conflict:
            assert not isinstance(command, GetItem)
            raise conflict(command, reply)
        return None

    def several(self, commands: Sequence[GetItem | Change]) -> Operation[list[Result | Exception]]:
        """The operation of several gets, puts or deletes, sent at once.

        One that fails has its error in the place of its result.
        """
        answers = yield Independent(routed(self._client, commands))
        results: list[Result | Exception] = []
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, Exception):
                results.append(answer)
                continue
            try:
                results.append(self.result(command, answer))
            except FlowgenticError as error:
                results.append(error)
        return results

    def _search(self, query: SearchItems) -> Operation[Any]:
        found = yield from self._over_shards(query, _place)
        return [search_item_of(row, None, self._serde) for row in found]

    def _rank(self, unranked: SearchItems, vector: bytes, metric: Metric) -> Operation[Any]:
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

    def _over_shards(self, query: Search, order: Any) -> Operation[Sequence[Any]]:
        """The rows of one shard, or those of several in order."""
        if (shard := shard_of(self._client.table, query)) is not None:
            return (yield from _search_shard(shard, query))

        def ask(table: SlotTable) -> Operation[Sequence[Any]]:
            asked, shards = msgspec.structs.replace(query, table=table.version), table.owners
            if len(shards) == 1:
                return (yield from _search_shard(shards[0], asked))
            # Each shard gives its first offset + limit; which of them count is known only here.
            first = query.limit + query.offset
            wide = msgspec.structs.replace(asked, limit=first, offset=0)
            found = yield from over_shards({shard: _search_shard(shard, wide) for shard in shards})
            return list(islice(merge(*found, key=order), query.offset, first))

        return (yield from retry_on_new_table(self._client, ask))

    def _list_namespaces(self, query: ListNamespaces) -> Operation[Result]:
        last = query.limit + query.offset

        def ask(table: SlotTable) -> Operation[list[list[tuple[str, ...]]]]:
            asked = msgspec.structs.replace(query, limit=last, offset=0, table=table.version)
            return over_shards({shard: _list_shard(shard, asked) for shard in table.owners})

        of_shards = yield from retry_on_new_table(self._client, ask)
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


def place_of(
    namespace: tuple[str, ...], key: str, *, deletes: bool = False
) -> tuple[tuple[str, ...], str]:
    """Check the labels and the key of an item, and make them plain text.

    Those of an item to delete may be of any length: it may be there from an earlier version.

    Raises:
        InvalidRequestError: If there cannot be such an item.
        InvalidNamespaceError: If there cannot be such a namespace.
    """
    if (
        type(key) is str
        and key.isascii()
        and len(key) <= _KEY
        and type(namespace) is tuple
        and _all_plain(map(type, namespace))  # other kinds of text may equal what they are not
        and namespace in _checked
    ):
        return namespace, key
    return _place_of(namespace, key, deletes)


def _place_of(namespace: tuple[str, ...], key: str, deletes: bool) -> tuple[tuple[str, ...], str]:
    if type(namespace) is not tuple:
        check_namespace(namespace)
    op = GetOp(namespace, key)
    key = key if type(key) is str else text_of("key", key)
    try:
        labels = tuple(map(_plain_text, namespace))
    except TypeError:
        validate_op_namespace(op)
        raise
    joined = "".join(labels)
    if "." in joined or "\0" in joined or not all(labels):
        validate_op_namespace(op)
    fits = len(labels) <= MAX_LABELS and joined.isascii()
    if not fits or len(joined) + len(key) > MAX_TEXT or not key.isascii():
        within_limits(DeleteItem(labels, key) if deletes else ItemPlace(labels, key))
    if fits and len(joined) <= MAX_TEXT - _KEY:
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked.add(labels)
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


def _search_shard(shard: int, query: Search) -> Operation[Sequence[Any]]:
    """Search one shard, over all pages of its answer."""
    rows: list[Any] = []
    after: ItemPosition | RankPosition | None = None
    offset = query.offset
    while True:
        limit = query.limit - len(rows)
        page = msgspec.structs.replace(query, limit=limit, offset=offset, after=after)
        reply = yield shard, page
        rows.extend(reply.rows)
        after, offset = reply.after, offset - reply.skipped
        if after is None or len(rows) >= query.limit:
            return rows


def _list_shard(shard: int, query: ListNamespaces) -> Operation[list[tuple[str, ...]]]:
    """List the namespaces of one shard, over all pages of its answer."""
    found: list[tuple[str, ...]] = []
    page = query
    while True:
        reply = yield shard, page
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
    """Refuse a filter on a value in a serializer's own form, which shards cannot read."""
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
    """A filter with its text as it is stored; see `indexed_metadata.replaced`."""
    match value:
        case str():
            return replaced(value)
        case dict():
            return {_replaced(name): _replaced(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_replaced(inner) for inner in value]
    return value


def _ttl_us(minutes: float) -> int:
    if not 0 < minutes < math.inf:
        raise InvalidRequestError(f"ttl must be a positive number of minutes, not {minutes!r}")
    return max(1, min(int(minutes * _MINUTE_US), _MOST))


def window(op: SearchOp | ListNamespacesOp) -> tuple[int, int]:
    """The limit and offset of an operation, within what shards accept."""
    limit, offset = whole("limit", op.limit), whole("offset", op.offset)
    for name, value in (("limit", limit), ("offset", offset)):
        if value < 0:
            raise InvalidRequestError(f"{name} must be at least 0, not {value}")
    if isinstance(op, ListNamespacesOp) and op.max_depth is not None and op.max_depth < 1:
        raise InvalidRequestError(f"max_depth must be at least 1, not {op.max_depth}")
    return min(limit, _MOST), min(offset, _MOST)
