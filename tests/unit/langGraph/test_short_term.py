"""The memory of conversations: limits, order, tool calls, summaries, and who shares what."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import ValidationError

from flowgentic_actors.langGraph import short_term
from flowgentic_actors.langGraph.conversations import ShortTermMemories
from flowgentic_actors.langGraph.entry import rate
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import PREFIX

pytestmark = pytest.mark.anyio

quick = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

STRATEGIES = ["trim_last", "trim_middle", "importance_based", "summarize"]


def humans(*texts: str) -> list[BaseMessage]:
    return [HumanMessage(text) for text in texts]


def texts(messages: Iterable[BaseMessage]) -> list[str]:
    return [str(message.text) for message in messages]


def calling(*ids: str, text: str = "") -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": "look", "args": {}, "id": each} for each in ids])


def result(id_: str, text: str = "found") -> ToolMessage:
    return ToolMessage(text, tool_call_id=id_)


class Notes:
    """A model that summarizes, and remembers what it was asked."""

    def __init__(self, answer: Callable[[], Any] = lambda: "notes") -> None:
        self.answer = answer
        self.asked: list[tuple[str, list[str]]] = []
        self.begun = asyncio.Event()

    async def reply(self, prompt: list[BaseMessage]) -> Any:
        asked = str(prompt[-1].text)
        notes, _, rest = asked.removeprefix("<notes>\n").partition("\n</notes>\n<messages>\n")
        lines = rest.removesuffix("\n</messages>").split("\n")
        shown = [line.partition(": ")[2].partition(" look {}")[0] for line in lines]
        self.asked.append((notes, shown))
        self.begun.set()
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer

    @property
    def model(self) -> Runnable[Any, Any]:
        return RunnableLambda(self.reply)

    @property
    def folded(self) -> list[str]:
        return [text for _, shown in self.asked for text in shown]


def summarizing(limit: int, batch: int = 10, **more: Any) -> MemoryConfig:
    return MemoryConfig(
        max_short_term_messages=limit,
        short_term_strategy="summarize",
        summarization_batch_size=batch,
        enable_summarization=True,
        **more,
    )


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_short_term_messages", 0),
        ("max_short_term_messages", "many"),
        ("short_term_strategy", "trim_first"),
        ("context_window_buffer", -1),
        ("memory_update_threshold", 0),
        ("summarization_batch_size", 0),
        ("enable_summarization", "perhaps"),
        ("summarization_timeout", 0),
        ("summarization_timeout", float("inf")),
        ("max_tokens", 0),
        ("token_counter", "exact"),
        ("token_counter", 7),
        ("max_messages", 5),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        MemoryConfig(**{field: value})
    (error,) = refused.value.errors()
    assert error["loc"] == (field,)


def test_a_counter_without_a_limit_is_refused() -> None:
    with pytest.raises(ValidationError, match="token_counter needs max_tokens"):
        MemoryConfig(token_counter="approximate")


def test_the_defaults_are_the_original_ones() -> None:
    config = MemoryConfig()
    assert config.max_short_term_messages == 50
    assert config.short_term_strategy == "trim_last"
    assert config.context_window_buffer == 10
    assert config.memory_update_threshold == 5
    assert config.summarization_batch_size == 10
    assert config.enable_summarization is False
    with pytest.raises(ValidationError):
        config.max_short_term_messages = 3


# ---------------------------------------------------------------------- properties


def _turn(kind: str, number: int, size: int) -> list[BaseMessage]:
    """One turn of a conversation whose messages can be told apart."""
    text = f"t{number}" + "x" * size * 9
    if kind == "system":
        return [SystemMessage(text)]
    if kind == "human":
        return [HumanMessage(text)]
    if kind == "ai":
        return [AIMessage(text)]
    ids = [f"c{number}.{each}" for each in range(size + 1)]
    results: list[BaseMessage] = [result(each, f"t{number} {each}") for each in ids]
    if kind == "orphan":
        return results
    if kind == "interrupted":
        return [calling(*ids, text=text), HumanMessage(f"wait {number}"), *results]
    return [calling(*ids, text=text), *results]


@st.composite
def conversations(draw: st.DrawFn) -> list[list[BaseMessage]]:
    """Messages as they are added: turns, cut anywhere into interactions."""
    kinds = st.sampled_from(["human", "ai", "human", "ai", "tools", "interrupted", "orphan"])
    turns = draw(st.lists(st.tuples(kinds, st.integers(0, 4)), max_size=25))
    said = [message for at, (kind, size) in enumerate(turns) for message in _turn(kind, at, size)]
    for at in draw(st.lists(st.integers(0, len(said)), max_size=3)):
        said[at:at] = _turn("system", 100 + at + len(said), 1)
    cuts = sorted(draw(st.sets(st.integers(0, len(said)), max_size=8)) | {0, len(said)})
    return [said[start:end] for start, end in pairwise(cuts)]


def _systems(messages: list[BaseMessage]) -> list[str]:
    """The system messages, each once."""
    found = [str(each.text) for each in messages if isinstance(each, SystemMessage)]
    return list(dict.fromkeys(found))


def _expect_whole_and_in_order(said: list[BaseMessage], kept: list[BaseMessage]) -> None:
    at = {id(message): place for place, message in enumerate(said)}
    kept = [message for message in kept if not str(message.text).startswith(PREFIX)]
    for is_system in (True, False):
        places = [at[id(each)] for each in kept if isinstance(each, SystemMessage) == is_system]
        assert places == sorted(set(places))
    assert _systems(kept) == _systems(said)

    called: set[str | None] = set()
    results = {each.tool_call_id for each in kept if isinstance(each, ToolMessage)}
    for message in kept:
        if isinstance(message, AIMessage):
            called |= {call["id"] for call in message.tool_calls}
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in called
    assert results == {
        each.tool_call_id
        for each in said
        if isinstance(each, ToolMessage) and each.tool_call_id in called
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
@quick
@given(conversations(), st.integers(1, 15), st.integers(0, 6), st.sampled_from([None, 40, 120]))
def test_limits_and_order_hold_and_tool_calls_stay_whole(
    strategy: Any, adds: list[list[BaseMessage]], limit: int, size: int, tokens: int | None
) -> None:
    config = MemoryConfig(
        max_short_term_messages=limit,
        short_term_strategy=strategy,
        context_window_buffer=size,
        summarization_batch_size=size + 1,
        enable_summarization=True,
        max_tokens=tokens,
    )
    memory = ShortTermMemory(config, Notes().model)
    said: list[BaseMessage] = []

    async def run() -> None:
        for messages in adds:
            said.extend(messages)
            kept = await memory.add(messages)
            systems = [each for each in said if isinstance(each, SystemMessage)]
            assert len(kept) <= max(limit, len(systems))
            if tokens is not None:
                most = max(tokens, count_tokens_approximately(systems))
                assert count_tokens_approximately(kept) <= most
            _expect_whole_and_in_order(said, kept)
            assert len(memory.entries) == memory.stats()["total_messages"] == len(kept)

    asyncio.run(run())
    assert memory.stats()["interaction_count"] == len(adds)


@quick
@given(conversations(), st.integers(5, 15), st.integers(1, 12), st.sampled_from([None, 200]))
def test_whatever_is_not_kept_is_summarized_once(
    adds: list[list[BaseMessage]], limit: int, batch: int, tokens: int | None
) -> None:
    notes = Notes()
    memory = ShortTermMemory(summarizing(limit, batch, max_tokens=tokens), notes.model)

    async def run() -> None:
        for messages in adds:
            await memory.add(messages)
        await memory.add([])  # a summary may make others go, which waited for this one

    asyncio.run(run())
    shown = notes.folded + texts(memory.recent())
    for messages in adds:
        called = {c["id"] for each in messages for c in getattr(each, "tool_calls", [])}
        for message in messages:
            if isinstance(message, ToolMessage) and message.tool_call_id not in called:
                assert shown.count(str(message.text)) <= 1  # its call may have gone before it came
            elif not isinstance(message, SystemMessage):
                assert shown.count(str(message.text)) == 1
    assert all(len(asked) <= batch for _, asked in notes.asked)


# ---------------------------------------------------------------------- strategies


def kept(strategy: Any, limit: int, messages: list[BaseMessage], **more: Any) -> list[str]:
    config = MemoryConfig(max_short_term_messages=limit, short_term_strategy=strategy, **more)
    return texts(ShortTermMemory(config).add_nowait(messages))


def test_trim_last_keeps_the_latest() -> None:
    said = [*humans("1", "2"), SystemMessage("sys"), *humans("3", "4")]
    assert kept("trim_last", 3, said) == ["sys", "3", "4"]
    assert kept("trim_last", 5, said) == ["1", "2", "sys", "3", "4"]  # it fits: nothing is moved


def test_trim_middle_keeps_both_ends_and_fills_the_room() -> None:
    said = [SystemMessage("sys"), *humans(*"123456")]
    assert kept("trim_middle", 5, said) == ["sys", "1", "2", "5", "6"]
    assert kept("trim_middle", 4, said) == ["sys", "1", "5", "6"]
    first = [calling("a", text="1"), result("a", "2"), result("a", "3"), result("a", "4")]
    assert kept("trim_middle", 4, [*first, *humans(*"56789")]) == list("6789")


def test_importance_decides_and_order_is_kept() -> None:
    said: list[BaseMessage] = [
        AIMessage("small talk"),
        HumanMessage("a long question " * 50),
        AIMessage("small talk again"),
        calling("a", text="looking"),
        result("a"),
        HumanMessage("and now?"),
    ]
    found = kept("importance_based", 4, said)
    assert found == texts([said[1], *said[3:]])


def test_of_equal_messages_the_later_ones_are_kept() -> None:
    assert kept("importance_based", 3, humans(*"12345")) == ["3", "4", "5"]
    found = kept("importance_based", 3, humans(*"12345"), context_window_buffer=0)
    assert found == ["3", "4", "5"]


def test_a_short_question_does_not_lose_to_long_answers() -> None:
    memory = ShortTermMemory(
        MemoryConfig(max_short_term_messages=4, short_term_strategy="importance_based")
    )
    memory.add_nowait([AIMessage("long " * 300) for _ in range(4)])
    for question in ("why?", "how?", "when?"):
        assert memory.add_nowait(humans(question))[-1].text == question


def test_summarize_without_leave_or_model_trims_like_trim_last() -> None:
    config = MemoryConfig(max_short_term_messages=2, short_term_strategy="summarize")
    for memory in (ShortTermMemory(config, Notes().model), ShortTermMemory(summarizing(2))):
        assert texts(asyncio.run(memory.add(humans(*"123")))) == ["2", "3"]


def test_the_same_prompt_with_every_turn_does_not_fill_the_room() -> None:
    memory = ShortTermMemory(MemoryConfig(max_short_term_messages=4))
    for turn in range(20):
        memory.add_nowait([SystemMessage("be kind"), HumanMessage(f"{turn}")])
    found = texts(memory.recent())
    assert len(found) <= 4
    assert found.count("be kind") <= 2
    assert found[-1] == "19"


def test_system_messages_that_leave_no_room_are_kept_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = [SystemMessage(str(number)) for number in range(3)]
    assert kept("trim_last", 2, [*said, *humans("lost")]) == ["0", "1", "2"]
    assert "max_short_term_messages (2)" in caplog.text


def test_an_exchange_larger_than_the_room_goes_and_the_rest_stays() -> None:
    large = [calling("a", "b", "c"), result("a"), result("b"), result("c")]
    assert kept("trim_last", 3, [*humans("1", "2"), *large]) == ["1", "2"]


def test_a_result_belongs_to_the_latest_call_of_its_id() -> None:
    turn = [calling("1"), result("1", "old"), calling("1"), result("1", "new")]
    memory = ShortTermMemory(MemoryConfig(max_short_term_messages=2))
    assert texts(memory.add_nowait(turn)) == ["", "new"]


def test_a_late_result_whose_call_has_gone_is_not_kept() -> None:
    memory = ShortTermMemory(MemoryConfig(max_short_term_messages=1))
    memory.add_nowait([calling("a")])
    memory.add_nowait(humans("never mind"))
    assert texts(memory.add_nowait([result("a")])) == ["never mind"]


def test_tokens_are_limited_by_any_counter() -> None:
    def letters(messages: list[BaseMessage]) -> int:
        return sum(len(message.text) for message in messages)

    said = [SystemMessage("sys"), *humans("aaaa", "bbb", "cc")]
    more: dict[str, Any] = {"max_tokens": 9, "token_counter": letters}
    assert kept("trim_last", 50, said, **more) == ["sys", "bbb", "cc"]
    assert kept("trim_middle", 50, said, **more) == ["sys", "aaaa", "cc"]


def test_nothing_changes_when_something_is_no_message_or_cannot_be_counted() -> None:
    def broken(messages: list[BaseMessage]) -> int:
        if messages[0].text == "bad":
            raise LookupError("no such encoding")
        return 1

    memory = ShortTermMemory(MemoryConfig(max_tokens=10, token_counter=broken))
    memory.add_nowait(humans("good"))
    with pytest.raises(TypeError, match=r"messages\[1\] is a dict"):
        memory.add_nowait([HumanMessage("x"), {"role": "user"}])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"messages\[0\] is a str"):
        memory.add_nowait("hello")  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        memory.add_nowait(humans("x", "bad"))
    assert texts(memory.recent()) == ["good"]
    assert memory.stats()["interaction_count"] == 1


# ---------------------------------------------------------------------- what messages weigh


def test_importance_by_kind_and_length() -> None:
    kinds = [SystemMessage("x"), calling("a", text="x"), HumanMessage("x"), AIMessage("x")]
    assert [round(rate(each), 2) for each in kinds] == [2.0, 1.5, 1.2, 1.0]
    assert rate(HumanMessage("x" * 500)) == pytest.approx(1.7)
    assert rate(HumanMessage("x" * 9000)) == pytest.approx(2.2)


def test_importance_fades_with_age_however_often_it_is_consolidated() -> None:
    now = 1000.0
    memory = ShortTermMemory(clock=lambda: now)
    memory.add_nowait([AIMessage("")])
    assert memory.consolidate() == {
        "consolidated_messages": 1,
        "memory_items": 1,
        "avg_importance": 1.0,
    }
    now += 6 * 3600
    for _ in range(3):
        assert memory.consolidate()["avg_importance"] == pytest.approx(0.75)
    now += 100 * 3600
    assert memory.consolidate()["avg_importance"] == pytest.approx(0.5)
    now = 0.0  # a clock that was set back
    assert memory.consolidate()["avg_importance"] == pytest.approx(1.0)
    memory.clear()
    assert memory.consolidate()["avg_importance"] == 0.0


def test_importance_fades_by_itself_every_few_interactions() -> None:
    now = 0.0
    memory = ShortTermMemory(MemoryConfig(memory_update_threshold=3), clock=lambda: now)
    memory.add_nowait([AIMessage("")])
    now = 12 * 3600.0
    memory.add_nowait([])
    assert memory.entries[0].importance == 1.0
    memory.add_nowait([])
    assert memory.entries[0].importance == 0.5
    assert memory.entries[0].when == 0.0


# ---------------------------------------------------------------------- reading


def test_recent_gives_the_latest_and_whole_exchanges() -> None:
    memory = ShortTermMemory()
    memory.add_nowait([*humans("1", "2"), calling("a", "b"), result("a", "3"), result("b", "4")])
    assert texts(memory.recent()) == ["1", "2", "", "3", "4"]
    assert texts(memory.recent(1)) == texts(memory.recent(3)) == ["", "3", "4"]
    assert texts(memory.recent(4)) == ["2", "", "3", "4"]
    assert memory.recent(0) == []
    assert len(memory.recent(99)) == 5
    with pytest.raises(ValueError, match="count is -1"):
        memory.recent(-1)
    memory.recent().clear()
    assert len(memory.recent()) == 5


def test_relevant_finds_words_and_rare_ones_first() -> None:
    memory = ShortTermMemory()
    memory.add_nowait(
        [
            HumanMessage("What is the weather in Paris?"),
            AIMessage("The weather is fine."),
            HumanMessage("What is the time?"),
            AIMessage("The time is noon."),
            HumanMessage("Thanks"),
            AIMessage("You are welcome"),
            HumanMessage("Bye"),
        ]
    )
    found = texts(memory.relevant("the weather, PARIS", limit=3))
    assert found[:2] == ["What is the weather in Paris?", "The weather is fine."]
    assert found == texts(memory.relevant("the weather, PARIS", limit=3))
    latest = ["Thanks", "You are welcome", "Bye"]
    assert texts(memory.relevant("paris")) == ["What is the weather in Paris?", *latest]
    assert texts(memory.relevant("paris", limit=3)) == [
        "What is the weather in Paris?",
        "You are welcome",
        "Bye",
    ]
    assert texts(memory.relevant("zebra")) == latest
    assert texts(memory.relevant(limit=3)) == texts(memory.relevant("?!", limit=3)) == latest
    assert memory.relevant("paris", limit=0) == []
    assert ShortTermMemory().relevant("paris") == []


def test_relevant_weighs_recency_and_gives_exchanges_whole() -> None:
    memory = ShortTermMemory()
    memory.add_nowait([AIMessage("old black tea"), *humans(*"123"), AIMessage("new tea")])
    assert texts(memory.relevant("tea", limit=2)) == ["new tea", "old black tea"]
    memory.add_nowait([calling("a"), result("a", "coffee"), *humans(*"4567")])
    assert texts(memory.relevant("coffee", limit=1)) == ["", "coffee"]
    assert texts(memory.relevant("look", limit=1)) == ["", "coffee"]  # the tool's name


def test_figures_have_the_original_shape() -> None:
    memory = ShortTermMemory(MemoryConfig(max_short_term_messages=10))
    assert memory.health()["average_importance"] == 0.0
    memory.add_nowait([SystemMessage(""), HumanMessage(""), AIMessage(""), result("orphan")])
    stats = {
        "total_messages": 3,
        "interaction_count": 1,
        "system_messages": 1,
        "human_messages": 1,
        "ai_messages": 1,
    }
    assert memory.stats() == stats
    health = memory.health()
    config = health.pop("config")
    assert config["short_term_strategy"] == "trim_last"
    assert config["max_short_term_messages"] == 10
    assert health == stats | {"memory_efficiency": 0.3, "average_importance": pytest.approx(1.4)}
    memory.clear()
    assert set(memory.stats().values()) == {0}


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


async def _hang() -> str:
    await asyncio.sleep(60)
    return "too late"


def _fail() -> str:
    raise ConnectionError("no route to the model")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_fail, "no route to the model"),
        (_hang, "did not answer in time"),
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
    notes = Notes(_hang)
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
    notes = Notes(_hang)
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


# ---------------------------------------------------------------------- many at once


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
    notes = Notes(_hang)
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
