"""A graph that remembers; the server gives it the checkpointer and the store."""

from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.store.base import BaseStore


class State(TypedDict):
    """Messages so far."""

    said: Annotated[list[str], operator.add]


async def answer(state: State, *, store: BaseStore) -> State:
    """Store the last message as a note, and answer with the number of notes."""
    await store.aput(("notes",), str(len(state["said"])), {"text": state["said"][-1]})
    return {"said": [f"{len(await store.asearch(('notes',)))} notes"]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile()
