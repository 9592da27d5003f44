"""Conversion of users' ids to the text that is stored."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from numbers import Number
from operator import index

from langchain_core.runnables import RunnableConfig

from flowgentic_actors.errors import InvalidRequestError


def text_of(name: str, value: object) -> str:
    """Make an id text: a `uuid.UUID` or a number becomes `str()` of it, as in LangGraph's savers.

    A member of an enumeration of texts or numbers is its value, since `str()` of it depends on how
    the enumeration was made; any other member is refused.

    Args:
        name: The field's name.
        value: Text of any type, or a scalar that has a text of its own.

    Raises:
        InvalidRequestError: If it is none, such as None, bytes, a collection, or an object whose
            text is an address.
    """
    if isinstance(value, str):
        return str.__str__(value)
    kind = type(value)
    if isinstance(value, Enum) and isinstance(value, Number):
        return text_of(name, value.value)
    has_text = isinstance(value, Number) or kind.__str__ is not object.__str__
    if not has_text or hasattr(kind, "__iter__"):  # an enumeration has one, too
        raise InvalidRequestError(
            f"{name} is {value!r:.100}, of type {kind.__name__}: give text, a number or a UUID"
        )
    return str(value)


def texts_of(name: str, values: Iterable[object]) -> list[str]:
    """Make several ids text; see `text_of`."""
    if isinstance(values, str):
        raise InvalidRequestError(f"{name} is {values!r:.100}, one text: give a list of ids")
    return [text_of(name, value) for value in values]


def identify(config: RunnableConfig) -> tuple[str, str, str | None]:
    """The thread, namespace and checkpoint of a config, the only parts of it that are sent.

    An empty checkpoint id is none, as in LangGraph's savers.

    Raises:
        InvalidRequestError: If it names no thread, or one of them cannot be text.
    """
    try:
        configurable = config["configurable"]
        thread_id, ns = configurable["thread_id"], configurable["checkpoint_ns"]
    except KeyError:
        configurable = config.get("configurable", {})
        thread_id, ns = configurable.get("thread_id"), configurable.get("checkpoint_ns")
    checkpoint_id = configurable.get("checkpoint_id")
    if type(thread_id) is not str:
        thread_id = thread_of(thread_id)
    if type(ns) is not str:
        ns = optional("checkpoint_ns", ns) or ""
    if checkpoint_id is not None and type(checkpoint_id) is not str:
        checkpoint_id = text_of("checkpoint_id", checkpoint_id)
    return thread_id, ns, checkpoint_id or None


def thread_of(thread_id: object) -> str:
    """The thread that a config names; see `identify`."""
    if thread_id is None:
        raise InvalidRequestError(
            "the config names no thread: pass {'configurable': {'thread_id': ...}}"
        )
    return text_of("thread_id", thread_id)


def optional(name: str, value: object) -> str | None:
    """Make an id text unless it is None; see `text_of`."""
    return None if value is None else text_of(name, value)


def whole(name: str, value: object) -> int:
    """Convert an integer of any type, NumPy's included, to `int`.

    Raises:
        InvalidRequestError: If it is none.
    """
    try:
        return int(index(value))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidRequestError(
            f"{name} is {value!r:.100}, of type {type(value).__name__}: give a whole number"
        ) from None


def limit_of(limit: object) -> int | None:
    """The limit of a listing, None for none.

    Raises:
        InvalidRequestError: If it is negative, or no whole number.
    """
    if limit is None:
        return None
    most = whole("limit", limit)
    if most < 0:
        raise InvalidRequestError(f"limit must be at least 0, not {most}")
    return most
