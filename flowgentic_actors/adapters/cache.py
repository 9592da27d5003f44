"""`AsyncCache`: LangGraph's cache of nodes' results, over the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic

from langgraph.cache.base import BaseCache, FullKey, Namespace, ValueT
from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors.adapters.decoding import serializer_of
from flowgentic_actors.adapters.ids import text_of
from flowgentic_actors.adapters.not_picklable import NotPicklable
from flowgentic_actors.adapters.operations import Operation, retry_on_new_table, run, run_sync
from flowgentic_actors.adapters.serializing import Named, name_unserializable
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import CacheClear, CacheEntry, CacheGet, CacheKey, CacheSet
from flowgentic_actors.engine.limits import check

_SECOND_US = 1_000_000
_LONGEST = 2**40  # seconds: for ever, and its microseconds fit into a number of the wire


class AsyncCache(NotPicklable, BaseCache[ValueT], Generic[ValueT]):
    """Caches the results of nodes in a cluster's memory actors.

    Get it as `memory.cache`, for `builder.compile(cache=...)` and `CachePolicy`. Cached values take
    `cache_total_mem` bytes at most, the least recently used go first. They are in memory alone: an
    actor that is restarted begins with an empty cache, and what is not there is made anew.

    Args:
        client: How to reach the shards.
        serde: Serializer of values. Default: LangGraph's for caches, which never unpickles; a
            `StrictSerializer` where `allowed_types` says so.
    """

    def __init__(self, client: MemoryClient, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde or serializer_of(client))
        self._client = client

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Fetch cached values; keys without one are left out."""
        return await run(self._client, self._get(keys))

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Fetch cached values, blocking; see `aget`."""
        return run_sync(self._client, self._get(keys))

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Cache values, each with the seconds for which it is valid, None for ever."""
        try:
            await run(self._client, self._set(pairs))
        except Exception as error:
            name_unserializable(error, self.serde, _named(pairs))
            raise

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Cache values, blocking; see `aset`."""
        try:
            run_sync(self._client, self._set(pairs))
        except Exception as error:
            name_unserializable(error, self.serde, _named(pairs))
            raise

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Remove the values of given namespaces, or all of them."""
        await run(self._client, self._clear(namespaces))

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Remove values, blocking; see `aclear`."""
        run_sync(self._client, self._clear(namespaces))

    # ------------------------------------------------------------------ plans

    def _get(self, keys: Sequence[FullKey]) -> Operation[dict[FullKey, ValueT]]:
        given = {_place(namespace, key): (namespace, key) for namespace, key in keys}
        if not given:
            return {}
        check(CacheGet(tuple(given)))

        def ask(table: SlotTable) -> Operation[dict[FullKey, ValueT]]:
            by_shard: dict[int, list[CacheKey]] = {}
            for place in given:
                by_shard.setdefault(table.of_cached(place), []).append(place)
            replies = yield [(s, CacheGet(tuple(asked))) for s, asked in by_shard.items()]
            found: dict[FullKey, ValueT] = {}
            for asked, reply in zip(by_shard.values(), replies, strict=True):
                for place, blob in zip(asked, reply.values, strict=True):
                    if blob is not None:
                        found[given[place]] = self.serde.loads_typed(blob)
            return found

        return (yield from retry_on_new_table(self._client, ask))

    def _set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> Operation[None]:
        entries = [
            CacheEntry(_place(namespace, key), self.serde.dumps_typed(value), _ttl_us(ttl))
            for (namespace, key), (value, ttl) in pairs.items()
        ]
        if not entries:
            return
        check(CacheGet(tuple([entry.key for entry in entries])))

        def ask(table: SlotTable) -> Operation[None]:
            by_shard: dict[int, list[CacheEntry]] = {}
            for entry in entries:
                by_shard.setdefault(table.of_cached(entry.key), []).append(entry)
            yield [(shard, CacheSet(tuple(given))) for shard, given in by_shard.items()]

        yield from retry_on_new_table(self._client, ask)

    def _clear(self, namespaces: Sequence[Namespace] | None) -> Operation[None]:
        doomed = None if namespaces is None else tuple([_labels(ns) for ns in namespaces])
        check(CacheClear(doomed))

        def ask(table: SlotTable) -> Operation[None]:
            yield [(shard, CacheClear(doomed, table.version)) for shard in table.owners]

        return retry_on_new_table(self._client, ask)


def _place(namespace: Namespace, key: object) -> CacheKey:
    return _labels(namespace), text_of("key", key)


def _labels(namespace: Namespace) -> tuple[str, ...]:
    return tuple([text_of("namespace", label) for label in namespace])


def _named(pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> Named:
    return ((f"the value to cache of {key!r}", value) for key, (value, _) in pairs.items())


def _ttl_us(seconds: float | None) -> int:
    if seconds is None:
        return 0
    return max(1, int(min(max(seconds, 0.0), _LONGEST) * _SECOND_US))  # 0 is over at once
