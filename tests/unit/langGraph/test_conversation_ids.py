"""Ids of users and threads in the short-term memory."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import HumanMessage

from flowgentic_actors.errors import FlowgenticError
from flowgentic_actors.langGraph.conversations import ShortTermMemories
from flowgentic_actors.langGraph.memory import LangraphMemoryManager

pytestmark = pytest.mark.anyio

USER: Any = UUID(int=7)


def embed(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0] for text in texts]


async def test_a_uuid_is_the_user_that_its_text_names() -> None:
    settings: dict[str, Any] = {"index": {"dims": 2, "embed": embed}}
    async with LangraphMemoryManager(**settings) as manager:
        said = HumanMessage("hello")
        await manager.add_interaction(USER, [said], thread_id=USER)
        assert manager.get_short_term_messages(str(USER), str(USER)) == [said]
        found = await manager.get_relevant_context(USER, "hello", thread_id=USER)
        assert found["relevant_messages"] == [said]
        await manager.aclear(USER, USER)
        assert manager.get_short_term_messages(USER, USER) == []
        store = manager.get_store()
        assert store is not None
        assert await store.asearch(()) == []


def test_an_invalid_id_deletes_nothing() -> None:
    memories = ShortTermMemories()
    memories.of("ada").add_nowait([HumanMessage("hello")])
    for wrong in (7, b"ada", ["ada"], False):
        given: Any = wrong
        with pytest.raises(TypeError, match="user_id is a"):
            memories.forget(given)
        with pytest.raises(TypeError, match="thread_id is a"):
            memories.forget("ada", given)
        with pytest.raises(TypeError, match="user_id is a"):
            memories.threads(given)
    with pytest.raises(ValueError, match="user_id is empty"):
        memories.forget("")
    with pytest.raises(ValueError, match=r"user_id: .*half of a surrogate pair") as refused:
        memories.of("cut \ud83d")
    assert isinstance(refused.value, FlowgenticError)
    assert len(memories) == 1


def test_a_thread_without_a_user_is_refused() -> None:
    manager = LangraphMemoryManager()
    with pytest.raises(ValueError, match="thread_id without a user_id"):
        manager.clear(thread_id="t")
