"""Summaries of what a conversation no longer has, and messages that are kept elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph

from flowgentic_actors.langGraph import short_term
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import PREFIX
from tests.support.conversations import Notes, calling, hang, humans, result, summarizing, texts

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- summaries


async def test_summaries_replace_one_another_and_keep_the_latest() -> None:
    answers = iter(["first notes", "second notes"])
    notes = Notes(lambda: AIMessage(f"  {next(answers)} "))
    memory = ShortTermMemory(summarizing(6, batch=3), notes.model)
    await memory.add([SystemMessage("sys")])
    found = await memory.add(humans(*"123456"))
    assert texts(found) == ["sys", PREFIX + "first notes", *"456"]
    assert isinstance(found[1], AIMessage)
    assert found[1].additional_kwargs == {"lc_source": "summarization"}
    assert len(await memory.add(humans("7"))) == 6
    found = await memory.add(humans("8"))
    assert texts(found) == ["sys", PREFIX + "second notes", "7", "8"]
    assert notes.asked == [("", ["1", "2", "3"]), ("first notes", ["4", "5", "6"])]
    assert memory.stats()["ai_messages"] == 1


async def test_a_long_history_is_summarized_batch_by_batch() -> None:
    notes = Notes()
    memory = ShortTermMemory(summarizing(5, batch=10), notes.model)
    await memory.add(humans(*map(str, range(100))))
    assert texts(memory.recent()) == [PREFIX + "notes", "98", "99"]
    assert [len(shown) for _, shown in notes.asked] == [10] * 9 + [8]
    assert notes.folded == [str(number) for number in range(98)]


async def test_a_summary_is_cut_to_its_part_of_the_tokens() -> None:
    config = summarizing(50, max_tokens=100)
    memory = ShortTermMemory(config, Notes(lambda: "word " * 1000).model)
    found = await memory.add(humans(*["some words to count"] * 20))
    assert found[0].text.startswith(PREFIX + "word word")
    assert count_tokens_approximately(found[:1]) <= 25
    assert count_tokens_approximately(found) <= 100


@pytest.mark.parametrize("limits", [{"limit": 20}, {"limit": 100, "max_tokens": 200}])
async def test_the_model_is_not_asked_with_each_message(limits: dict[str, int]) -> None:
    notes = Notes(lambda: "word " * 5000)
    memory = ShortTermMemory(summarizing(**limits), notes.model)
    for number in range(100):
        await memory.add(humans(f"message number {number}"))
    assert 5 <= len(notes.asked) <= 20
    summary, *rest = texts(memory.recent())
    assert notes.folded + rest == [f"message number {number}" for number in range(100)]
    assert summary.startswith(PREFIX + "word ")
    assert len(summary) < 8_100


async def test_system_messages_that_leave_no_room_for_a_summary() -> None:
    memory = ShortTermMemory(summarizing(3, batch=1), Notes().model)
    found = await memory.add([SystemMessage("a"), *humans("1", "2", "3")])
    assert texts(found) == ["a", PREFIX + "notes", "3"]
    found = await memory.add([SystemMessage("b"), *humans("4")])
    assert texts(found) == ["a", "b", "4"]


async def test_messages_larger_than_the_room_are_summarized() -> None:
    large = [calling("a", "b", text="t"), result("a"), result("b")]
    notes = Notes()
    memory = ShortTermMemory(summarizing(3), notes.model)
    found = await memory.add([SystemMessage("s"), *humans("1"), *large, *large])
    assert texts(found) == ["s", PREFIX + "notes", "1"]
    assert notes.folded == ["t", "found", "found"] * 2


async def test_a_summary_gives_way_to_a_long_message_and_comes_back() -> None:
    memory = ShortTermMemory(summarizing(4, batch=1), Notes().model)
    await memory.add(humans(*"12345"))
    tools = [calling("a", "b", "c"), result("a"), result("b"), result("c")]
    assert await memory.add(tools) == tools
    assert texts(await memory.add(humans("6"))) == [PREFIX + "notes", "6"]
    assert texts(await memory.add(humans("7"))) == [PREFIX + "notes", "6", "7"]


def _fail() -> str:
    raise ConnectionError("no route to the model")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_fail, "no route to the model"),
        (hang, "did not answer in time"),
        (lambda: AIMessage(" "), "without text"),
        (lambda: 7, "no text but a int"),
    ],
)
async def test_the_conversation_goes_on_without_a_summary(
    answer: Callable[[], Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = summarizing(4, batch=2, summarization_timeout=0.05)
    memory = ShortTermMemory(config, Notes(answer).model)
    began = time.monotonic()
    found = await memory.add(humans(*"123456"))
    assert time.monotonic() - began < 5
    assert texts(found) == ["5", "6"]
    assert "4 messages are let go" in caplog.text
    assert why in caplog.text
    assert texts(await memory.add(humans("7"))) == ["5", "6", "7"]


async def test_a_model_of_any_kind_summarizes() -> None:
    mock = Mock(spec=BaseChatModel)
    mock.ainvoke.return_value = Mock(content="a mock's notes")
    fake = GenericFakeChatModel(messages=iter([AIMessage("a fake's notes")]))
    for model in (mock, fake):
        memory = ShortTermMemory(summarizing(3), model)
        found = await memory.add(humans(*"12345"))
        assert found[0].text.endswith("'s notes")
        assert len(found) <= 3


async def test_a_cancelled_add_takes_nothing_back() -> None:
    notes = Notes(hang)
    memory = ShortTermMemory(summarizing(4, batch=2), notes.model)
    task = asyncio.create_task(memory.add(humans(*"12345")))
    await notes.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert texts(memory.recent()) == ["3", "4", "5"]
    notes.answer = lambda: "notes"
    assert texts(await memory.add([])) == [PREFIX + "notes", "3", "4", "5"]
    assert notes.asked == [("", ["1", "2"])] * 2


async def test_others_do_not_wait_for_a_summary_and_nothing_is_lost() -> None:
    go = asyncio.Event()

    async def slowly() -> str:
        await go.wait()
        return "notes"

    notes = Notes(slowly)
    memory = ShortTermMemory(summarizing(6, batch=3), notes.model)
    first = asyncio.create_task(memory.add(humans(*map(str, range(8)))))
    await notes.begun.wait()
    for number in range(8, 20):
        assert len(await asyncio.wait_for(memory.add(humans(str(number))), 1)) <= 6
    go.set()
    await first
    found = texts(await memory.add(humans("20")))
    assert found[0] == PREFIX + "notes"
    assert notes.folded + found[1:] == [str(number) for number in range(21)]


async def test_what_is_cleared_does_not_come_back_with_a_summary() -> None:
    go = asyncio.Event()

    async def slowly() -> str:
        await go.wait()
        return "notes"

    notes = Notes(slowly)
    memory = ShortTermMemory(summarizing(4), notes.model)
    task = asyncio.create_task(memory.add(humans(*"12345")))
    await notes.begun.wait()
    memory.clear()
    memory.add_nowait(humans("new"))
    go.set()
    assert texts(await task) == ["new"]


def test_a_summary_whose_event_loop_was_stopped_is_made_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(short_term, "_GRACE", 0.0)
    notes = Notes(hang)
    memory = ShortTermMemory(summarizing(4, summarization_timeout=0.05), notes.model)
    loop = asyncio.new_event_loop()
    task = loop.create_task(memory.add(humans(*"12345")))
    loop.run_until_complete(notes.begun.wait())
    time.sleep(0.06)
    notes.answer = lambda: "notes"
    assert asyncio.run(memory.add(humans("6")))[0].text == PREFIX + "notes"
    task.cancel()  # it comes too late to change anything
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    assert texts(memory.recent())[0] == PREFIX + "notes"


def test_a_backlog_that_nobody_summarizes_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    memory = ShortTermMemory(summarizing(4, batch=1), Notes().model)
    for number in range(300):
        memory.add_nowait(humans(str(number)))
    backlog = [entry["message"].text for entry in memory.dump()["backlog"]]
    assert backlog == [str(number) for number in range(196, 296)]
    assert "summarization_batch_size (1)" in caplog.text


async def test_a_full_backlog_keeps_what_is_being_summarized() -> None:
    go = asyncio.Event()

    async def slowly() -> str:
        await go.wait()
        return "notes"

    notes = Notes(slowly)
    memory = ShortTermMemory(summarizing(4, batch=1), notes.model)
    first = asyncio.create_task(memory.add(humans(*map(str, range(5)))))
    await notes.begun.wait()
    memory.add_nowait(humans(*map(str, range(5, 300))))
    go.set()
    await first
    await memory.add([])
    assert notes.folded == ["0", *map(str, range(198, 297))]


async def test_a_summary_is_not_streamed_to_the_readers_of_a_graph() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("secret notes")] * 5))
    memory = ShortTermMemory(summarizing(3), model)

    async def node(state: MessagesState) -> dict[str, Any]:
        await memory.add(humans(*"12345"))
        return {"messages": [AIMessage("answer")]}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    streamed = [
        part[0].text
        async for part in builder.compile().astream({"messages": []}, stream_mode="messages")
        if isinstance(part, tuple)
    ]
    assert memory.recent()[0].text == PREFIX + "secret notes"
    assert streamed == ["answer"]


# ---------------------------------------------------------------------- keeping elsewhere


async def test_a_conversation_comes_back_from_a_serializer() -> None:
    now = 5.0
    notes = Notes()
    config = summarizing(6, batch=2)
    memory = ShortTermMemory(config, notes.model, clock=lambda: now)
    await memory.add([SystemMessage("s"), *humans(*"123456"), calling("a"), result("a")])
    memory.add_nowait(humans(*"789"))  # what this cuts off is not summarized yet
    serde = JsonPlusSerializer()
    data = serde.loads_typed(serde.dumps_typed(memory.dump()))
    again = ShortTermMemory.load(config, data, notes.model)
    assert again.entries == memory.entries
    assert again.stats() == memory.stats()
    assert again.dump() == memory.dump()
    asked = len(notes.asked)
    await again.add([])
    assert len(notes.asked) > asked
    assert "" not in texts(again.recent())
    assert sum(text.startswith(PREFIX) for text in texts(again.recent())) == 1


def test_a_conversation_is_trimmed_to_lower_limits_when_it_is_loaded() -> None:
    memory = ShortTermMemory()
    memory.add_nowait(humans(*"12345"))
    again = ShortTermMemory.load(MemoryConfig(max_short_term_messages=2), memory.dump())
    assert texts(again.recent()) == ["4", "5"]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 1, "interactions": 0, "summary": None, "entries": 7, "backlog": []},
        {
            "version": 1,
            "interactions": 0,
            "summary": None,
            "entries": [{"message": "hello", "when": 0.0, "importance": 1.0}],
            "backlog": [],
        },
        {"version": 2, "interactions": 0, "entries": [], "backlog": []},
        {"version": 1, "interactions": 0, "summary": None, "entries": [{}], "backlog": []},
        {"version": 1, "interactions": 0, "summary": "x", "entries": [], "backlog": []},
    ],
)
def test_what_is_no_conversation_is_not_loaded(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dump"):
        ShortTermMemory.load(None, data)
