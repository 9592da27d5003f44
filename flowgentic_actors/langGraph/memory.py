"""Flowgentic's memory of LangGraph agents: short-term conversations, and the distributed memory.

The names are those of Flowgentic's `langGraph.memory`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from langchain_core.messages import BaseMessage

from flowgentic_actors.langGraph.conversations import DEFAULT_THREAD, ShortTermMemories, label_of
from flowgentic_actors.langGraph.distributed_config import DistributedMemoryConfig
from flowgentic_actors.langGraph.distributed_memory import (
    DistributedMemoryManager,
    DragonCheckpointSaver,
    DragonDDictStore,
)
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import Model

__all__ = [
    "DistributedMemoryConfig",
    "DistributedMemoryManager",
    "LangraphMemoryManager",
    "MemoryConfig",
]

SHORT_TERM: Final = "short_term"
"""First label of the namespaces in which messages are indexed, then user, then thread."""

_RELEVANT: Final = 10  # messages of a context


class LangraphMemoryManager:
    """Short-term memory of every user and thread, and the store and checkpointer of graphs.

        manager = LangraphMemoryManager(distributed_config=DistributedMemoryConfig(mode="auto"))
        graph = builder.compile(
            checkpointer=manager.get_checkpointer(), store=manager.get_store()
        )

    Making it opens nothing. What needs the cluster opens it, blocking; `async with` (and
    `LangraphIntegration`) opens it without blocking the event loop, and closes it.

    Args:
        config: Limits of the conversations. Default: `MemoryConfig()`.
        llm: A chat model that summarizes, if the configuration lets it.
        distributed_config: Where store and checkpoints live. Default: `mode="local"`, as in
            Flowgentic without a distributed configuration.
        **settings: Further fields of `MemoryCluster`'s configuration, such as `index`, with which
            relevant messages are found by similarity, `ttl` or `persist_path`.

    Raises:
        pydantic.ValidationError: If a setting is unknown or impossible.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        llm: Model | None = None,
        distributed_config: DistributedMemoryConfig | None = None,
        **settings: Any,
    ) -> None:
        self.config = config if config is not None else MemoryConfig()
        self.llm = llm
        where = distributed_config or DistributedMemoryConfig(mode="local")
        self.distributed = DistributedMemoryManager(where, **settings)
        self._has_index = settings.get("index") is not None and where.enable_store
        self._conversations = ShortTermMemories(self.config, llm)

    # ------------------------------------------------------------------ opening and closing

    async def __aenter__(self) -> Self:
        await self.distributed.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the cluster; a second time does nothing."""
        await self.distributed.aclose()

    def close(self) -> None:
        """Close the cluster, blocking; a second time does nothing."""
        self.distributed.close()

    # ------------------------------------------------------------------ store and checkpointer

    def get_store(self) -> DragonDDictStore | None:
        """The store, for `compile(store=...)`; None if it is not enabled."""
        return self.distributed.store

    def get_checkpointer(self) -> DragonCheckpointSaver | None:
        """The checkpointer, for `compile(checkpointer=...)`; None if it is not enabled."""
        return self.distributed.checkpointer

    def is_distributed(self) -> bool:
        """Whether store and checkpoints are in actors of their own processes."""
        return self.distributed.is_distributed()

    def get_full_memory_info(self) -> dict[str, Any]:
        """A summary of both memories: `short_term` (see `get_memory_health`), and `distributed`."""
        return {
            "short_term": self.get_memory_health(),
            "distributed": self.distributed.get_memory_info(),
        }

    # ------------------------------------------------------------------ short-term memory

    async def add_interaction(
        self,
        user_id: str,
        messages: Sequence[BaseMessage],
        metadata: Mapping[str, Any] | None = None,
        *,
        thread_id: str = DEFAULT_THREAD,
    ) -> dict[str, Any]:
        """Add one interaction to a conversation.

        Args:
            user_id: Who said it; no other user is ever given it.
            messages: What was said, in order.
            metadata: Stored with the messages that are indexed.
            thread_id: In which conversation.

        Returns:
            `short_term_messages` (how many are kept), `total_interactions`, `memory_stats`.
        """
        memory = self._conversations.of(user_id, thread_id)
        kept = await memory.add(messages)
        await self._index(user_id, thread_id, messages, metadata)
        stats = memory.stats()
        return {
            "short_term_messages": len(kept),
            "total_interactions": stats["interaction_count"],
            "memory_stats": stats,
        }

    async def get_relevant_context(
        self, user_id: str, query: str | None = None, *, thread_id: str = DEFAULT_THREAD
    ) -> dict[str, Any]:
        """The messages of a conversation that a model should see.

        Args:
            user_id: Whose.
            query: What it is about. With an `index` messages are found by similarity, also ones
                that the conversation itself has let go; without, by the words that they share.
            thread_id: Which.

        Returns:
            `short_term` (all messages that are kept), `relevant_messages`, `memory_stats`.
        """
        memory = self._conversations.of(user_id, thread_id)
        relevant = memory.relevant(query, _RELEVANT)
        if query and self._has_index:
            relevant = await self._similar(memory, user_id, thread_id, query)
        return {
            "short_term": memory.recent(),
            "relevant_messages": relevant,
            "memory_stats": memory.stats(),
        }

    def get_short_term_messages(
        self, user_id: str | None = None, thread_id: str = DEFAULT_THREAD
    ) -> list[BaseMessage]:
        """The kept messages of a conversation.

        Args:
            user_id: Whose. May be left out while there is one conversation only.
            thread_id: Which.

        Raises:
            ValueError: If it was left out and there are several.
        """
        if user_id is None:
            return self._conversations.only().recent()
        found = self._conversations.find(user_id, thread_id)
        return [] if found is None else found.recent()

    def clear(self, user_id: str | None = None, thread_id: str | None = None) -> None:
        """Forget all conversations, those of a user, or that of a user in one thread.

        The messages that are indexed in the store stay there: `aclear` removes those as well.

        Raises:
            ValueError: If a thread is given and no user.
        """
        if user_id is None:
            if thread_id is not None:
                raise ValueError("thread_id without a user_id: say whose conversation it is")
            self._conversations.clear()
        else:
            self._conversations.forget(user_id, thread_id)

    clear_short_term_memory = clear

    async def aclear(self, user_id: str | None = None, thread_id: str | None = None) -> None:
        """Forget conversations, with their messages that are indexed in the store."""
        self.clear(user_id, thread_id)
        store = self.get_store() if self._has_index else None
        if store is None:
            return
        ids = {"user_id": user_id, "thread_id": thread_id}
        labels = [_label(name, given) for name, given in ids.items() if given is not None]
        prefix = (SHORT_TERM, *labels)
        while found := await store.asearch(prefix, limit=1000):
            for item in found:
                await store.adelete(item.namespace, item.key)

    async def consolidate_memory(self) -> dict[str, Any]:
        """Let the importance of old messages fade, in all conversations.

        Returns:
            `short_term`: sums over all conversations; `timestamp`: when, ISO 8601.
        """
        told = [memory.consolidate() for memory in self._conversations.all()]
        count = sum(each["consolidated_messages"] for each in told)
        weight = sum(each["avg_importance"] * each["consolidated_messages"] for each in told)
        return {
            "short_term": {
                "consolidated_messages": count,
                "memory_items": count,
                "avg_importance": weight / count if count else 0.0,
            },
            "timestamp": datetime.now(UTC).isoformat(),
        }

    def get_memory_health(
        self, user_id: str | None = None, thread_id: str = DEFAULT_THREAD
    ) -> dict[str, Any]:
        """Counts and limits of one conversation, or of all of them together.

        Returns:
            The counts by kind of message, `config`, `memory_efficiency` (the part of the limits
            that is in use) and `average_importance`; over all, also `conversations`.
        """
        if user_id is None:
            return self._conversations.health()
        found = self._conversations.find(user_id, thread_id)
        return (found or ShortTermMemory(self.config)).health()

    def update_config(self, config: MemoryConfig | None = None, **changes: Any) -> MemoryConfig:
        """Change the limits of the conversations; those that are kept are trimmed to them.

        Args:
            config: The new configuration; or give its fields that change as keywords.
            **changes: Fields of `MemoryConfig`.

        Raises:
            pydantic.ValidationError: If a value is impossible; nothing has changed then.
        """
        if config is None:
            config = MemoryConfig(**{**dict(self.config), **changes})
        elif changes:
            raise TypeError("give either a MemoryConfig or its fields as keywords, not both")
        self._conversations.under(config)
        self.config = config
        return config

    # ------------------------------------------------------------------ the index

    async def _index(
        self,
        user_id: str,
        thread_id: str,
        messages: Sequence[BaseMessage],
        metadata: Mapping[str, Any] | None,
    ) -> None:
        store = self.get_store() if self._has_index else None
        if store is None:
            return
        namespace = _namespace(user_id, thread_id)
        for message in messages:
            text = str(message.text)
            if text.strip():
                value = {"text": text, "message": message, "metadata": dict(metadata or {})}
                await store.aput(namespace, message.id or uuid.uuid4().hex, value, index=["text"])

    async def _similar(
        self, memory: ShortTermMemory, user_id: str, thread_id: str, query: str
    ) -> list[BaseMessage]:
        """The most similar messages, and the last few of the conversation."""
        store = self.get_store()
        assert store is not None
        last = memory.recent(min(self.config.context_window_buffer, _RELEVANT // 2))
        found = await store.asearch(
            _namespace(user_id, thread_id), query=query, limit=_RELEVANT - len(last)
        )
        similar = [item.value["message"] for item in found]
        known = [(message.type, message.content) for message in last]
        return [m for m in similar if (m.type, m.content) not in known] + last


def _namespace(user_id: str, thread_id: str) -> tuple[str, ...]:
    return SHORT_TERM, _label("user_id", user_id), _label("thread_id", thread_id)


def _label(name: str, value: str) -> str:
    """An id as a label, which may not hold a period."""
    return quote(label_of(name, value), safe=" @:/+").replace(".", "%2E")
