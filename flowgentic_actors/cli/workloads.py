"""What the benchmark measures: operations on a checkpointer, a store and a graph.

A workload's turn is a context that yields awaitables. Drawing one prepares it and is not timed,
awaiting it is; what a turn has stored it deletes again at its end, so that memory does not grow
with the rounds. To add a workload, write such a context and name it in `WORKLOADS`.
"""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, empty_checkpoint
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore, PutOp

AT_ONCE = 64
"""Tasks that work side by side in the concurrent workloads."""

Message: TypeAlias = dict[str, Any]

_PAIRS = 8  # puts, each with its get, that one task does in one sample


class Conversation(TypedDict):
    """State of the benchmark's graph."""

    messages: Annotated[list[Message], operator.add]


Graph: TypeAlias = CompiledStateGraph[Conversation, None, Conversation, Conversation]


class Subject(NamedTuple):
    """What is measured: one kind of memory, and a graph that was compiled with it."""

    saver: BaseCheckpointSaver[str]
    store: BaseStore
    graph: Graph


Operations: TypeAlias = Iterator[Awaitable[object]]
Turn: TypeAlias = Callable[[Subject], AbstractAsyncContextManager[Operations]]


class Workload(NamedTuple):
    """One thing to measure.

    Attributes:
        name: What is done.
        turn: Yields the operations, as many as are drawn.
        samples: Operations timed in one turn, chosen to take milliseconds.
        per_sample: What one operation counts for in a rate; 1 when its time is the figure.
    """

    name: str
    turn: Turn
    samples: int
    per_sample: int = 1

    @property
    def unit(self) -> Literal["s", "1/s"]:
        """Unit of its figures: `s`, the less the better, or `1/s`, the more the better."""
        return "s" if self.per_sample == 1 else "1/s"


def subject(saver: BaseCheckpointSaver[str], store: BaseStore) -> Subject:
    """Compile the graph with this memory: three nodes in a row, each adds one message."""
    builder = StateGraph(Conversation)
    for name in ("plan", "work", "answer"):
        builder.add_node(name, _reply)
    builder.add_edge("__start__", "plan")
    builder.add_edge("plan", "work")
    builder.add_edge("work", "answer")
    return Subject(saver, store, builder.compile(checkpointer=saver, store=store))


def messages(count: int, characters: int) -> list[Message]:
    """A conversation as chat models leave it: `count` messages with so many characters each."""
    return [
        {
            "type": ("human", "ai", "tool")[index % 3],
            "id": f"{index:032x}",
            "content": "words and " * (characters // 10),
            "additional_kwargs": {},
            "response_metadata": {"model": "m-1", "usage": {"input": 1200 + index, "output": 80}},
        }
        for index in range(count)
    ]


_SMALL = messages(4, 100)  # 1 KB
_LARGE = messages(48, 2000)  # 100 KB: a long conversation with tool results
(_REPLY,) = messages(1, 100)
_NOTE = {"kind": "note", "text": "words and " * 20, "score": 0.75, "tags": ["a", "b"]}


async def _reply(state: Conversation) -> Conversation:
    return {"messages": [{**_REPLY, "parent_id": state["messages"][-1]["id"]}]}


# ---------------------------------------------------------------------- checkpoints


@asynccontextmanager
async def _put(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = _new_thread()
    yield _puts(memory.saver, thread, state)
    await _forget(memory.saver, [thread])


@asynccontextmanager
async def _put_writes(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = _new_thread()
    at: Any = await next(_puts(memory.saver, thread, _SMALL))
    writes = [("messages", state)]
    yield (memory.saver.aput_writes(at, writes, task) for task in _names())
    await _forget(memory.saver, [thread])


@asynccontextmanager
async def _get(state: list[Message], memory: Subject) -> AsyncIterator[Operations]:
    thread = _new_thread()
    await next(_puts(memory.saver, thread, state))
    yield (memory.saver.aget_tuple(thread) for _ in _names())
    await _forget(memory.saver, [thread])


def _puts(
    saver: BaseCheckpointSaver[str], thread: RunnableConfig, state: list[Message]
) -> Iterator[Awaitable[RunnableConfig]]:
    """Checkpoints of one thread, each the child of the last and with a new value."""
    version: str | None = None
    config = thread
    for step in range(1_000_000):
        version = saver.get_next_version(version, None)
        checkpoint: Checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"messages": state}
        checkpoint["channel_versions"] = {"messages": version}
        checkpoint["versions_seen"] = {"plan": {"messages": version}}
        metadata = {"source": "loop", "step": step, "parents": {}}
        yield saver.aput(config, checkpoint, metadata, {"messages": version})  # type: ignore[arg-type]
        parent = {**thread["configurable"], "checkpoint_id": checkpoint["id"]}
        config = {"configurable": parent}


# ---------------------------------------------------------------------- graphs


@asynccontextmanager
async def _invoke(memory: Subject) -> AsyncIterator[Operations]:
    threads: list[RunnableConfig] = []
    yield _invocations(memory, threads)
    await _forget(memory.saver, threads)


@asynccontextmanager
async def _invoke_at_once(memory: Subject) -> AsyncIterator[Operations]:
    threads: list[RunnableConfig] = []
    runs = _invocations(memory, threads)
    yield (_all([next(runs) for _ in range(AT_ONCE)]) for _ in _names())
    await _forget(memory.saver, threads)


def _invocations(memory: Subject, threads: list[RunnableConfig]) -> Operations:
    """Runs of the graph, each on a thread of its own, which is noted in `threads`."""
    while True:
        threads.append(_new_thread())
        yield memory.graph.ainvoke({"messages": _SMALL}, threads[-1])


# ---------------------------------------------------------------------- the store


@asynccontextmanager
async def _store_put(memory: Subject) -> AsyncIterator[Operations]:
    async with _namespace(memory.store) as (namespace, keys):
        yield (memory.store.aput(namespace, key, _NOTE) for key in keys)


@asynccontextmanager
async def _store_get(memory: Subject) -> AsyncIterator[Operations]:
    async with _namespace(memory.store) as (namespace, keys):
        await memory.store.aput(namespace, key := next(keys), _NOTE)
        yield (memory.store.aget(namespace, key) for _ in _names())


@asynccontextmanager
async def _store_at_once(memory: Subject) -> AsyncIterator[Operations]:
    async def put_and_get(own: list[str]) -> None:
        for key in own:
            await memory.store.aput(namespace, key, _NOTE)
            await memory.store.aget(namespace, key)

    async with _namespace(memory.store) as (namespace, keys):
        yield (
            _all([put_and_get([next(keys) for _ in range(_PAIRS)]) for _ in range(AT_ONCE)])
            for _ in _names()
        )


@asynccontextmanager
async def _namespace(store: BaseStore) -> AsyncIterator[tuple[tuple[str, ...], Iterator[str]]]:
    """A new namespace, and keys of which those that were drawn are deleted at the end."""
    namespace = ("users", uuid.uuid4().hex, "notes")
    drawn: list[str] = []

    def keys() -> Iterator[str]:
        for key in _names():
            drawn.append(key)
            yield key

    yield namespace, keys()
    await store.abatch([PutOp(namespace, key, None) for key in drawn])


# ---------------------------------------------------------------------- what they share


def _names() -> Iterator[str]:
    while True:
        yield uuid.uuid4().hex


def _new_thread() -> RunnableConfig:
    return {"configurable": {"thread_id": uuid.uuid4().hex, "checkpoint_ns": ""}}


async def _forget(saver: BaseCheckpointSaver[str], threads: list[RunnableConfig]) -> None:
    await _all([saver.adelete_thread(thread["configurable"]["thread_id"]) for thread in threads])


async def _all(awaitables: list[Awaitable[Any]]) -> None:
    await asyncio.gather(*awaitables)


WORKLOADS = (
    Workload("aput, 1 KB", partial(_put, _SMALL), 40),
    Workload("aput, 100 KB", partial(_put, _LARGE), 20),
    Workload("aput_writes, 1 KB", partial(_put_writes, _SMALL), 40),
    Workload("aput_writes, 100 KB", partial(_put_writes, _LARGE), 20),
    Workload("aget_tuple, 1 KB", partial(_get, _SMALL), 40),
    Workload("aget_tuple, 100 KB", partial(_get, _LARGE), 40),
    Workload("ainvoke, 3 nodes", _invoke, 10),
    Workload(f"graphs, {AT_ONCE} at once", _invoke_at_once, 1, AT_ONCE),
    Workload("store put", _store_put, 40),
    Workload("store get", _store_get, 40),
    Workload(f"store, {AT_ONCE} at once", _store_at_once, 3, AT_ONCE * _PAIRS * 2),
)
"""Everything that is measured, in the order of the table."""
