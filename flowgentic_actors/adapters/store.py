"""`AsyncStore`: LangGraph's long-term store over the memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import (
    NOT_PROVIDED,
    BaseStore,
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
from flowgentic_actors.adapters.operations import run, run_sync
from flowgentic_actors.adapters.ready_result import ReadyResult
from flowgentic_actors.adapters.shapes import check_namespace
from flowgentic_actors.adapters.store_batch import Batch
from flowgentic_actors.adapters.store_ops import Operations, conflict
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings
from flowgentic_actors.engine.commands import GetItem, ListNamespaces, SearchItems
from flowgentic_actors.engine.replies import Conflict
from flowgentic_actors.errors import InvalidRequestError

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from flowgentic_actors.adapters.embedding import Index
    from flowgentic_actors.adapters.missing_index import MissingIndex

_RESERVED = ("langgraph",)


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

    __slots__ = (
        "_client",
        "_direct",
        "_index",
        "_operations",
        "embeddings",
        "index_config",
        "ttl_config",
    )

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
        self._direct: bool = getattr(client, "direct", False)
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
        return await self._arun(list(ops))

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations, blocking; see `abatch`."""
        return self._run(list(ops))

    async def aget(
        self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None
    ) -> Item | None:
        """Fetch an item, None when there is none.

        Args:
            namespace: Where.
            key: Under which key.
            refresh_ttl: Whether its life begins anew. Default: the configured `refresh_on_read`.
        """
        query, client = self._query(namespace, key, refresh_ttl), self._client
        reply = client.ask_sync(query) if self._direct else await client.ask(query)
        return self._operations.item(reply)

    def get(
        self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None
    ) -> Item | None:
        """Fetch an item, blocking; see `aget`."""
        query = self._query(namespace, key, refresh_ttl)
        return self._operations.item(self._client.ask_sync(query))

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
        minutes = self._minutes(namespace, ttl)
        if self._index is not None:
            await self._arun([PutOp(namespace, key, value, index, minutes)], expected_version)
            return
        command = self._operations.change_of(namespace, key, value, minutes, expected_version)
        client = self._client
        reply = client.ask_sync(command) if self._direct else await client.ask(command)
        if type(reply) is Conflict:
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
        minutes = self._minutes(namespace, ttl)
        if self._index is not None:
            self._run([PutOp(namespace, key, value, index, minutes)], expected_version)
            return
        command = self._operations.change_of(namespace, key, value, minutes, expected_version)
        reply = self._client.ask_sync(command)
        if type(reply) is Conflict:
            raise conflict(command, reply)

    async def adelete(
        self, namespace: tuple[str, ...], key: str, *, expected_version: int | None = None
    ) -> None:
        """Remove an item, if it exists; see `aput` for `expected_version`."""
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

    # ------------------------------------------------------------------ for compatibility

    def setup(self) -> ReadyResult[None]:
        """Do nothing: there are no tables to create. It may be awaited."""
        return ReadyResult(None)

    async def asetup(self) -> None:
        """Do nothing; see `setup`."""

    def start_ttl_sweeper(
        self,
        sweep_interval_minutes: float | None = None,  # noqa: ARG002 - LangGraph's name
    ) -> ReadyResult[ReadyResult[None]]:
        """Do nothing: the memory sweeps by itself (`ttl["sweep_interval_minutes"]`).

        Returns:
            A future that is done. Awaiting it gives another one, as `AsyncPostgresStore` gives a
            task.
        """
        return ReadyResult(ReadyResult(None))

    def stop_ttl_sweeper(
        self,
        timeout: float | None = None,  # noqa: ARG002 - LangGraph's name
    ) -> ReadyResult[bool]:
        """Do nothing, successfully; it may be awaited."""
        return ReadyResult(True)

    # ------------------------------------------------------------------ carrying out

    async def _arun(self, ops: list[Op], expected: int | None = None) -> list[Result]:
        if len(ops) == 1 and self._index is None:  # most of what is ever asked
            command, client = self._operations.command_of(ops[0], expected), self._client
            if isinstance(command, (SearchItems, ListNamespaces)):
                return [await run(client, self._operations.read(command))]
            reply = client.ask_sync(command) if self._direct else await client.ask(command)
            return [self._operations.result(command, reply)]
        batch = Batch(self._operations, ops, index=self._index, expected=expected)
        embedded = None
        if self._index is not None and (batch.documents or batch.queries):
            embedded = await self._index.aembed(batch.documents, batch.queries)
        return await run(self._client, batch.plan(embedded))

    def _run(self, ops: list[Op], expected: int | None = None) -> list[Result]:
        if len(ops) == 1 and self._index is None:
            command = self._operations.command_of(ops[0], expected)
            if isinstance(command, (SearchItems, ListNamespaces)):
                return [run_sync(self._client, self._operations.read(command))]
            return [self._operations.result(command, self._client.ask_sync(command))]
        batch = Batch(self._operations, ops, index=self._index, expected=expected)
        embedded = None
        if self._index is not None and (batch.documents or batch.queries):
            embedded = self._index.embed(batch.documents, batch.queries)
        return run_sync(self._client, batch.plan(embedded))

    def _query(self, namespace: tuple[str, ...], key: str, refresh: bool | None) -> GetItem:
        if refresh is None:
            refresh = self.ttl_config is None or self.ttl_config.get("refresh_on_read", True)
        return self._operations.query_of(namespace, key, refresh)

    def _minutes(self, namespace: tuple[str, ...], ttl: float | NotProvided | None) -> float | None:
        """The lifetime of an item that is put; refuses LangGraph's own namespace."""
        if type(namespace) is not tuple:
            check_namespace(namespace)
        if namespace[:1] == _RESERVED:
            raise InvalidNamespaceError(f"Root label for namespace cannot be {_RESERVED[0]!r}")
        if ttl is not NOT_PROVIDED:
            return ttl  # type: ignore[return-value]
        return None if self.ttl_config is None else self.ttl_config.get("default_ttl")
