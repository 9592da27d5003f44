"""Messages, and memories of conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableLambda

from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig


def humans(*texts: str) -> list[BaseMessage]:
    return [HumanMessage(text) for text in texts]


def texts(messages: Iterable[BaseMessage]) -> list[str]:
    return [str(message.text) for message in messages]


def calling(*ids: str, text: str = "") -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": "look", "args": {}, "id": each} for each in ids])


def result(id_: str, text: str = "found") -> ToolMessage:
    return ToolMessage(text, tool_call_id=id_)


class Notes:
    """A model that summarizes, and remembers what it was asked."""

    def __init__(self, answer: Callable[[], Any] = lambda: "notes") -> None:
        self.answer = answer
        self.asked: list[tuple[str, list[str]]] = []
        self.begun = asyncio.Event()

    async def reply(self, prompt: list[BaseMessage]) -> Any:
        asked = str(prompt[-1].text)
        notes, _, rest = asked.removeprefix("<notes>\n").partition("\n</notes>\n<messages>\n")
        lines = rest.removesuffix("\n</messages>").split("\n")
        shown = [line.partition(": ")[2].partition(" look {}")[0] for line in lines]
        self.asked.append((notes, shown))
        self.begun.set()
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer

    @property
    def model(self) -> Runnable[Any, Any]:
        return RunnableLambda(self.reply)

    @property
    def folded(self) -> list[str]:
        return [text for _, shown in self.asked for text in shown]


def summarizing(limit: int, batch: int = 10, **more: Any) -> MemoryConfig:
    return MemoryConfig(
        max_short_term_messages=limit,
        short_term_strategy="summarize",
        summarization_batch_size=batch,
        enable_summarization=True,
        **more,
    )


# ---------------------------------------------------------------------- properties


def turn_of(kind: str, number: int, size: int) -> list[BaseMessage]:
    """One turn of a conversation whose messages can be told apart."""
    text = f"t{number}" + "x" * size * 9
    if kind == "system":
        return [SystemMessage(text)]
    if kind == "human":
        return [HumanMessage(text)]
    if kind == "ai":
        return [AIMessage(text)]
    ids = [f"c{number}.{each}" for each in range(size + 1)]
    results: list[BaseMessage] = [result(each, f"t{number} {each}") for each in ids]
    if kind == "orphan":
        return results
    if kind == "interrupted":
        return [calling(*ids, text=text), HumanMessage(f"wait {number}"), *results]
    return [calling(*ids, text=text), *results]


@st.composite
def conversations(draw: st.DrawFn) -> list[list[BaseMessage]]:
    """Messages as they are added: turns, cut anywhere into interactions."""
    kinds = st.sampled_from(["human", "ai", "human", "ai", "tools", "interrupted", "orphan"])
    turns = draw(st.lists(st.tuples(kinds, st.integers(0, 4)), max_size=25))
    said = [message for at, (kind, size) in enumerate(turns) for message in turn_of(kind, at, size)]
    for at in draw(st.lists(st.integers(0, len(said)), max_size=3)):
        said[at:at] = turn_of("system", 100 + at + len(said), 1)
    cuts = sorted(draw(st.sets(st.integers(0, len(said)), max_size=8)) | {0, len(said)})
    return [said[start:end] for start, end in pairwise(cuts)]


# ---------------------------------------------------------------------- strategies


def kept(strategy: Any, limit: int, messages: list[BaseMessage], **more: Any) -> list[str]:
    config = MemoryConfig(max_short_term_messages=limit, short_term_strategy=strategy, **more)
    return texts(ShortTermMemory(config).add_nowait(messages))


# ---------------------------------------------------------------------- summaries


async def hang() -> str:
    await asyncio.sleep(60)
    return "too late"
