"""Conversations that many use at once."""

from __future__ import annotations

import asyncio
import logging
import math
import threading

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately

from flowgentic_actors.langGraph.conversations import ShortTermMemories
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import PREFIX
from tests.support.conversations import Notes, hang, humans, summarizing, texts

pytestmark = pytest.mark.anyio


def test_threads_with_event_loops_of_their_own_lose_nothing() -> None:
    memory = ShortTermMemory(MemoryConfig(max_short_term_messages=10_000))
    start = threading.Barrier(8)

    def work(name: int) -> None:
        async def run() -> None:
            for number in range(40):
                await memory.add(humans(f"{name} {number}", f"{name} {number}"))

        start.wait()
        asyncio.run(run())

    workers = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = texts(memory.recent())
    assert len(found) == 8 * 40 * 2
    assert memory.stats()["interaction_count"] == 8 * 40
    for name in range(8):
        own = [text for text in found if text.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(40) for _ in range(2)]


async def test_a_hundred_users_with_two_threads_each_are_kept_apart() -> None:
    async def reply() -> str:
        await asyncio.sleep(0)
        return "notes"

    memories = ShortTermMemories(summarizing(6, batch=2), Notes(reply).model)

    async def talk(user: str, thread: str) -> None:
        for number in range(10):
            await asyncio.sleep(0)
            await memories.of(user, thread).add(humans(f"{user} {thread} {number}"))

    pairs = [(f"u{number}", thread) for number in range(100) for thread in ("default", "other")]
    await asyncio.gather(*(talk(*pair) for pair in pairs))
    assert len(memories) == 200
    for user, thread in pairs:
        found = texts(memories.of(user, thread).recent())
        assert found[0] == PREFIX + "notes"
        assert found[1:] == [f"{user} {thread} {each}" for each in range(11 - len(found), 10)]
        assert memories.of(user, thread).stats()["interaction_count"] == 10


def test_conversations_are_found_by_user_and_thread() -> None:
    memories = ShortTermMemories()
    memories.of("ada").add_nowait(humans("hello"))
    assert memories.of("ada", "default") is memories.of("ada")
    assert memories.find("ada") is memories.of("ada")
    assert memories.find("bob") is None
    assert memories.find("ada", "other") is None
    memories.of("ada", "b")
    memories.of("ada", "a")
    memories.of("ada:b", "c")
    assert memories.threads("ada") == ["a", "b", "default"]
    held = memories.of("ada")
    memories.forget("ada", "default")
    assert held.recent() == []
    assert memories.threads("ada") == ["a", "b"]
    assert memories.of("ada") is held
    del held
    memories.forget("ada", "default")
    assert memories.find("ada") is None
    memories.forget("ada")
    assert memories.threads("ada") == []
    assert memories.threads("ada:b") == ["c"]
    memories.clear()
    assert len(memories) == 0
    with pytest.raises(TypeError, match="user_id is a int"):
        memories.of(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="thread_id is empty"):
        memories.of("ada", "")
    with pytest.raises(ValueError, match="max_conversations is 0"):
        ShortTermMemories(max_conversations=0)


def test_one_conversation_need_not_be_named_and_several_must() -> None:
    memories = ShortTermMemories()
    assert memories.only().recent() == []
    assert memories.all() == []
    memory = memories.of("ada")
    assert memories.only() is memory
    memories.of("bob")
    with pytest.raises(ValueError, match="2 conversations"):
        memories.only()
    assert memories.all() == [memory, memories.of("bob")]


def test_the_figures_of_all_conversations() -> None:
    memories = ShortTermMemories(MemoryConfig(max_short_term_messages=4))
    assert memories.health()["memory_efficiency"] == memories.health()["average_importance"] == 0
    memories.of("ada").add_nowait([HumanMessage(""), AIMessage("")])
    memories.of("bob").add_nowait([SystemMessage("")])
    health = memories.health()
    assert health.pop("config")["max_short_term_messages"] == 4
    assert health == {
        "conversations": 2,
        "total_messages": 3,
        "interaction_count": 2,
        "system_messages": 1,
        "human_messages": 1,
        "ai_messages": 1,
        "memory_efficiency": 3 / 8,
        "average_importance": pytest.approx(1.4),
    }


async def test_another_configuration_holds_for_what_is_there_and_what_comes() -> None:
    memories = ShortTermMemories(summarizing(10, batch=2), Notes().model)
    await memories.of("ada").add(humans(*map(str, range(12))))
    config = MemoryConfig(max_short_term_messages=50, max_tokens=16)
    assert memories.under(config) is memories
    assert texts(memories.of("ada").recent()) == ["9", "10", "11"]  # and no room for the notes
    assert count_tokens_approximately(memories.of("ada").recent()) <= 16
    memories.under(MemoryConfig())
    assert texts(memories.of("ada").recent()) == [PREFIX + "notes", "9", "10", "11"]
    memories.under(config)
    assert memories.config == memories.of("ada").config == memories.of("bob").config == config


async def test_a_summary_under_way_is_made_again_under_another_configuration() -> None:
    notes = Notes(hang)
    memory = ShortTermMemory(summarizing(4, batch=2), notes.model)
    task = asyncio.create_task(memory.add(humans(*"12345")))
    await notes.begun.wait()
    memory.configure(summarizing(5, batch=3))
    notes.answer = lambda: "notes"
    assert texts(await memory.add([])) == [PREFIX + "notes", "3", "4", "5"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes.folded == ["1", "2"] * 2
    memory.configure(MemoryConfig(max_short_term_messages=2))
    assert texts(memory.recent()) == [PREFIX + "notes", "5"]


def test_the_least_recently_used_conversation_goes_unless_it_is_in_use() -> None:
    memories = ShortTermMemories(max_conversations=2)
    held = memories.of("held")
    held.add_nowait(humans("mine"))
    memories.of("idle").add_nowait(humans("gone"))
    for name in ("a", "idle", "b"):
        memories.of(name)
    assert len(memories) == 2
    assert memories.of("held") is held
    assert memories.find("a") is None
    assert texts(memories.of("held").recent()) == ["mine"]


def test_a_conversation_that_two_load_is_one() -> None:
    memories = ShortTermMemories()
    first, second = ShortTermMemory(), ShortTermMemory()
    assert memories.adopt(first, "ada") is first
    assert memories.adopt(second, "ada") is first
    assert memories.of("ada") is first


def test_that_summarize_has_no_model_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        memories = ShortTermMemories(summarizing(5))
        memories.of("ada").add_nowait(humans(*map(str, range(20))))
    assert caplog.text.count("has no llm") == 1
    assert math.isclose(memories.of("ada").health()["memory_efficiency"], 1.0)
