"""Which messages of a conversation stay, by strategy, and what is read of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from tests.support.conversations import Notes, calling, humans, kept, result, summarizing, texts

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- strategies


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
