"""The state of one conversation, and its changes. No I/O, no clock."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from flowgentic_actors.langGraph.entry import Entry, aged, entry_of
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.trimming import (
    Entries,
    cut_for_summary,
    fits,
    trim,
    with_summary,
    without_orphans,
)

logger = logging.getLogger(__name__)

_VERSION = 1
_BACKLOG = 100  # batches that may wait to be summarized


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A claim on the first messages of the backlog: they are being summarized.

    Attributes:
        batch: These messages.
        until: When it runs out by itself, as its owner may be in an event loop that was stopped.
    """

    batch: Entries
    until: float


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """The immutable state of a conversation; a change makes another one.

    Attributes:
        config: Its limits, and what goes first.
        has_model: There is a model for summaries.
        entries: What is remembered, in order and within the limits.
        summary: What is known of what was there before.
        interactions: How often something was added.
        backlog: What was cut off and is not in the summary yet, in order.
        claim: Who makes that summary.
    """

    config: MemoryConfig
    has_model: bool
    entries: Entries = ()
    summary: Entry | None = None
    interactions: int = 0
    backlog: Entries = ()
    claim: Claim | None = None

    @property
    def shown(self) -> Entries:
        """The visible messages: with the summary, unless the limits forbid that now.

        Of a long message and a summary, the message is shown; the summary comes back after it.
        """
        if self.summary is None or not fits(self.entries, self.summary, self.config):
            return self.entries
        return with_summary(self.entries, self.summary)

    # ------------------------------------------------------------------ growing and fading

    def added(self, messages: Iterable[BaseMessage], now: float) -> Conversation:
        """The conversation after one more interaction, within the limits."""
        fresh = tuple(entry_of(message, now, self.config) for message in messages)
        entries = self.entries + fresh
        if any(isinstance(entry.message, ToolMessage) for entry in fresh):
            entries = without_orphans(entries)
        after = replace(self, entries=entries, interactions=self.interactions + 1)
        if after.interactions % self.config.memory_update_threshold == 0:
            after = after.faded(now)
        return after.settled()

    def cleared(self) -> Conversation:
        """The conversation without any content or claim."""
        return Conversation(self.config, self.has_model)

    def under(self, config: MemoryConfig) -> Conversation:
        """The conversation with another configuration, within its limits."""

        def counted(entry: Entry) -> Entry:
            return replace(entry, tokens=config.count_tokens(entry.message))

        after = replace(
            self,
            config=config,
            entries=tuple(map(counted, self.entries)),
            summary=self.summary and counted(self.summary),
            backlog=tuple(map(counted, self.backlog)),
            claim=None,  # its summary would be made by the old rules: it is made again
        )
        return after.settled()

    def faded(self, now: float) -> Conversation:
        """The conversation with the importance of all messages at a given time."""
        entries = tuple(aged(entry, now) for entry in self.entries)
        return replace(self, entries=entries, summary=self.summary and aged(self.summary, now))

    def settled(self) -> Conversation:
        """The conversation cut to its limits; the rest goes to the backlog, for a summary."""
        config = self.config
        summarizes = self.has_model and config.summarizes
        cut = cut_for_summary(self.entries, self.summary, config) if summarizes else None
        if cut is not None:
            backlog, claim = self._bounded(self.backlog + cut.gone), self.claim
        else:
            cut, backlog, claim = trim(self.entries, self.summary, config), (), None
        if cut.gone and all(entry.is_system for entry in cut.kept):
            logger.warning(
                "Nothing of a conversation is kept but %d system messages: they leave no room, or "
                "the latest message is too large by itself. Raise max_short_term_messages (%d) or "
                "max_tokens (%s), or add less",
                len(cut.kept),
                config.max_short_term_messages,
                config.max_tokens,
            )
        return replace(self, entries=cut.kept, backlog=backlog, claim=claim)

    def _bounded(self, backlog: Entries) -> Entries:
        """The backlog without its oldest unclaimed messages, where it is too long."""
        extra = len(backlog) - _BACKLOG * self.config.summarization_batch_size
        if extra <= 0:
            return backlog
        logger.warning(
            "%d messages are let go without a summary: more come than the model can summarize. "
            "Raise summarization_batch_size (%d)",
            extra,
            self.config.summarization_batch_size,
        )
        held = len(self.claim.batch) if self.claim is not None else 0
        return backlog[:held] + backlog[held + extra :]

    # ------------------------------------------------------------------ summaries

    def claimed(self, now: float, until: float) -> Conversation:
        """The conversation with a claim on the first batch; itself if there is none to claim."""
        if not self.backlog or (self.claim is not None and self.claim.until > now):
            return self
        batch = self.backlog[: self.config.summarization_batch_size]
        return replace(self, claim=Claim(batch, until))

    def released(self, claim: Claim) -> Conversation:
        """The conversation without the claim, if it is still valid; its messages stay."""
        return replace(self, claim=None) if self.claim is claim else self

    def given_up(self, claim: Claim) -> Conversation:
        """The conversation without the backlog, if the claim is still valid."""
        return replace(self, claim=None, backlog=()) if self.claim is claim else self

    def folded(self, claim: Claim, summary: BaseMessage, now: float) -> Conversation:
        """The conversation with a new summary in place of the claim's messages, if it is valid."""
        if self.claim is not claim:
            return self
        after = replace(
            self,
            summary=entry_of(summary, now, self.config),
            backlog=self.backlog[len(claim.batch) :],
            claim=None,
        )
        return after.settled()

    # ------------------------------------------------------------------ figures

    def stats(self) -> dict[str, int]:
        """The number of messages by kind; the summary counts as one of the AI's."""

        def count(kind: type[BaseMessage]) -> int:
            return sum(isinstance(entry.message, kind) for entry in shown)

        shown = self.shown
        return {
            "total_messages": len(shown),
            "interaction_count": self.interactions,
            "system_messages": count(SystemMessage),
            "human_messages": count(HumanMessage),
            "ai_messages": count(AIMessage),
        }

    def average_importance(self) -> float:
        """The mean importance of the messages; 0 when there is none."""
        shown = self.shown
        return sum(entry.importance for entry in shown) / len(shown) if shown else 0.0

    # ------------------------------------------------------------------ keeping elsewhere

    def dump(self) -> dict[str, Any]:
        """The state as messages, numbers, and plain lists and dicts of them, for `loaded`."""
        return {
            "version": _VERSION,
            "interactions": self.interactions,
            "entries": [_dumped(entry) for entry in self.entries],
            "summary": self.summary and _dumped(self.summary),
            "backlog": [_dumped(entry) for entry in self.backlog],
        }

    def loaded(self, data: Mapping[str, Any]) -> Conversation:
        """The conversation with dumped content in place of its own, within the limits.

        Raises:
            ValueError: If that is not what `dump` gives.
        """
        try:
            if data["version"] != _VERSION:
                raise ValueError(f"its version is {data['version']!r}, not {_VERSION}")
            after = replace(
                self.cleared(),
                entries=without_orphans(tuple(map(_loaded, data["entries"]))),
                summary=data["summary"] and _loaded(data["summary"]),
                interactions=int(data["interactions"]),
                backlog=tuple(map(_loaded, data["backlog"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no conversation that this version can load: {error!r}. Give what dump() "
                "gave, or begin a new one"
            ) from error
        return after.under(self.config)


def _dumped(entry: Entry) -> dict[str, Any]:
    return {"message": entry.message, "when": entry.when, "importance": entry.importance}


def _loaded(data: Mapping[str, Any]) -> Entry:
    message = data["message"]
    if not isinstance(message, BaseMessage):
        raise TypeError(f"a {type(message).__name__} where a message should be")
    return Entry(message, when=float(data["when"]), importance=float(data["importance"]))
