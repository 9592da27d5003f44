"""Trimming of conversations that are too long: pure functions, one for each strategy.

A tool call and its results are one exchange, which is kept or let go as a whole: a model refuses a
conversation in which one is without the other. LangChain's `trim_messages` cuts at a place and can
make sure what kind of message stands there, which is not enough for cuts in the middle, for calls
whose results are late, or for more than one system message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, ToolMessage

from flowgentic_actors.langGraph.entry import Entry
from flowgentic_actors.langGraph.short_term_config import MemoryConfig

Entries = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message, or a message that calls tools together with their results.

    Attributes:
        places: Where its messages stand in the conversation, ascending.
        tokens: What they take of `max_tokens`.
        importance: That of the most important one.
        is_system: It is a system message, which stays when others go.
    """

    places: tuple[int, ...]
    tokens: int
    importance: float
    is_system: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """A trimmed conversation, and the messages that were cut, both in order."""

    kept: Entries
    gone: Entries = ()


class _Room:
    """The remaining room: messages and tokens."""

    def __init__(self, messages: int, tokens: float) -> None:
        self.messages = messages
        self.tokens = tokens

    def holds(self, exchange: Exchange) -> bool:
        return len(exchange.places) <= self.messages and exchange.tokens <= self.tokens

    def take(self, exchange: Exchange) -> bool:
        """Keep the exchange, if there is room for it."""
        if not self.holds(exchange):
            return False
        self.messages -= len(exchange.places)
        self.tokens -= exchange.tokens
        return True

    def less(self, summary: int, found: Sequence[Exchange]) -> _Room:
        """The room beside a summary of so many tokens, which yields to the latest exchange."""
        rest = _Room(self.messages - 1, self.tokens - summary)
        if found and self.holds(found[-1]) and not rest.holds(found[-1]):
            return self
        return rest


# ---------------------------------------------------------------------- exchanges


def exchanges(entries: Sequence[Entry]) -> list[Exchange]:
    """The exchanges of a conversation, by their last message; without orphaned results.

    A result belongs to the latest call of its id: some models count their calls from 1 each time.
    """
    places: dict[int, list[int]] = {}
    callers: dict[str | None, int] = {}
    for place, entry in enumerate(entries):
        message = entry.message
        if isinstance(message, ToolMessage):
            if (caller := callers.get(message.tool_call_id)) is not None:
                places[caller].append(place)
            continue
        places[place] = [place]
        if isinstance(message, AIMessage):
            calls = (*message.tool_calls, *message.invalid_tool_calls)
            callers.update((call["id"], place) for call in calls)
    found = [_exchange(entries, where) for where in places.values()]
    return sorted(found, key=lambda exchange: exchange.places[-1])


def _exchange(entries: Sequence[Entry], places: list[int]) -> Exchange:
    if len(places) == 1:  # most are: this is what adding a message spends its time on
        entry = entries[places[0]]
        return Exchange((places[0],), entry.tokens, entry.importance, entry.is_system)
    members = [entries[place] for place in places]
    return Exchange(
        tuple(places),
        sum(entry.tokens for entry in members),
        max(entry.importance for entry in members),
        members[0].is_system,
    )


def without_orphans(entries: Entries) -> Entries:
    """The conversation without results whose call is not in it."""
    places = sorted(place for exchange in exchanges(entries) for place in exchange.places)
    return entries if len(places) == len(entries) else tuple(entries[place] for place in places)


def latest(entries: Entries, count: int) -> Entries:
    """The last messages of a conversation: `count`, or more where that would cut an exchange."""
    start = max(0, len(entries) - count)
    for exchange in sorted(exchanges(entries), key=lambda exchange: -exchange.places[0]):
        if exchange.places[0] < start <= exchange.places[-1]:
            start = exchange.places[0]
    return entries[start:]


# ---------------------------------------------------------------------- cutting


def fits(entries: Entries, summary: Entry | None, config: MemoryConfig) -> bool:
    """Whether a conversation is within both limits, together with its summary if it has one."""
    messages, tokens = len(entries), _tokens(entries)
    if summary is not None:
        messages, tokens = messages + 1, tokens + summary.tokens
    return messages <= config.max_short_term_messages and tokens <= config.token_limit


def trim(entries: Entries, summary: Entry | None, config: MemoryConfig) -> Cut:
    """Cut a conversation down to its limits, if it is beyond them.

    System messages come first then, each once. The others keep their order. An exchange that is
    larger than the whole room by itself is let go, whichever it is.
    """
    if fits(entries, summary, config):
        return Cut(entries)
    systems = _systems(entries)
    found = [exchange for exchange in exchanges(entries) if not exchange.is_system]
    room = _beside(systems, config)
    if summary is not None:
        room = room.less(summary.tokens, found)
    found = [exchange for exchange in found if room.holds(exchange)]
    if config.short_term_strategy == "trim_middle":
        chosen = _both_ends(found, room)
    elif config.short_term_strategy == "importance_based":
        chosen = _weightiest(found, room, config.context_window_buffer)
    else:
        chosen = _newest(found, room)
    return _cut(entries, systems, chosen)


def cut_for_summary(entries: Entries, summary: Entry | None, config: MemoryConfig) -> Cut | None:
    """Cut a conversation so that there is room for a summary of the messages that are cut.

    Whole batches go, so that a model need not be asked with each message, but half of the room
    stays filled, and the latest exchange stays if there is room for it at all.

    Returns:
        None if the system messages leave no room for a summary and a message.
    """
    if fits(entries, summary, config):
        return Cut(entries)
    systems = _systems(entries)
    found = [exchange for exchange in exchanges(entries) if not exchange.is_system]
    whole = _beside(systems, config)
    if whole.messages < 2:
        return None
    while found and not whole.holds(found[-1]):
        del found[-1]
    if not found:
        return _cut(entries, systems, found)
    taken = summary.tokens if summary is not None else 0
    room = whole.less(max(config.summary_tokens, taken), found)
    there = sum(len(exchange.places) for exchange in found)
    batches = max(1, math.ceil((there - room.messages) / config.summarization_batch_size))
    messages = max(room.messages // 2, there - batches * config.summarization_batch_size)
    is_long = _tokens(entries) + taken > config.token_limit
    tokens = room.tokens / 2 if is_long else room.tokens
    last = found[-1]
    room = _Room(max(messages, len(last.places)), max(tokens, last.tokens))
    return _cut(entries, systems, _newest(found, room))


def with_summary(entries: Entries, summary: Entry) -> Entries:
    """The conversation with a summary after its leading system messages."""
    start = next((at for at, entry in enumerate(entries) if not entry.is_system), len(entries))
    return (*entries[:start], summary, *entries[start:])


def _cut(entries: Entries, systems: Entries, chosen: Iterable[Exchange]) -> Cut:
    places = {place for exchange in chosen for place in exchange.places}
    kept = tuple(entry for place, entry in enumerate(entries) if place in places)
    gone = tuple(
        entry for place, entry in enumerate(entries) if place not in places and not entry.is_system
    )
    return Cut(systems + kept, gone)


def _tokens(entries: Entries) -> int:
    return sum(entry.tokens for entry in entries)


def _systems(entries: Entries) -> Entries:
    """The system messages, each once, since a prompt may be added with every turn."""
    systems: dict[str, Entry] = {}
    for entry in entries:
        if entry.is_system:
            systems.setdefault(repr(entry.message.content), entry)
    return tuple(systems.values())


def _beside(systems: Entries, config: MemoryConfig) -> _Room:
    return _Room(
        config.max_short_term_messages - len(systems), config.token_limit - _tokens(systems)
    )


# ---------------------------------------------------------------------- strategies


def _newest(found: Sequence[Exchange], room: _Room) -> list[Exchange]:
    chosen: list[Exchange] = []
    for exchange in reversed(found):
        if not room.take(exchange):
            break
        chosen.append(exchange)
    return chosen


def _both_ends(found: Sequence[Exchange], room: _Room) -> list[Exchange]:
    """Select alternately from the end and from the beginning, the end first."""
    chosen: list[Exchange] = []
    first, end = 0, len(found)
    at_start = at_end = 0
    while first < end:
        from_end = at_end <= at_start
        exchange = found[end - 1] if from_end else found[first]
        if not room.take(exchange):
            return chosen + _newest(found[first:end], room)
        chosen.append(exchange)
        if from_end:
            end -= 1
            at_end += len(exchange.places)
        else:
            first += 1
            at_start += len(exchange.places)
    return chosen


def _weightiest(found: Sequence[Exchange], room: _Room, buffer: int) -> list[Exchange]:
    """Select the latest, in at most half of the room, then the most important ones."""
    chosen = _newest(found, _Room(min(buffer, room.messages // 2), room.tokens / 2))
    for exchange in chosen:
        room.take(exchange)
    others = found[: len(found) - len(chosen)]
    ranked = sorted(others, key=lambda each: (-each.importance, -each.places[-1]))
    return chosen + [exchange for exchange in ranked if room.take(exchange)]
