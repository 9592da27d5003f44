"""`ShortTermMemories`: the conversations of all users and threads, each by itself."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self
from uuid import UUID
from weakref import WeakValueDictionary

from flowgentic_actors.adapters.ids import text_of
from flowgentic_actors.engine.limits import check_text
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import Model

logger = logging.getLogger(__name__)

DEFAULT_THREAD = "default"

_Key = tuple[str, str]


class ShortTermMemories:
    """The conversations that this process remembers, by user and thread.

    Of one user and thread there is one conversation only, as long as it is used. It may be
    used by many tasks, in several event loops and threads, at the same time.

    Args:
        config: The configuration of each. Default: `MemoryConfig()`.
        llm: What summarizes, if the configuration lets it.
        max_conversations: How many are kept in this process. Beyond that, the one goes that was not
            asked for longest, unless it is still in use.
        clock: What tells the time, in seconds since 1970.

    Raises:
        ValueError: If `max_conversations` is less than 1.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        llm: Model | None = None,
        *,
        max_conversations: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_conversations < 1:
            raise ValueError(f"max_conversations is {max_conversations}: it must be 1 or more")
        self._config = config if config is not None else MemoryConfig()
        self._llm = llm
        self._most = max_conversations
        self._clock = clock
        self._kept: OrderedDict[_Key, ShortTermMemory] = OrderedDict()
        # Who goes on with a conversation that is kept no more, and who asks for it anew, must meet.
        self._alive: WeakValueDictionary[_Key, ShortTermMemory] = WeakValueDictionary()
        self._lock = threading.Lock()
        if self._config.summarizes and llm is None:
            logger.warning("short_term_strategy='summarize' has no llm: it trims like 'trim_last'")

    @property
    def config(self) -> MemoryConfig:
        """The configuration of each conversation."""
        return self._config

    def __len__(self) -> int:
        """The number of kept conversations."""
        return len(self._kept)

    def of(self, user_id: str, thread_id: str = DEFAULT_THREAD) -> ShortTermMemory:
        """Return the conversation of a user in a thread; an empty one if there is none yet.

        Raises:
            TypeError: If an id is no string and no UUID.
            ValueError: If an id is empty.
        """
        key = _key(user_id, thread_id)
        with self._lock:
            memory = self._alive.get(key)
            if memory is None:
                memory = ShortTermMemory(self._config, self._llm, clock=self._clock)
            return self._keep(key, memory)

    def find(self, user_id: str, thread_id: str = DEFAULT_THREAD) -> ShortTermMemory | None:
        """The conversation of a user in a thread; None if there is none."""
        key = _key(user_id, thread_id)
        with self._lock:
            memory = self._alive.get(key)
            return memory if memory is None else self._keep(key, memory)

    def adopt(
        self, memory: ShortTermMemory, user_id: str, thread_id: str = DEFAULT_THREAD
    ) -> ShortTermMemory:
        """Keep a conversation that was loaded, unless there is one already.

        Returns:
            The one that is kept: of several that load the same one, all go on with the first.
        """
        key = _key(user_id, thread_id)
        with self._lock:
            there = self._alive.get(key)
            return self._keep(key, memory if there is None else there)

    def only(self) -> ShortTermMemory:
        """The only conversation; an empty one that is not kept if there is none.

        Raises:
            ValueError: If there are several.
        """
        there = self.all()
        if len(there) > 1:
            raise ValueError(
                f"there are {len(there)} conversations: say which one (user_id and thread_id)"
            )
        return there[0] if there else ShortTermMemory(self._config, self._llm, clock=self._clock)

    def all(self) -> list[ShortTermMemory]:
        """All kept conversations, least recently used first."""
        with self._lock:
            return list(self._kept.values())

    def threads(self, user_id: str) -> list[str]:
        """The threads of a user whose conversations are kept, sorted."""
        user_id = label_of("user_id", user_id)
        with self._lock:
            return sorted(thread for user, thread in self._kept if user == user_id)

    def forget(self, user_id: str, thread_id: str | None = None) -> None:
        """Clear a user's conversation in a thread, or in all of them, and keep it no more."""
        user_id = label_of("user_id", user_id)
        if thread_id is not None:
            thread_id = label_of("thread_id", thread_id)
        self._forget(lambda key: key[0] == user_id and thread_id in (None, key[1]))

    def clear(self) -> None:
        """Forget all conversations."""
        self._forget(lambda _: True)

    def under(self, config: MemoryConfig) -> Self:
        """Set another configuration for each conversation, which is trimmed to it.

        Returns:
            These conversations themselves.
        """
        with self._lock:
            self._config = config
            there = list(self._alive.values())
        for memory in there:
            memory.configure(config)
        return self

    def health(self) -> dict[str, Any]:
        """The figures of all that are kept: `conversations`, how many; the sums of their `stats`;
        the `config`; the part of their limits that is in use, as `memory_efficiency`; the
        `average_importance` of their messages.
        """
        told = [memory.health() for memory in self.all()]
        sums = {name: sum(each[name] for each in told) for name in ShortTermMemory().stats()}
        messages = sums["total_messages"]
        weight = sum(each["average_importance"] * each["total_messages"] for each in told)
        room = self._config.max_short_term_messages * len(told)
        return {
            "conversations": len(told),
            **sums,
            "config": self._config.model_dump(exclude={"token_counter"}),
            "memory_efficiency": messages / room if room else 0.0,
            "average_importance": weight / messages if messages else 0.0,
        }

    def _forget(self, those: Callable[[_Key], bool]) -> None:
        with self._lock:
            found = [(key, memory) for key, memory in self._alive.items() if those(key)]
            for key, memory in found:
                self._kept.pop(key, None)
                memory.clear()

    def _keep(self, key: _Key, memory: ShortTermMemory) -> ShortTermMemory:
        self._alive[key] = memory
        self._kept[key] = memory
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return memory


def label_of(name: str, value: object) -> str:
    """The id of a user or a thread as text.

    Args:
        name: Its name.
        value: Text, or a `uuid.UUID`.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is empty, or holds half of a surrogate pair.
    """
    if not isinstance(value, str | UUID):
        raise TypeError(f"{name} is a {type(value).__name__}: it must be a string")
    text = text_of(name, value)
    if not text:
        raise ValueError(f"{name} is empty: conversations without a name would be mixed")
    return check_text(name, text)


def _key(user_id: object, thread_id: object) -> _Key:
    return label_of("user_id", user_id), label_of("thread_id", thread_id)
