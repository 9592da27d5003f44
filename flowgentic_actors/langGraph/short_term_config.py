"""The settings of a conversation's memory, with their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from pydantic import BeforeValidator, Field, model_validator

from flowgentic_actors.config_values import Settings

Strategy = Literal["trim_last", "trim_middle", "importance_based", "summarize"]
TokenCounter = Callable[[list[BaseMessage]], int]

_MANY = 1_000_000
_SUMMARY_SHARE = 4  # a summary gets a quarter of the tokens: what was said last matters more


def _counts(counter: Any) -> Any:
    if counter is None or counter == "approximate" or callable(counter):
        return counter
    raise ValueError("must be 'approximate' or a function of a list of messages that counts tokens")


class MemoryConfig(Settings):
    """Limits and strategy for the messages kept of each conversation; unknown names are refused."""

    max_short_term_messages: Annotated[int, Field(ge=1, le=_MANY)] = 50
    """Messages of one conversation that are kept, the system messages among them. Only system
    messages, which are always kept, may be more."""

    short_term_strategy: Strategy = "trim_last"
    """What is kept of a conversation that has grown too long, besides its system messages.
    `"trim_last"`: the latest messages. `"trim_middle"`: the first and the latest ones.
    `"importance_based"`: the latest and, of the others, the most important ones. `"summarize"`: the
    latest ones, and a summary of the rest; without `enable_summarization` or without a model, the
    same as `"trim_last"`."""

    context_window_buffer: Annotated[int, Field(ge=0, le=_MANY)] = 10
    """Latest messages that `"importance_based"` keeps whatever they weigh, so that a short question
    does not lose to a long answer. They take at most half of the room."""

    memory_update_threshold: Annotated[int, Field(ge=1, le=_MANY)] = 5
    """Interactions after which the importance of what is kept is made to fade with its age."""

    summarization_batch_size: Annotated[int, Field(ge=1, le=_MANY)] = 10
    """Messages that are folded into the summary at once, with one call of the model."""

    enable_summarization: bool = False
    """Let `"summarize"` call the model, which costs time and money."""

    summarization_timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 30.0
    """Seconds that one `add` waits for summaries; then what is not summarized is let go."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one conversation that are kept, the system messages' among them. Default: they are
    not counted."""

    token_counter: Annotated[
        TokenCounter | Literal["approximate"] | None, BeforeValidator(_counts)
    ] = None
    """What counts them: a function of a list of messages, such as a model's
    `get_num_tokens_from_messages`, which is given one message at a time, once; or `"approximate"`,
    LangChain's `count_tokens_approximately`, which is the default with `max_tokens`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.token_counter is not None and self.max_tokens is None:
            raise ValueError(
                "token_counter needs max_tokens: without a limit nothing is counted. Set both or "
                "neither"
            )
        return self

    @property
    def summarizes(self) -> bool:
        """Whether summaries are enabled and allowed."""
        return self.short_term_strategy == "summarize" and self.enable_summarization

    @property
    def token_limit(self) -> float:
        """`max_tokens`, or infinity."""
        return math.inf if self.max_tokens is None else self.max_tokens

    @property
    def summary_tokens(self) -> int:
        """The part of `max_tokens` reserved for a summary; 0 where tokens are not limited."""
        return 0 if self.max_tokens is None else self.max_tokens // _SUMMARY_SHARE

    def count_tokens(self, message: BaseMessage) -> int:
        """The tokens of a message; 0 where they are not limited."""
        if self.max_tokens is None:
            return 0
        if callable(self.token_counter):
            return self.token_counter([message])
        return count_tokens_approximately([message])
