"""Limits of the memory of conversations: settings, what always holds, and what messages weigh."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from pydantic import ValidationError

from flowgentic_actors.langGraph.entry import rate
from flowgentic_actors.langGraph.short_term import ShortTermMemory
from flowgentic_actors.langGraph.short_term_config import MemoryConfig
from flowgentic_actors.langGraph.summary import PREFIX
from tests.support.conversations import Notes, calling, conversations, summarizing, texts

pytestmark = pytest.mark.anyio

quick = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

STRATEGIES = ["trim_last", "trim_middle", "importance_based", "summarize"]


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
