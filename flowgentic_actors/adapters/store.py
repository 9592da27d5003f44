"""`AsyncStore`: LangGraph's long-term store over the memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import (
    NOT_PROVIDED,
    BaseStore,
    GetOp,
    IndexConfig,
    InvalidNamespaceError,
    Item,
    NotProvided,
    Op,
    PutOp,
    Result,
    TTLConfig,
)

from flowgentic_actors.adapters.decoding import serializer_of
from flowgentic_actors.adapters.plan import run, run_sync
from flowgentic_actors.adapters.ready import Ready
from flowgentic_actors.adapters.shapes import check_namespace, check_shapes
from flowgentic_actors.adapters.store_batch import Batch
from flowgentic_actors.adapters.store_ops import Operations, conflict
from flowgentic_actors.cluster.client import MemoryClient
from flowgentic_actors.cluster.shared_settings import IndexSettings
from flowgentic_actors.engine.replies import Conflict
from flowgentic_actors.errors import InvalidRequestError

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from flowgentic_actors.adapters.embedding import Index
    from flowgentic_actors.adapters.missing_index import MissingIndex

_RESERVED = "langgraph"


class AsyncStore(BaseStore):
    """Stores items in a cluster's memory actors.

    Get it as `memory.store`. Searches are ordered by namespace, then key, so pages are stable.
    Filters follow LangGraph's language; where its stores disagree, numbers compare as numbers, a
    missing field matches `$ne` and no ordering operator. Returned values are copies. Items that are
    found carry their `version`, which `aput(expected_version=)` compares.

    With an `index`, `query` orders by the similarity of the nearest of an item's vectors, which is
    the cosine unless the index has another `distance_type`; items without one follow, without a
    score. Namespace and filter decide before the order does.
    Where the memory has no index, `query` is ignored, as in LangGraph's `InMemoryStore`. Where it
    has one and this store does not, a search with `query` is refused, and so is a put without
    `index=False`, which would leave an item that no search by similarity finds.

    Args:
        client: How to reach the shards.
        serde: Serializer of values. Default: LangGraph's `JsonPlusSerializer`, a
            `StrictSerializer` where `allowed_types` says so. Filters need one that writes plain
            msgpack maps.
        index: LangGraph's `IndexConfig`: `dims`, `embed`, `fields`, and `distance_type`.
        ttl: LangGraph's `TTLConfig`: `default_ttl` (minutes), `refresh_on_read` (default True),
            `omit_expired` (default True, other than LangGraph's, since what is over is over).

    Raises:
        InvalidRequestError: If the memory has vectors of other `dims` than `index`.

    Attributes:
        index_config: The `index`, None without.
        embeddings: What embeds texts, None without an index.
        ttl_config: The `ttl`, None without.
    """

    __slots__ = ("_client", "_index", "_operations", "embeddings", "index_config", "ttl_config")

    supports_ttl = True

    def __init__(
        self,
        client: MemoryClient,
        *,
        serde: SerializerProtocol | None = None,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        self._client = client
        self.index_config = index
        self.embeddings: Embeddings | None = None
        self._index: Index | MissingIndex | None = None
        stored: IndexSettings | None = getattr(client, "index", None)
        if index is not None:
            from flowgentic_actors.adapters.embedding import Index  # noqa: PLC0415 - needs numpy

            self._index = Index(index)
            self.embeddings = self._index.embeddings
            if stored is not None and index["dims"] != stored.dims:
                raise InvalidRequestError(
                    f"index= says dims {index['dims']}, and this memory has vectors of {stored}"
                )
        elif stored is not None:
            from flowgentic_actors.adapters.missing_index import MissingIndex  # noqa: PLC0415

            self._index = MissingIndex(stored)
        self.ttl_config = ttl
        expired = not (ttl or {}).get("omit_expired", True)
        self._operations = Operations(client, serde or serializer_of(client), expired=expired)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: reads see the state before the batch's puts, and of several puts
        of one key the last one counts.

        Raises:
            InvalidRequestError: If an operation is impossible; nothing is done then.
            InvalidNamespaceError: If a namespace is no tuple of labels; nothing is done then.
            FlowgenticError: What the first one failed with that failed; the others are done.
        """
        ops = list(ops)
        check_shapes(ops)
        return await self._arun(ops)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations, blocking; see `abatch`."""
        ops = list(ops)
        check_shapes(ops)
        return self._run(ops)

    async def aget(
        self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None
    ) -> Item | None:
        """Fetch an item, None when it is not there.

        Args:
            namespace: Where.
            key: Under which key.
            refresh_ttl: Whether its life begins anew. Default: the configured `refresh_on_read`.
        """
        query = self._operations.query_of(self._get_op(namespace, key, refresh_ttl))
        shard = self._client.table.of_namespace(query.namespace)
        return self._operations.item(await self._client.ask(shard, query))

    def get(
        self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None
    ) -> Item | None:
        """Fetch an item, blocking; see `aget`."""
        query = self._operations.query_of(self._get_op(namespace, key, refresh_ttl))
        shard = self._client.table.of_namespace(query.namespace)
        return self._operations.item(self._client.ask_sync(shard, query))

    async def aput(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
        expected_version: int | None = None,
    ) -> None:
        """Store an item.

        Args:
            namespace: Where.
            key: Under which key.
            value: What, a dict; a copy is stored. None removes the item, as in LangGraph's stores.
            index: Paths to embed instead of the configured ones; False for none.
            ttl: Minutes that it lives; None for ever. Default: the configured `default_ttl`.
            expected_version: Store it only if the item has this version; 0: only if there is none.

        Raises:
            VersionConflictError: If it has another version.
            InvalidRequestError: If the value is no dict.
            InvalidNamespaceError: If the namespace is no tuple of labels.
        """
        op = self._put_op(namespace, key, value, index, ttl)
        if self._index is not None:
            await self._arun([op], expected_version)
            return
        command = self._operations.change_of(op, expected_version)
        shard = self._client.table.of_namespace(command.namespace)
        reply = await self._client.ask(shard, command)
        if isinstance(reply, Conflict):
            raise conflict(command, reply)

    def put(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
        expected_version: int | None = None,
    ) -> None:
        """Store an item, blocking; see `aput`."""
        op = self._put_op(namespace, key, value, index, ttl)
        self._run([op], expected_version)

    async def adelete(
        self, namespace: tuple[str, ...], key: str, *, expected_version: int | None = None
    ) -> None:
        """Remove an item, if it is there; see `aput` for `expected_version`."""
        if type(namespace) is not tuple:
            check_namespace(namespace)
        await self._arun([PutOp(namespace, key, None)], expected_version)

    def delete(
        self, namespace: tuple[str, ...], key: str, *, expected_version: int | None = None
    ) -> None:
        """Remove an item, blocking; see `adelete`."""
        if type(namespace) is not tuple:
            check_namespace(namespace)
        self._run([PutOp(namespace, key, None)], expected_version)

    # ------------------------------------------------------------------ what other stores need

    def setup(self) -> Ready[None]:
        """Do nothing: there are no tables to create. It may be awaited."""
        return Ready(None)

    async def asetup(self) -> None:
        """Do nothing; see `setup`."""

    def start_ttl_sweeper(
        self,
        sweep_interval_minutes: float | None = None,  # noqa: ARG002 - LangGraph's name
    ) -> Ready[Ready[None]]:
        """Do nothing: the memory sweeps by itself (`ttl["sweep_interval_minutes"]`).

        Returns:
            A future that is done. Awaiting it gives another one, as `AsyncPostgresStore` gives a
            task.
        """
        return Ready(Ready(None))

    def stop_ttl_sweeper(
        self,
        timeout: float | None = None,  # noqa: ARG002 - LangGraph's name
    ) -> Ready[bool]:
        """Do nothing, successfully; it may be awaited."""
        return Ready(True)

    # ------------------------------------------------------------------ carrying out

    async def _arun(self, ops: list[Op], expected: int | None = None) -> list[Result]:
        if len(ops) == 1 and self._index is None:  # most of what is ever asked
            return [await run(self._client, self._operations.plan(ops[0], expected))]
        batch = Batch(self._operations, ops, index=self._index, expected=expected)
        embedded = None
        if self._index is not None and (batch.documents or batch.queries):
            embedded = await self._index.aembed(batch.documents, batch.queries)
        return await run(self._client, batch.plan(embedded))

    def _run(self, ops: list[Op], expected: int | None = None) -> list[Result]:
        if len(ops) == 1 and self._index is None:
            return [run_sync(self._client, self._operations.plan(ops[0], expected))]
        batch = Batch(self._operations, ops, index=self._index, expected=expected)
        embedded = None
        if self._index is not None and (batch.documents or batch.queries):
            embedded = self._index.embed(batch.documents, batch.queries)
        return run_sync(self._client, batch.plan(embedded))

    def _get_op(self, namespace: tuple[str, ...], key: str, refresh: bool | None) -> GetOp:
        if refresh is None:
            refresh = self.ttl_config is None or self.ttl_config.get("refresh_on_read", True)
        if type(namespace) is not tuple:
            check_namespace(namespace)
        return GetOp(namespace, key, refresh)

    def _put_op(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None,
        ttl: float | NotProvided | None,
    ) -> PutOp:
        if type(namespace) is not tuple:
            check_namespace(namespace)
            namespace = tuple(namespace)
        if namespace[:1] == (_RESERVED,):
            raise InvalidNamespaceError(f"Root label for namespace cannot be {_RESERVED!r}")
        minutes = (self.ttl_config or {}).get("default_ttl") if ttl is NOT_PROVIDED else ttl
        return PutOp(namespace, key, value, index, minutes)  # type: ignore[arg-type]
