"""Flowgentic's distributed memory in four parts: local, distributed, auto, and in a graph.

    python examples/02_distributed_memory.py
    dragon -s examples/02_distributed_memory.py

Without Dragon the distributed parts say so and go on in this process.
"""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, StateGraph

from flowgentic_actors.langGraph.main import LangraphIntegration
from flowgentic_actors.langGraph.memory import DistributedMemoryConfig, LangraphMemoryManager

MiB = 2**20


class AgentState(TypedDict):
    """What an agent has said."""

    messages: Annotated[list[str], operator.add]


def agent(state: AgentState) -> dict[str, Any]:
    """Answer with how much was said so far."""
    return {"messages": [f"that was message {len(state['messages'])}"]}


def graph_of(manager: LangraphMemoryManager) -> Any:
    """A graph of one agent over the manager's memory."""
    builder = StateGraph(AgentState)
    builder.add_node("agent", agent)
    builder.add_edge(START, "agent")
    return builder.compile(checkpointer=manager.get_checkpointer(), store=manager.get_store())


async def part_1_local() -> None:
    """The memory in this process."""
    async with LangraphMemoryManager(distributed_config=DistributedMemoryConfig(mode="local")) as m:
        graph = graph_of(m)
        thread: Any = {"configurable": {"thread_id": "123"}}
        await graph.ainvoke({"messages": ["hello"]}, thread)
        result = await graph.ainvoke({"messages": ["again"]}, thread)
        print("1. local:", result["messages"])


async def part_2_distributed() -> None:
    """The memory in actors that Dragon starts; users do not see each other's items."""
    config = DistributedMemoryConfig(
        mode="distributed", store_total_mem=64 * MiB, checkpoint_total_mem=64 * MiB
    )
    async with LangraphMemoryManager(distributed_config=config) as manager:
        store = manager.get_store()
        assert store is not None
        for user in ("ada", "grace"):
            await store.aput((user, "preferences"), "drink", {"name": f"{user}'s tea"})
        found = await store.asearch(("ada",))
        print("2. distributed:", manager.is_distributed(), [item.value["name"] for item in found])


async def part_3_auto() -> None:
    """Distributed in a Dragon runtime or a scheduler's job, local elsewhere."""
    config = DistributedMemoryConfig(
        mode="auto", store_total_mem=64 * MiB, checkpoint_total_mem=64 * MiB
    )
    async with LangraphMemoryManager(distributed_config=config) as manager:
        print("3. auto:", manager.get_full_memory_info()["distributed"])


async def part_4_integration() -> None:
    """Memory and backend together, with conversations of several users."""
    config = DistributedMemoryConfig(mode="local")
    async with LangraphIntegration(distributed_config=config) as integration:
        manager = integration.memory_manager
        graph = graph_of(manager)
        result = graph.invoke({"messages": ["hi"]}, {"configurable": {"thread_id": "123"}})
        for user in ("ada", "grace"):
            said = [HumanMessage(f"I am {user}"), AIMessage(result["messages"][-1])]
            await manager.add_interaction(user, said)
        context = await manager.get_relevant_context("ada", "who am I")
        print("4. integration:", [message.content for message in context["short_term"]])


async def main() -> None:
    """Run all parts."""
    await part_1_local()
    await part_2_distributed()
    await part_3_auto()
    await part_4_integration()


if __name__ == "__main__":
    asyncio.run(main())
