"""Long lists, a conversation's messages say: what is new is what is written, and all is there."""

from __future__ import annotations

import asyncio
import json
import operator
import os
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from flowgentic_actors.cli.main import main
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.commands import Command, PutCheckpoint
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import ThreadConflictError
from tests.conftest import settings_of
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique
from tests.support.shift_cipher import Shift

pytestmark = pytest.mark.anyio

FEW = pytest.mark.parametrize("mode", ["inline-journal", "subprocess"])


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


@pytest.mark.parametrize("mode", ["inline-journal"])  # others tell of it with the next heartbeat
async def test_a_journal_grows_by_what_is_new(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode)) as memory:
        saver, config, value = memory.checkpointer, config_of("t"), notes(500)

        async def size() -> int:
            return sum(actor.journal_bytes for actor in (await memory.status()).actors)

        config = await saver.aput(config, checkpoint_of({"a": value}), {}, {"a": 1})
        before = await size()
        for number in range(10):
            value = [*value, *notes(1, 500 + number)]
            config = await saver.aput(config, checkpoint_of({"a": value}), {}, {"a": 1})
        assert before > 500_000
        assert await size() - before < 150_000


async def test_a_put_is_one_request(memory: MemoryCluster) -> None:
    saver, client = recorded(memory)
    config, value = config_of(unique()), notes(100)
    first = checkpoint_of({"a": value, "b": notes(40)})
    config = await saver.put(config, first)
    for number in range(4):
        value = [*value, *notes(1, 100 + number)]
        following = checkpoint_of({"a": value, "b": notes(40)})
        following["channel_versions"]["b"] = first["channel_versions"]["b"]
        news = {"a": following["channel_versions"]["a"]}
        config = await saver.put(config, following, new_versions=news)
        found = await saver.found(config)
        assert found.checkpoint == following
    assert len(client.sent) == 5
    assert client.sent[0] > 140_000
    assert max(client.sent[1:]) < 10_000


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


# ---------------------------------------------------------------------- savers


async def test_parts_are_seen_by_nobody(saver: SaverFace) -> None:
    thread = unique()
    checkpoint = checkpoint_of({"a": notes(100), "b": 1, "c": notes(20)})
    config = await saver.put(config_of(thread), checkpoint, {"note": "x"})

    assert (await saver.found(config)).checkpoint == checkpoint
    (listed,) = [found async for found in saver.each(config_of(thread), filter={"note": "x"})]
    assert listed.checkpoint == checkpoint
    (told,) = saver.saver.threads(prefix=thread)
    assert told.checkpoints == 1
    assert 100_000 < told.bytes < 150_000


@FEW
@pytest.mark.parametrize("version", [1, 1.5, "1"])
async def test_versions_of_any_type_come_back(
    memory: MemoryCluster, version: Any, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    checkpoint = checkpoint_of({"a": notes(30)})
    checkpoint["channel_versions"] = {"a": version}
    config = await saver.put(config_of(thread), checkpoint)
    found = await saver.found(config)
    assert found.checkpoint == checkpoint
    assert type(found.checkpoint["channel_versions"]["a"]) is type(version)
    again = checkpoint_of({"a": notes(30)})
    again["channel_versions"] = {"a": version}
    config = await saver.put(config, again, new_versions={})
    assert (await saver.found(config)).checkpoint == again


@FEW
async def test_a_list_that_did_not_change_is_kept_with_its_parts(memory: MemoryCluster) -> None:
    """Also by a saver that knows nothing of it, and when what came before is gone."""
    thread = unique()
    (knows, client), (other, late) = recorded(memory), recorded(memory)
    checkpoint = checkpoint_of({"a": notes(100)})
    config = await knows.put(config_of(thread), checkpoint)
    for saver in (knows, other, knows, other):
        following = checkpoint_of({"a": notes(100), "b": unique()})
        following["channel_versions"]["a"] = checkpoint["channel_versions"]["a"]
        news = {"b": following["channel_versions"]["b"]}
        config = await saver.put(config, following, new_versions=news)
        await memory.checkpointer.aprune([thread])
        assert (await knows.found(config)).checkpoint == following
    assert len(client.sent) == 3
    assert len(late.sent) == 3  # once it did not know
    assert sum(client.sent[1:]) < 4000


@FEW
async def test_what_is_pruned_takes_nothing_and_leaves_nothing(
    memory: MemoryCluster, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    config, value = config_of(thread), notes(50)
    forks = []
    for number in range(30):
        value = [*value, *notes(1, 50 + number)]
        config = await saver.put(config, checkpoint_of({"a": value}), {"run_id": f"run {number}"})
        if number in (3, 10):
            changed = [*value[:5], *notes(3, 1000), *value[9:]]
            forks.append(await saver.put(config, checkpoint_of({"a": changed}), {"run_id": "f"}))
    (before,) = saver.saver.threads(prefix=thread)

    await saver.delete_for_runs(["f", *(f"run {number}" for number in range(0, 28, 2))])
    async for found in saver.each(config_of(thread)):
        assert found.checkpoint["channel_values"]["a"][-1]["id"] == 50 + int(
            found.metadata["run_id"].split()[1]
        )
    await saver.prune([thread])

    assert (await saver.found(config_of(thread))).checkpoint["channel_values"]["a"] == value
    (after,) = saver.saver.threads(prefix=thread)
    assert after.checkpoints == 1
    assert after.bytes < 95_000 < before.bytes
    await saver.put(config, checkpoint_of({"a": 1}))
    await saver.prune([thread])
    (after,) = saver.saver.threads(prefix=thread)
    assert after.bytes < 1000


@FEW
async def test_the_last_checkpoints_have_their_lists(mode: str, face: str) -> None:
    async with MemoryCluster(**settings_of(mode), keep_last=2) as memory:
        saver = SaverFace(memory.checkpointer, blocking=face == "sync")
        config, value = config_of("t"), notes(60)
        for number in range(20):
            value = [*value[1:], *notes(1, 60 + number)]
            config = await saver.put(config, checkpoint_of({"a": value}))
        listed = [found async for found in saver.each(config_of("t"))]
        assert [found.checkpoint["channel_values"]["a"][-1]["id"] for found in listed] == [79, 78]
        assert all(len(found.checkpoint["channel_values"]["a"]) == 60 for found in listed)
        (told,) = saver.saver.threads()
        assert told.bytes < 160_000


@FEW
async def test_a_thread_that_was_deleted_is_written_anew(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    thread, value = unique(), notes(100)
    checkpoint = checkpoint_of({"a": value, "b": notes(30)})
    config = await saver.put(config_of(thread), checkpoint)
    await SaverFace(memory.checkpointer, blocking=face == "sync").delete_thread(thread)
    following = checkpoint_of({"a": [*value, 1], "b": notes(30)})
    following["channel_versions"]["b"] = checkpoint["channel_versions"]["b"]
    news = {"a": following["channel_versions"]["a"]}

    config = await saver.put(config, following, new_versions=news)

    assert (await saver.found(config)).checkpoint == following
    assert len(client.sent) == 3  # it had to be sent again, whole


@FEW
async def test_a_put_that_failed_is_not_counted_on(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    value = notes(50)
    config = await saver.put(config_of(unique()), checkpoint_of({"a": value}))
    value = [*value, *notes(20, 50)]
    client.fails = True
    with pytest.raises(ConnectionError):
        await saver.put(config, checkpoint_of({"a": value}))
    client.fails = False
    value = [*value, *notes(1, 70)]
    config = await saver.put(config, checkpoint_of({"a": value}))
    assert (await saver.found(config)).checkpoint["channel_values"]["a"] == value
    assert len(client.sent) == 2


@FEW
async def test_puts_may_overlap_and_be_cancelled(memory: MemoryCluster) -> None:
    saver, value = memory.checkpointer, notes(50)
    config = await saver.aput(config_of(unique()), checkpoint_of({"a": value}), {}, {"a": 1})
    made = [
        checkpoint_of({"a": [*value[:number], *notes(number, 100), *value]}) for number in range(20)
    ]
    puts = [asyncio.ensure_future(saver.aput(config, c, {}, {"a": 1})) for c in made]
    await asyncio.sleep(0)
    for put in puts[::3]:
        put.cancel()
    done = await asyncio.gather(*puts, return_exceptions=True)
    for checkpoint, stored in zip(made, done, strict=True):
        if not isinstance(stored, BaseException):
            found = await saver.aget_tuple(stored)
            assert found is not None
            assert found.checkpoint == checkpoint
    last = checkpoint_of({"a": made[0]["channel_values"]["a"]})
    found = await saver.aget_tuple(await saver.aput(config, last, {}, {"a": 1}))
    assert found is not None
    assert found.checkpoint == last


@FEW
async def test_what_is_changed_in_place_is_stored(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    value = notes(200)
    first = await saver.put(config_of(unique()), checkpoint_of({"a": value}))
    value[7]["text"] = "another"
    second = await saver.put(first, checkpoint_of({"a": value}))
    assert (await saver.found(second)).checkpoint["channel_values"]["a"][7]["text"] == "another"
    assert (await saver.found(first)).checkpoint["channel_values"]["a"] == notes(200)
    assert client.sent[1] < 80_000 < client.sent[0] / 2


class Salted(Shift):
    """One that gives other bytes each time, as ciphers in earnest do."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        name, data = super().encrypt(plaintext)
        return name, os.urandom(16) + data

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return super().decrypt(ciphername, ciphertext[16:])


@FEW
async def test_encrypted_lists_are_right(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    plain, config = saver.saver.serde, config_of(unique())
    value = notes(50)
    for cipher in (None, Shift(), Shift(), None, Salted(), Salted(), None):
        saver.saver.serde = EncryptedSerializer(cipher, plain) if cipher else plain
        value = [*value, *notes(1, len(value))]
        config = await saver.put(config, checkpoint_of({"a": value}))
        assert (await saver.found(config)).checkpoint["channel_values"]["a"] == value
    # What is encrypted anew each time is sent whole; otherwise the second put sends what is new,
    # and so does the last one, on what the fourth one sent.
    assert [size > 50_000 for size in client.sent] == [True, True, False, True, True, True, False]
    await saver.delete_thread(config["configurable"]["thread_id"])  # others could not read it


@FEW
async def test_a_list_that_delta_channels_go_on_from_is_whole(
    memory: MemoryCluster, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    seed = notes(100)
    values = {"a": seed, "b": notes(20), "c": "s"}
    config = await saver.put(config_of(thread), checkpoint_of(values))
    configs = [config]
    for step in range(3):
        await saver.put_writes(config, [("a", [step]), ("c", step)], f"t{step}")
        since = {"counters_since_delta_snapshot": {"a": (step + 1, step + 1)}}
        config = await saver.put(config, checkpoint_of({"other": step}), since)
        configs.append(config)
    for _ in range(2):
        found = await saver.channel_history(config, ["a", "b", "c", "d"])
        assert found["a"]["seed"] == seed
        assert [value for _, _, value in found["a"]["writes"]] == [[0], [1], [2]]
        assert found["b"] == {"writes": [], "seed": notes(20)}
        assert found["c"]["seed"] == "s"
        assert found["d"] == {"writes": []}
        await saver.prune([thread])
    assert len(await saver.ids(config_of(thread))) == 4


@FEW
async def test_a_channel_whose_name_is_like_a_parts_keeps_its_value(
    memory: MemoryCluster, face: str
) -> None:
    saver, config = SaverFace(memory.checkpointer, blocking=face == "sync"), config_of(unique())
    for name in ("\0", "\0x"):
        for values in ({"a": notes(50)}, {"a": notes(51), name: notes(50)}, {name: 1}):
            checkpoint = checkpoint_of(values)
            config = await saver.put(config, checkpoint)
            assert (await saver.found(config)).checkpoint == checkpoint
        first, second = checkpoint_of({"a": notes(50)}), checkpoint_of({"a": notes(50), name: 1})
        second["channel_versions"]["a"] = first["channel_versions"]["a"]
        config = await saver.put(config, first)
        news = {name: second["channel_versions"][name]}
        config = await saver.put(config, second, new_versions=news)
        assert (await saver.found(config)).checkpoint == second


@FEW
async def test_conflicts_are_detected_with_long_lists(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode), detect_conflicts=True) as memory:
        saver = memory.checkpointer
        config = await saver.aput(config_of("t"), checkpoint_of({"a": notes(50)}), {}, {"a": 1})
        ours = await saver.aput(config, checkpoint_of({"a": notes(51)}), {}, {"a": 1})
        with pytest.raises(ThreadConflictError):
            await saver.aput(config, checkpoint_of({"a": notes(90)}), {}, {"a": 1})
        ours = await saver.aput(ours, checkpoint_of({"a": notes(91)}), {}, {"a": 1})
        found = await saver.aget_tuple(config_of("t"))
        assert found is not None
        assert found.checkpoint["id"] == id_of(ours)
        assert found.checkpoint["channel_values"]["a"] == notes(91)


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
