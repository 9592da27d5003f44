"""A message of a conversation with its time and importance."""

from __future__ import annotations

from dataclasses import dataclass, replace

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from flowgentic_actors.langGraph.short_term_config import MemoryConfig

_LONG = 1000  # characters of a text that can hardly say more by being longer
_FADING = 24.0  # hours in which a message would fade to nothing, if it did not stop at a half
_FADED = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """A remembered message.

    Attributes:
        message: The message itself, which must not be changed any more.
        when: When it came, in seconds since 1970.
        importance: What it weighs, as of the last consolidation: 0.5 to 3.
        tokens: What it takes of `max_tokens`; 0 where tokens are not limited.
    """

    message: BaseMessage
    when: float
    importance: float
    tokens: int = 0

    @property
    def is_system(self) -> bool:
        """Whether the message is a system message, which stays when others are removed."""
        return isinstance(self.message, SystemMessage)


def entry_of(message: BaseMessage, when: float, config: MemoryConfig) -> Entry:
    """Make the entry of a new message."""
    return Entry(message, when, rate(message), config.count_tokens(message))


def rate(message: BaseMessage) -> float:
    """The importance of a new message: 1 to 3, by its kind and its length."""
    if isinstance(message, SystemMessage):
        weight = 2.0
    elif isinstance(message, AIMessage) and message.tool_calls:
        weight = 1.5
    elif isinstance(message, HumanMessage):
        weight = 1.2
    else:
        weight = 1.0
    return weight + min(len(message.text) / _LONG, 1.0)


def aged(entry: Entry, now: float) -> Entry:
    """The entry with its importance at a given time (seconds since 1970).

    It depends on the age alone, so consolidating often does not make anything fade faster.
    """
    hours = max(0.0, now - entry.when) / 3600
    importance = rate(entry.message) * max(_FADED, 1.0 - hours / _FADING)
    return entry if importance == entry.importance else replace(entry, importance=importance)


def text_of(message: BaseMessage) -> str:
    """The text of a message, with the names and arguments of its tool calls."""
    parts = [str(message.text)]
    if isinstance(message, AIMessage):
        parts += [f"{call['name']} {call['args']}" for call in message.tool_calls]
    return " ".join(part for part in parts if part)
