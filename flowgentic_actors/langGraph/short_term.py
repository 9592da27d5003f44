"""`ShortTermMemory`: the memory of the conversation of one user in one thread."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from langchain_core.messages import BaseMessage

from flowgentic_actors.langGraph.conversation import Claim, Conversation
from flowgentic_actors.langGraph.entry import Entry
from flowgentic_actors.langGraph.relevance import relevant
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import Model, SummaryFailedError, summarize
from flowgentic_actors.langGraph.trimming import latest

logger = logging.getLogger(__name__)

_GRACE = 5.0  # seconds beyond its deadline in which a summary is still its maker's


class ShortTermMemory:
    """Remembers the conversation of one user in one thread.

    Everything but waiting for summaries happens at once, so many tasks may use it at the same time,
    in several event loops and threads: no message is lost or held twice. What it gives out are new
    lists of the messages themselves, which must not be changed.

    A tool call and its results are never separated, whatever is trimmed; results without their call
    are not kept.

    Args:
        config: Its limits, and what goes first. Default: `MemoryConfig()`.
        llm: What summarizes, if the configuration lets it: a chat model, or a runnable that takes
            messages and gives text. Default: nothing is summarized.
        clock: What tells the time, in seconds since 1970.
    """

    __slots__ = ("__weakref__", "_clock", "_llm", "_lock", "_now")

    def __init__(
        self,
        config: MemoryConfig | None = None,
        llm: Model | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._llm = llm
        self._clock = clock
        self._now = Conversation(config if config is not None else MemoryConfig(), llm is not None)
        self._lock = threading.Lock()

    @property
    def config(self) -> MemoryConfig:
        """The configuration; `configure` changes it."""
        return self._now.config

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The messages in order, with their times and importance."""
        return self._now.shown

    # ------------------------------------------------------------------ adding

    async def add(self, messages: Iterable[BaseMessage]) -> list[BaseMessage]:
        """Remember one interaction, and wait for the summary if one is due.

        The messages are remembered before it waits: cancelling it takes nothing back. While one
        task waits for a summary, others that add do not. If the summary fails or takes longer than
        `summarization_timeout`, what would be in it is let go.

        Args:
            messages: What was said, in order.

        Returns:
            The conversation as it is then.

        Raises:
            TypeError: If one of them is no message; nothing is remembered then.
        """
        self.add_nowait(messages)
        await self._summarize()
        return self.recent()

    def add_nowait(self, messages: Iterable[BaseMessage]) -> list[BaseMessage]:
        """Remember one interaction; a summary that is due waits for the next `add`.

        Raises:
            TypeError: As `add` does.
        """
        now, said = self._clock(), _checked(messages)
        _, after = self._change(lambda before: before.added(said, now))
        return _messages(after.shown)

    # ------------------------------------------------------------------ reading

    def recent(self, count: int | None = None) -> list[BaseMessage]:
        """The latest messages, in order.

        Args:
            count: How many; some more where that would separate a tool call from its results.
                Default: all.

        Raises:
            ValueError: If it is negative.
        """
        entries = self._now.shown
        return _messages(entries if count is None else latest(entries, _natural(count, "count")))

    def relevant(self, query: str | None = None, limit: int = 10) -> list[BaseMessage]:
        """The messages most relevant to a query, best first, then the last few.

        They are found by the words that they share with it, rare ones before common ones, weighed
        with importance and recency.

        Args:
            query: What to look for. Default: the latest messages are given, in order.
            limit: How many; some more where that would separate a tool call from its results.

        Raises:
            ValueError: If it is negative.
        """
        return _messages(relevant(self._now.shown, query, _natural(limit, "limit")))

    def stats(self) -> dict[str, int]:
        """`total_messages`, `interaction_count`, `system_messages`, `human_messages` and
        `ai_messages`, of which a summary is one.
        """
        return self._now.stats()

    def health(self) -> dict[str, Any]:
        """The `stats`; the `config`; the part of `max_short_term_messages` that is in use, as
        `memory_efficiency`; the `average_importance`, 0 when there is no message.
        """
        now = self._now
        return {
            **now.stats(),
            "config": now.config.model_dump(exclude={"token_counter"}),
            "memory_efficiency": len(now.shown) / now.config.max_short_term_messages,
            "average_importance": now.average_importance(),
        }

    # ------------------------------------------------------------------ upkeep

    def consolidate(self) -> dict[str, Any]:
        """Let the importance of the messages fade with age: to a half in twelve hours.

        Returns:
            `consolidated_messages` and `memory_items`, both how many there are, and
            `avg_importance`, 0 when there is none.
        """
        now = self._clock()
        _, after = self._change(lambda before: before.faded(now))
        return {
            "consolidated_messages": len(after.shown),
            "memory_items": len(after.shown),
            "avg_importance": after.average_importance(),
        }

    def clear(self) -> None:
        """Forget everything, a summary that is being made included."""
        self._change(lambda before: before.cleared())

    def configure(self, config: MemoryConfig) -> None:
        """Change the configuration; the conversation is trimmed if its limits are lower."""
        self._change(lambda before: before.under(config))

    # ------------------------------------------------------------------ keeping elsewhere

    def dump(self) -> dict[str, Any]:
        """The conversation as a plain dict of messages and numbers, for LangGraph's serializer."""
        return self._now.dump()

    @classmethod
    def load(
        cls,
        config: MemoryConfig | None,
        data: Mapping[str, Any],
        llm: Model | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Restore the conversation from a `dump`; it is trimmed if the limits are lower.

        Raises:
            ValueError: If that is not what `dump` gives.
        """
        memory = cls(config, llm, clock=clock)
        memory._now = memory._now.loaded(data)
        return memory

    # ------------------------------------------------------------------ changing

    def _change(
        self, change: Callable[[Conversation], Conversation]
    ) -> tuple[Conversation, Conversation]:
        """Replace the conversation by a changed one; returns both.

        When another thread was faster, the change is made again from there. No lock is held while
        it is made, and none across an await.
        """
        while True:
            before = self._now
            after = change(before)
            with self._lock:
                if self._now is before:
                    self._now = after
                    return before, after

    # ------------------------------------------------------------------ summarizing

    async def _summarize(self) -> None:
        """Fold the backlog into the summary, batch by batch, unless that is being done already."""
        if self._llm is None:
            return
        now = self._now
        timeout = now.config.summarization_timeout
        deadline = time.monotonic() + timeout
        # What others add meanwhile is for the next call: this one must come to an end.
        for _ in range(math.ceil(len(now.backlog) / now.config.summarization_batch_size)):
            before, after = self._change(
                lambda before: before.claimed(time.monotonic(), deadline + _GRACE)
            )
            if after is before or after.claim is None:
                return
            try:
                await self._fold(self._llm, after, after.claim, deadline)
            except SummaryFailedError as error:
                logger.warning("%s (setting: summarization_timeout=%s s)", error, timeout)
                return

    async def _fold(self, llm: Model, now: Conversation, claim: Claim, deadline: float) -> None:
        """Replace the summary by one that includes the claim's messages.

        Raises:
            SummaryFailedError: If that failed; what waited is let go, as many as the text says.
        """
        try:
            summary = await summarize(
                llm,
                now.summary.message if now.summary is not None else None,
                [entry.message for entry in claim.batch],
                timeout=deadline - time.monotonic(),
                config=now.config,
            )
            self._change(lambda before: before.folded(claim, summary, self._clock()))
        except SummaryFailedError as error:
            before, after = self._change(lambda before: before.given_up(claim))
            lost = len(before.backlog) - len(after.backlog)
            raise SummaryFailedError(
                f"{lost} messages are let go without a summary: {error}"
            ) from error
        except BaseException:  # cancelled, for one: the next to add does it
            self._change(lambda before: before.released(claim))
            raise


def _checked(messages: Iterable[object]) -> list[BaseMessage]:
    said = []
    for at, message in enumerate(messages):
        if not isinstance(message, BaseMessage):
            raise TypeError(
                f"messages[{at}] is a {type(message).__name__} and no LangChain message: give a "
                "list of messages (langchain_core.messages.convert_to_messages makes them)"
            )
        said.append(message)
    return said


def _messages(entries: Iterable[Entry]) -> list[BaseMessage]:
    return [entry.message for entry in entries]


def _natural(number: int, name: str) -> int:
    if number < 0:
        raise ValueError(f"{name} is {number}: it must be 0 or more")
    return number
