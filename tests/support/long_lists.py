"""Conversations whose lists grow, and a client that notes what is sent of them."""

from __future__ import annotations

import operator
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypedDict

import msgspec
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import Command, PutCheckpoint
from flowgentic_actors.engine.replies import Reply
from tests.support.faces import SaverFace


class Talk(TypedDict, total=False):
    """A conversation, a list that does not change, and one that grows by plain addition."""

    messages: Annotated[list[AnyMessage], add_messages]
    sources: list[str]
    log: Annotated[list[dict[str, Any]], operator.add]


class Messages(TypedDict, total=False):
    """A conversation that others have."""

    messages: Annotated[list[AnyMessage], add_messages]


def conversation(checkpointer: Any) -> Any:
    """Two nodes that answer what they are asked."""
    builder = StateGraph(Talk)

    def node(name: str) -> Any:
        def run(state: Talk) -> Talk:
            number = len(state["messages"])
            said = AIMessage(f"{name} says {number} " + "word " * 40, id=f"{name}-{number}")
            return {"messages": [said], "log": [{"node": name, "n": number, "pad": "x" * 100}]}

        return run

    for name in ("a", "b"):
        builder.add_node(name, node(name))
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    return builder.compile(checkpointer=checkpointer)


def question(number: int) -> Talk:
    return {"messages": [HumanMessage(f"question {number} " + "why " * 40, id=f"q-{number}")]}


def channel_values(found: CheckpointTuple) -> dict[str, Any]:
    return found.checkpoint["channel_values"]


def notes(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Items of a list, some 1 KB each."""
    return [{"id": n, "text": f"{n} " + "note " * 200} for n in range(start, start + count)]


class Recording:
    """A client that notes the size of what it sends, and may fail."""

    def __init__(self, saver: AsyncCheckpointSaver) -> None:
        self._client = saver._client
        self.table: SlotTable = self._client.table
        self.sent: list[int] = []
        self.fails = False

    def shard_of(self, command: Command) -> int:
        return self._client.shard_of(command)

    def ask(self, command: Command) -> Coroutine[Any, Any, Reply]:
        self._note(command)
        return self._client.ask(command)

    async def ask_each(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        for _, command in asks:
            self._note(command)
        return await self._client.ask_each(asks)

    def ask_sync(self, command: Command) -> Reply:
        self._note(command)
        return self._client.ask_sync(command)

    def ask_each_sync(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        for _, command in asks:
            self._note(command)
        return self._client.ask_each_sync(asks)

    def _note(self, command: Command) -> None:
        if self.fails:
            raise ConnectionError("no luck")
        if isinstance(command, PutCheckpoint):
            self.sent.append(len(msgspec.msgpack.encode(command)))


def recorded(memory: MemoryCluster, face: str = "async") -> tuple[SaverFace, Recording]:
    client = Recording(memory.checkpointer)
    return SaverFace(AsyncCheckpointSaver(client), blocking=face == "sync"), client
