"""Chat models by name, and the librarian's prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable

TIMEOUT = 120.0
"""Seconds that a model has for an answer."""

_TASK = (
    "Answer the question from the passages alone, in a few sentences. Cite each fact as file:line. "
    "If the passages do not answer it, say so."
)


class NoModelError(Exception):
    """The named model is not available."""


def load_model(name: str) -> Runnable[Any, Any]:
    """Load a chat model by LangChain's id, such as `openai:gpt-4o-mini`. Blocks for a while.

    Raises:
        NoModelError: If it cannot be loaded, with what to do.
    """
    try:
        init = import_module("langchain.chat_models").init_chat_model
    except ImportError as error:
        raise NoModelError(
            f"--model {name} needs LangChain and the model's own package: pip install langchain, "
            "and langchain-openai (or whichever it is)"
        ) from error
    try:
        model: Runnable[Any, Any] = init(name)
    except Exception as error:  # whatever the provider's package raises
        raise NoModelError(f"--model {name} cannot be loaded: {error}") from error
    return model


async def write_answer(
    model: Runnable[Any, Any], question: str, passages: Sequence[Mapping[str, Any]]
) -> str:
    """Have a model write an answer from the passages that were found.

    Raises:
        TimeoutError: If that took too long.
    """
    found = "\n\n".join(f"{p['file']}:{p['line']}\n{p['text']}" for p in passages)
    messages: list[BaseMessage] = [
        SystemMessage(_TASK),
        HumanMessage(f"Question: {question}\n\nPassages:\n\n{found}"),
    ]
    async with asyncio.timeout(TIMEOUT):
        said = await model.ainvoke(messages)
    return str(said.text if isinstance(said, BaseMessage) else said)
