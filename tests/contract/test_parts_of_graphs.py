"""Long lists of graphs: a turn costs what is new, and all is as in LangGraph's own memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from flowgentic_actors.cli.main import main
from tests.conftest import settings_of
from tests.support.faces import config_of, unique
from tests.support.long_lists import Messages, channel_values, conversation, question, recorded

pytestmark = pytest.mark.anyio

FEW = pytest.mark.parametrize("mode", ["inline-journal", "subprocess"])


@pytest.fixture
def config() -> Any:
    return config_of(unique())


# ---------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    "mode", ["inline-journal", pytest.param("subprocess", marks=pytest.mark.slow)]
)
async def test_a_turn_of_a_long_conversation_costs_what_is_new(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    saver, client = recorded(memory)
    graph = conversation(saver.saver)
    thread_id = config["configurable"]["thread_id"]
    kept: list[int] = []
    sent: list[int] = []
    for number in range(200):
        client.sent.clear()
        await graph.ainvoke(question(number), config)
        sent.append(sum(client.sent))
        (thread,) = memory.checkpointer.threads(prefix=thread_id)
        kept.append(thread.bytes)

    state = (await graph.aget_state(config)).values
    whole = sum(
        len(memory.checkpointer.serde.dumps_typed(state[c])[1]) for c in ("messages", "log")
    )
    assert whole > 200_000
    early, late = sum(sent[10:40]) / 30, sum(sent[170:200]) / 30
    assert late < 2 * early
    assert late < whole / 8  # four checkpoints have both lists
    assert (kept[199] - kept[169]) < 2 * (kept[39] - kept[9])
    assert kept[199] < 12 * whole


# ---------------------------------------------------------------------- LangGraph


async def test_a_conversation_is_what_it_is_in_memory(memory: MemoryCluster) -> None:
    """Whatever is done to it: in every mode, compared with LangGraph's own saver."""

    async def story(checkpointer: Any) -> list[Any]:
        graph, config = conversation(checkpointer), config_of(unique())
        await graph.ainvoke({**question(0), "sources": ["s" * 100] * 200}, config)
        for number in range(1, 12):
            await graph.ainvoke(question(number), config)
        replaced = HumanMessage("asked otherwise", id="q-3")
        await graph.aupdate_state(config, {"messages": [replaced, RemoveMessage(id="q-5")]})
        await graph.ainvoke(question(100), config)
        history = [state async for state in graph.aget_state_history(config)]
        old = history[12].config
        fork = await graph.aupdate_state(old, {"messages": [HumanMessage("a fork", id="f")]})
        await graph.ainvoke(question(200), fork)
        await graph.ainvoke(question(201), config)
        await graph.ainvoke(None, history[20].config)
        await graph.ainvoke({"messages": [RemoveMessage(id="a-1")], "sources": ["t"]}, config)
        return [
            (state.values, state.next, [task.name for task in state.tasks])
            async for state in graph.aget_state_history(config)
        ]

    found, expected = await story(memory.checkpointer), await story(InMemorySaver())

    assert len(found) == len(expected) > 60
    assert found == expected


@FEW
async def test_two_graphs_that_talk_on_one_thread_in_turn(
    memory: MemoryCluster, config: RunnableConfig
) -> None:
    savers = [recorded(memory) for _ in range(2)]
    graphs = [conversation(saver.saver) for saver, _ in savers]
    for number in range(40):
        await graphs[number % 2].ainvoke(question(number), config)
    values = (await graphs[0].aget_state(config)).values
    assert [m.id for m in values["messages"][::3]] == [f"q-{n}" for n in range(40)]
    for _, client in savers:
        assert sum(client.sent[-16:]) < 4 * sum(client.sent[8:24])
        assert len(client.sent) == 4 * 20  # none had to be sent twice


@FEW
async def test_subgraphs_have_lists_of_their_own(memory: MemoryCluster) -> None:
    thread = unique()
    config = config_of(thread)

    async def story(checkpointer: Any) -> Any:
        inner = conversation(True)
        builder = StateGraph(Messages)
        for name in ("left", "right"):
            builder.add_node(name, inner)
            builder.add_edge(START, name)
        graph = builder.compile(checkpointer=checkpointer)
        for number in range(12):
            await graph.ainvoke(question(number), config)
        state = await graph.aget_state(config)
        inside = [
            sorted((channel, str(value)) for channel, value in channel_values(found).items())
            async for found in checkpointer.alist({"configurable": {"thread_id": thread}})
            if found.config["configurable"]["checkpoint_ns"]
        ]
        return sorted(m.id for m in state.values["messages"]), sorted(inside)

    assert await story(memory.checkpointer) == await story(InMemorySaver())


# ---------------------------------------------------------------------- whole threads, and lives


async def history(saver: AsyncCheckpointSaver, thread: str) -> list[Any]:
    return [(f.checkpoint, f.metadata) async for f in saver.alist(config_of(thread))]


async def talk(saver: AsyncCheckpointSaver, thread: str, turns: range) -> None:
    graph = conversation(saver)
    for number in turns:
        await graph.ainvoke(question(number), config_of(thread))


async def test_a_copy_is_whole_and_goes_on(memory: MemoryCluster) -> None:
    saver, source, target = memory.checkpointer, unique(), unique()
    await talk(saver, source, range(30))
    middle = (await history(saver, source))[40][0]
    fork = config_of(source, "", middle["id"])
    await conversation(saver).aupdate_state(fork, {"messages": [HumanMessage("f", id="f")]})

    await saver.acopy_thread(source, target)

    copied = await history(saver, target)
    assert copied == await history(saver, source)
    sizes = {t.thread_id: t.bytes for t in saver.threads()}
    assert sizes[target] < 1.5 * sizes[source]
    await saver.adelete_thread(source)
    await talk(saver, target, range(30, 33))
    assert (await history(saver, target))[-len(copied) :] == copied


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_an_actor_that_is_restarted_has_all_parts(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode)) as memory:
        saver = memory.checkpointer
        await talk(saver, "t", range(30))
        before = await history(saver, "t")
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await history(saver, "t") == before
        await talk(saver, "t", range(30, 40))
        assert (await history(saver, "t"))[40:] == before


@pytest.mark.parametrize("mode", ["inline", "several-actors"])
async def test_a_memory_on_disk_has_all_parts(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "memory"
    async with MemoryCluster(**settings_of(mode), persist_path=folder) as memory:
        await talk(memory.checkpointer, "t", range(20))
        await memory.checkpointer.aprune(["t"])
        await talk(memory.checkpointer, "t", range(20, 30))
        before = await history(memory.checkpointer, "t")
    rows = await asyncio.to_thread(dumped, folder, capsys)
    assert [row["id"] for row in rows] == [checkpoint["id"] for checkpoint, _ in before]
    for row, (checkpoint, _) in zip(rows, before, strict=True):
        values = checkpoint["channel_values"]
        assert row["channels"].keys() == row["values"].keys() == values.keys()
        if "messages" in values:
            assert len(row["values"]["messages"]) == len(values["messages"])
            assert row["values"]["log"] == values["log"]
            whole = JsonPlusSerializer().dumps_typed(values["messages"])[1]
            assert 0 <= row["channels"]["messages"] - len(whole) < 200
    other = "several-actors" if mode == "inline" else "subprocess"
    async with MemoryCluster(**settings_of(other), persist_path=folder) as memory:
        assert await history(memory.checkpointer, "t") == before
        await talk(memory.checkpointer, "t", range(30, 33))
        assert (await history(memory.checkpointer, "t"))[12:] == before


def dumped(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The checkpoints of a thread, as `dump` tells of them."""
    capsys.readouterr()
    assert main(["dump", str(folder), "--thread", "t", "--values", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
