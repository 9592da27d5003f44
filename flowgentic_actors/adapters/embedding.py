"""Embedding of texts for searches by similarity: batched, awaited or blocking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast, get_args

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig, ensure_embeddings, get_text_at_path, tokenize_path
from langgraph.store.base.embed import EmbeddingsLambda

from flowgentic_actors.actors.daemon_threads import run_blocking
from flowgentic_actors.deadlines import timeout
from flowgentic_actors.engine.similarity import Metric
from flowgentic_actors.errors import InvalidRequestError, NotSentError

T = TypeVar("T")

Paths: TypeAlias = Sequence[tuple[str, Any]]
"""Paths into a value, each with what LangGraph's tokenizer made of it."""

_MOST_TEXTS: Final = 512  # of one call on the embedding function
_TIMEOUT: Final = 300.0  # seconds of such a call
_WHOLE: Final = "$"


class Embedded(NamedTuple):
    """Vectors by text, as shards take them: for items, and for queries."""

    documents: Mapping[str, bytes]
    queries: Mapping[str, bytes]
    metric: Metric


class Index:
    """The index of a store: which texts of an item are embedded, and the function for it.

    Args:
        config: LangGraph's `IndexConfig`, with the `distance_type` that its `PostgresStore` has.

    Attributes:
        embeddings: What embeds.

    Raises:
        ValueError: If its `embed` is nothing that embeds, or its `distance_type` is unknown.
    """

    def __init__(self, config: IndexConfig) -> None:
        self.dims: int = config["dims"]
        self._metric = _metric_of(config)
        self.embeddings: Embeddings = ensure_embeddings(config.get("embed"))
        fields = config.get("fields") or cast("list[str]", config.get("text_fields"))
        self._paths = _tokenized(fields or [_WHOLE])
        self._waiting: dict[asyncio.AbstractEventLoop, _Round] = {}

    def texts(self, value: dict[str, Any], index: Any) -> list[tuple[str, str]]:
        """The texts of a value that are embedded, each with its path.

        Args:
            value: The item's value.
            index: As in `PutOp`: None for the configured fields, False for none, or paths.
        """
        if index is False:
            return []
        found: list[tuple[str, str]] = []
        for path, tokens in self._paths if index is None else _tokenized(index):
            texts = get_text_at_path(value, tokens)
            several = len(texts) > 1
            found += ((f"{path}.{n}" if several else path, t) for n, t in enumerate(texts))
        return found

    async def aembed(self, documents: Sequence[str], queries: Sequence[str]) -> Embedded:
        """Embed texts, together with others that this loop embeds in the same tick.

        Raises:
            InvalidRequestError: If the embedding function gave something else than it should.
            Exception: Whatever it raised.
        """
        found = await self._together(documents) if documents else {}
        asked = {}
        for query in queries:
            asked[query] = self._pack(await _in_time(self.embeddings.aembed_query(query), 1))
        return Embedded(found, asked, self._metric)

    def embed(self, documents: Sequence[str], queries: Sequence[str]) -> Embedded:
        """Embed texts, blocking; also with an asynchronous embedding function."""
        embeddings = self.embeddings
        if isinstance(embeddings, EmbeddingsLambda) and not hasattr(embeddings, "func"):
            return run_blocking(lambda: self.aembed(documents, queries))
        found = {}
        for texts in _batches(documents):
            found.update(self._pack_all(texts, embeddings.embed_documents(texts)))
        asked = {q: self._pack(embeddings.embed_query(q)) for q in queries}
        return Embedded(found, asked, self._metric)

    async def _together(self, documents: Sequence[str]) -> Mapping[str, bytes]:
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None or waiting.task.done():  # it failed before it took its texts
            waiting = self._waiting[loop] = _Round(loop.create_task(self._embed_round(loop)))
        waiting.texts.update(dict.fromkeys(documents))
        waiting.callers += 1
        try:
            # A cancelled waiter takes nothing from the others.
            return await asyncio.shield(waiting.task)
        except Exception:
            if waiting.callers == 1:
                raise
        # One text may be the reason that all failed: now each caller for himself.
        return await self._embed_now(documents)

    async def _embed_round(self, loop: asyncio.AbstractEventLoop) -> Mapping[str, bytes]:
        # A task begins in the next tick: until then others join.
        return await self._embed_now(list(self._waiting.pop(loop).texts))

    async def _embed_now(self, documents: Sequence[str]) -> Mapping[str, bytes]:
        found = {}
        for texts in _batches(documents):
            vectors = await _in_time(self.embeddings.aembed_documents(texts), len(texts))
            found.update(self._pack_all(texts, vectors))
        return found

    def _pack_all(self, texts: Sequence[str], vectors: Sequence[Any]) -> dict[str, bytes]:
        if len(vectors) != len(texts):
            raise InvalidRequestError(
                f"index['embed'] gave {len(vectors)} vectors for {len(texts)} texts"
            )
        return {text: self._pack(vector) for text, vector in zip(texts, vectors, strict=True)}

    def _pack(self, vector: Any) -> bytes:
        try:
            with np.errstate(over="ignore"):  # what becomes infinite is refused with its name
                array = np.asarray(vector, dtype="<f4")
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"index['embed'] gave what is no vector of numbers: {error}"
            ) from error
        if array.shape != (self.dims,):
            raise InvalidRequestError(
                f"index['embed'] gave a vector of shape {array.shape}, and index['dims'] is "
                f"{self.dims}: they must agree"
            )
        return array.tobytes()


async def _in_time(call: Awaitable[T], texts: int) -> T:
    deadline = timeout(_TIMEOUT)
    try:
        async with deadline:
            return await call
    except TimeoutError as error:
        if not deadline.expired():
            raise  # it is the function's own
        raise NotSentError(
            f"embedding {texts} texts took more than {_TIMEOUT:g} s; nothing was sent to the "
            "memory. Is the service behind index['embed'] there?"
        ) from error


class _Round:
    """A batch of texts that are embedded together."""

    def __init__(self, task: asyncio.Task[Mapping[str, bytes]]) -> None:
        self.task = task
        task.add_done_callback(_looked_at)
        self.texts: dict[str, None] = {}
        self.callers = 0


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a batch whose waiters may all have been cancelled."""
    if not task.cancelled():
        task.exception()


def _metric_of(config: IndexConfig) -> Metric:
    metric = config.get("distance_type", "cosine")
    if metric not in get_args(Metric):
        raise ValueError(
            f"index['distance_type'] is one of {', '.join(get_args(Metric))}, not {metric!r}"
        )
    return cast("Metric", metric)


def _tokenized(paths: Sequence[str]) -> Paths:
    return [(path, path if path == _WHOLE else tokenize_path(path)) for path in paths]


def _batches(texts: Sequence[str]) -> list[list[str]]:
    unique = list(dict.fromkeys(texts))
    return [unique[start : start + _MOST_TEXTS] for start in range(0, len(unique), _MOST_TEXTS)]
