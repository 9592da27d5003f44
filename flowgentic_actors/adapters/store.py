"""`AsyncStore`: LangGraph's long-term store over the memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice
from typing import Any

import msgspec
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

from flowgentic_actors.adapters.plan import Ask, Plan, run, run_sync, together
from flowgentic_actors.cluster.client import MemoryClient
from flowgentic_actors.engine.commands import (
    DeleteItem,
    GetItem,
    ListNamespaces,
    Match,
    PutItem,
    SearchItems,
)
from flowgentic_actors.engine.model import ItemPosition
from flowgentic_actors.engine.replies import ItemRow
from flowgentic_actors.errors import InvalidRequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST = 2**52  # more than any shard holds; a limit and an offset of it still fit into one number


class AsyncStore(BaseStore):
    """Stores items in a cluster's memory actors.

    Get it as `memory.store`. Searches are ordered by namespace, then key, so pages are stable.
    Filters follow LangGraph's language; where its stores disagree, numbers compare as numbers, a
    missing field matches `$ne` and no ordering operator. Returned values are copies. Without an
    index, `query` is ignored, as in LangGraph's `InMemoryStore`.

    Args:
        client: How to reach the shards.
        serde: Serializer of values. Default: LangGraph's `JsonPlusSerializer`. Filters need one
            that writes plain msgpack maps.
    """

    __slots__ = ("_client", "_serde")

    def __init__(self, client: MemoryClient, *, serde: SerializerProtocol | None = None) -> None:
        self._client = client
        self._serde: SerializerProtocol = serde or JsonPlusSerializer()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: reads see the state before the batch's puts, and of several puts
        of one key the last one counts.
        """
        return await run(self._client, self._batch(list(ops)))

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations, blocking; see `abatch`."""
        return run_sync(self._client, self._batch(list(ops)))

    # ------------------------------------------------------------------ plans

    def _batch(self, ops: list[Op]) -> Plan[list[Result]]:
        reads: dict[int, Plan[Result]] = {}
        puts: dict[tuple[tuple[str, ...], str], Ask] = {}
        for index, op in enumerate(ops):
            validate_op_namespace(op)
            match op:
                case GetOp():
                    reads[index] = self._get(op)
                case SearchOp():
                    reads[index] = self._search(op)
                case ListNamespacesOp():
                    reads[index] = self._list_namespaces(op)
                case PutOp():
                    place = tuple(op.namespace), str(op.key)
                    ask = self._put(op, *place)
                    puts.pop(place, None)
                    puts[place] = ask
                case _:
                    raise InvalidRequestError(f"{type(op).__name__} is not a store operation")
        results: list[Result] = [None] * len(ops)
        if reads:
            found = yield from together(list(reads.values()))
            for index, result in zip(reads, found, strict=True):
                results[index] = result
        if puts:
            yield list(puts.values())
        return results

    def _put(self, op: PutOp, namespace: tuple[str, ...], key: str) -> Ask:
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        shard = self._client.table.of_namespace(namespace)
        if op.value is None:
            return Ask(shard, DeleteItem(namespace, key))
        return Ask(shard, PutItem(namespace, key, self._serde.dumps_typed(dict(op.value))))

    def _get(self, op: GetOp) -> Plan[Result]:
        namespace = tuple(op.namespace)
        shard = self._client.table.of_namespace(namespace)
        (reply,) = yield [Ask(shard, GetItem(namespace, str(op.key)))]
        return None if reply.row is None else self._item(reply.row)

    def _search(self, op: SearchOp) -> Plan[Result]:
        limit, offset = _window(op)
        query = SearchItems(
            tuple(op.namespace_prefix),
            _encode_filter(op.filter) if op.filter else b"",
            limit,
            offset,
        )
        shards = self._client.table.below(query.prefix)
        if len(shards) == 1:
            rows = yield from _search_shard(shards[0], query)
        else:
            # Each shard gives its first offset + limit; which of them count is known only here.
            wide = msgspec.structs.replace(query, limit=limit + offset, offset=0)
            found = yield from together([_search_shard(shard, wide) for shard in shards])
            rows = list(islice(merge(*found, key=_key), offset, offset + limit))
        return [self._search_item(row) for row in rows]

    def _list_namespaces(self, op: ListNamespacesOp) -> Plan[Result]:
        limit, offset = _window(op)
        if op.max_depth is not None and op.max_depth < 1:
            raise InvalidRequestError(f"max_depth must be at least 1, not {op.max_depth}")
        conditions = tuple(
            Match(condition.match_type, tuple(condition.path))
            for condition in op.match_conditions or ()
        )
        query = ListNamespaces(conditions, op.max_depth, limit + offset, 0)
        replies = yield [Ask(shard, query) for shard in self._client.table.below(())]
        # Cut to max_depth, one namespace may come from several shards.
        found = sorted({namespace for reply in replies for namespace in reply.namespaces})
        return found[offset : offset + limit]

    # ------------------------------------------------------------------ rows

    def _item(self, row: ItemRow) -> Item:
        return Item(
            value=self._serde.loads_typed(row.value),
            key=row.key,
            namespace=row.namespace,
            created_at=_time(row.created_us),
            updated_at=_time(row.updated_us),
        )

    def _search_item(self, row: ItemRow) -> SearchItem:
        return SearchItem(
            namespace=row.namespace,
            key=row.key,
            value=self._serde.loads_typed(row.value),
            created_at=_time(row.created_us),
            updated_at=_time(row.updated_us),
        )


def _search_shard(shard: int, query: SearchItems) -> Plan[Sequence[ItemRow]]:
    rows: list[ItemRow] = []
    after: ItemPosition | None = None
    offset = query.offset
    while True:
        limit = query.limit - len(rows)
        page = msgspec.structs.replace(query, limit=limit, offset=offset, after=after)
        (reply,) = yield [Ask(shard, page)]
        rows.extend(reply.rows)
        after, offset = reply.after, offset - reply.skipped
        if after is None or len(rows) >= query.limit:
            return rows


def _key(row: ItemRow) -> tuple[tuple[str, ...], str]:
    return row.namespace, row.key


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _encode_filter(conditions: dict[str, Any]) -> bytes:
    try:
        return msgspec.msgpack.encode(conditions)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(f"filter holds what no shard can compare: {error}") from error


def _window(op: SearchOp | ListNamespacesOp) -> tuple[int, int]:
    """Limit and offset of an operation, within what a shard takes."""
    for name, value in (("limit", op.limit), ("offset", op.offset)):
        if value < 0:
            raise InvalidRequestError(f"{name} must be at least 0, not {value}")
    return min(op.limit, _MOST), min(op.offset, _MOST)
