"""A graph of three nodes, which calls a hook in each of them."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from flowgentic_actors import MemoryCluster


class State(TypedDict, total=False):
    """Which nodes ran, in order."""

    ran: Annotated[list[str], operator.add]
    fixed: str


Graph: TypeAlias = CompiledStateGraph[State, None, State, State]


Hook: TypeAlias = Callable[[str], Awaitable[None]]


async def _nothing(name: str) -> None:
    pass


def chain(memory: MemoryCluster, hook: Hook = _nothing, checkpointer: Any = None) -> Graph:
    """a → b → c, each of which calls the hook and says that it ran."""
    builder = StateGraph(State)

    def node(name: str) -> Any:
        async def run(state: State) -> State:
            await hook(name)
            return {"ran": [name]}

        return run

    for name in "abc":
        builder.add_node(name, node(name))
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge("b", "c")
    return builder.compile(checkpointer=checkpointer or memory.checkpointer, store=memory.store)
