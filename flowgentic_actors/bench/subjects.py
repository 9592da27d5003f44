"""Subjects: one kind of memory, and graphs that were compiled with it."""

from __future__ import annotations

import operator
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeAlias, TypedDict

from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Send

FAN_OUT: Final = 100
"""Tasks that the fan-out graph has in one step."""

Message: TypeAlias = dict[str, Any]


class Written(NamedTuple):
    """Counter of the bytes that a memory was sent, or has written, so far.

    Attributes:
        total: Counts them.
        delay: Seconds after which what was written is counted.
        what: What is counted.
    """

    total: Callable[[], Awaitable[int]]
    delay: float
    what: str


class ConversationState(TypedDict):
    """The state of the benchmark's graph: every checkpoint has the whole list."""

    messages: Annotated[list[Message], operator.add]


def _extend(state: list[Message], writes: Sequence[list[Message]]) -> list[Message]:
    return [*state, *(message for write in writes for message in write)]


class DeltaConversation(TypedDict):
    """The state with LangGraph's delta channel: a checkpoint has what was added."""

    messages: Annotated[list[Message], DeltaChannel(_extend)]


class Crowd(TypedDict):
    """The state of the graph that fans out."""

    jobs: int
    results: Annotated[list[int], operator.add]


Graph: TypeAlias = CompiledStateGraph[ConversationState, None, ConversationState, ConversationState]
DeltaGraph: TypeAlias = CompiledStateGraph[
    DeltaConversation, None, DeltaConversation, DeltaConversation
]
FanGraph: TypeAlias = CompiledStateGraph[Crowd, None, Crowd, Crowd]


class Subject(NamedTuple):
    """One kind of memory, open.

    Attributes:
        saver: Its checkpointer.
        store: Its store.
        graph: Three nodes in a row, each adds one message.
        delta: The graph over a delta channel.
        fan: One step with `FAN_OUT` tasks.
        durability: What survives what, as the memory itself tells where it can.
        flat: Whether its store is only measured with namespaces of one label.
        written: Counts what it wrote down; None where there is no such thing.
    """

    saver: BaseCheckpointSaver[Any]
    store: BaseStore
    graph: Graph
    delta: DeltaGraph
    fan: FanGraph
    durability: str
    flat: bool
    written: Written | None


class Raw(Protocol):
    """A memory of bytes only, which times its operations itself."""

    @property
    def durability(self) -> str:
        """A description of its durability."""

    async def times(self, kind: str, size: int, count: int) -> list[float]:
        """Time a number of `put` or `get` operations with values of a size."""


def subject(
    saver: BaseCheckpointSaver[Any],
    store: BaseStore,
    durability: str = "none",
    *,
    flat: bool = False,
    written: Written | None = None,
) -> Subject:
    """Compile the benchmark's graphs with this memory."""
    steps = StateGraph(ConversationState)
    deltas = StateGraph(DeltaConversation)
    for builder, reply in ((steps, _reply), (deltas, _delta_reply)):
        for name in ("plan", "work", "answer"):
            builder.add_node(name, reply)
        builder.add_edge(START, "plan")
        builder.add_edge("plan", "work")
        builder.add_edge("work", "answer")
    crowd = StateGraph(Crowd)
    crowd.add_node("job", _job)
    crowd.add_conditional_edges(START, _hand_out, ["job"])
    crowd.add_edge("job", END)
    return Subject(
        saver,
        store,
        steps.compile(checkpointer=saver, store=store),
        deltas.compile(checkpointer=saver, store=store),
        crowd.compile(checkpointer=saver, store=store),
        durability,
        flat,
        written,
    )


def messages(count: int, characters: int) -> list[Message]:
    """A conversation as chat models leave it: `count` messages with so many characters each."""
    return [
        {
            # Not "type" or "role": in delta channels LangGraph makes message objects of such.
            "sender": ("human", "ai", "tool")[index % 3],
            "id": f"{index:032x}",
            "content": text(characters, index * characters),
            "additional_kwargs": {},
            "response_metadata": {"model": "m-1", "usage": {"input": 1200 + index, "output": 80}},
        }
        for index in range(count)
    ]


@cache
def _words() -> str:
    """Made-up words, which a database compresses like a real text."""
    chance = random.Random(0)  # noqa: S311 - the same ones in every run
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(2000)]
    return 2 * " ".join(chance.choices(words, k=12_000))


def text(characters: int, start: int = 0) -> str:
    """Made-up text of a length, different for another start."""
    words = _words()
    at = start % (len(words) // 2)
    return words[at : at + characters]


(_REPLY,) = messages(1, 100)


async def _reply(state: ConversationState) -> dict[str, list[Message]]:
    count, last = len(state["messages"]), state["messages"][-1]
    return {"messages": [{**_REPLY, "content": text(100, 100 * count), "parent_id": last["id"]}]}


async def _delta_reply(state: DeltaConversation) -> dict[str, list[Message]]:
    return await _reply({"messages": state["messages"]})


def _hand_out(state: Crowd) -> list[Send]:
    return [Send("job", {"jobs": number}) for number in range(state["jobs"])]


async def _job(state: Crowd) -> dict[str, list[int]]:
    return {"results": [state["jobs"]]}
