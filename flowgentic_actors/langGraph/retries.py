"""Retries: which errors are retried, how often, and after which pause."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from langgraph.errors import GraphBubbleUp
from pydantic import Field

from flowgentic_actors.config_values import Settings
from flowgentic_actors.deadlines import timeout

logger = logging.getLogger("flowgentic_actors")

T = TypeVar("T")

_Pause = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]

_OF_HTTP_CLIENTS = {
    "httpx": ("TimeoutException", "NetworkError", "RemoteProtocolError"),
    "aiohttp": ("ClientConnectionError",),
}


class RetryConfig(Settings):
    """The retry settings of a tool or node; unknown names are refused. Times are seconds."""

    max_attempts: Annotated[int, Field(ge=1, le=1_000)] = 3
    """Attempts in all, the first one included."""

    base_backoff_sec: _Pause = 0.5
    """Pause after the first failed attempt; it doubles with each further one."""

    max_backoff_sec: _Pause = 8.0
    """The longest pause."""

    jitter: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.25
    """Part of a pause by which it is made longer or shorter at random, so that callers who failed
    together do not come back together."""

    timeout_sec: Annotated[float, Field(gt=0, le=31 * 86_400, allow_inf_nan=False)] | None = 30.0
    """Time that one attempt may take; None: as long as it likes."""

    retryable_exceptions: tuple[type[Exception], ...] = ()
    """What is worth another attempt. Default: `TimeoutError`, `ConnectionError` and every other
    `OSError`, and the transient errors of httpx and aiohttp where the program uses these."""

    raise_on_failure: bool = True
    """Raise the last error. False: return it as a dictionary (`tool`, `status`, `attempts`,
    `retryable`, `error_type`, `error`), which a model can read and act on."""


async def retry(
    call: Callable[[], Awaitable[T]], config: RetryConfig, name: str
) -> T | dict[str, Any]:
    """Call until it succeeds, fails for good, or has failed `max_attempts` times.

    A cancellation ends it at once, and so does what LangGraph raises to steer a graph
    (`interrupt()`, a command to the parent graph): neither is a failure.

    Args:
        call: Starts one attempt.
        config: How often, with which pauses and deadline.
        name: What is called, for messages.

    Returns:
        What the call returned, or the last error as a dictionary if `raise_on_failure` is off.

    Raises:
        TimeoutError: If the last attempt took longer than `timeout_sec`.
        Exception: What the last attempt raised.
    """
    transient = config.retryable_exceptions or _transient_exceptions()
    attempt = 0
    while True:
        attempt += 1
        try:
            return await _attempt(call, config.timeout_sec, name)
        except GraphBubbleUp:
            raise
        except Exception as error:
            again = isinstance(error, transient)
            if not again or attempt == config.max_attempts:
                if config.raise_on_failure:
                    if attempt > 1:
                        error.add_note(f"{name}: this was attempt {attempt}")
                    raise
                return _payload(name, attempt, again, error)
            pause = _pause(config, attempt)
            logger.info(
                "%s failed (attempt %d of %d), the next one is in %.2f s: %r",
                name,
                attempt,
                config.max_attempts,
                pause,
                error,
            )
        await asyncio.sleep(pause)


async def _attempt(call: Callable[[], Awaitable[T]], seconds: float | None, name: str) -> T:
    deadline = timeout(math.inf if seconds is None else seconds)
    try:
        async with deadline:
            return await call()
    except TimeoutError as error:
        if deadline.expired():
            raise TimeoutError(f"{name} took longer than timeout_sec={seconds} s") from error
        raise


def _transient_exceptions() -> tuple[type[Exception], ...]:
    """The default errors, with those of clients that the program has imported by now."""
    found: list[type[Exception]] = [OSError]  # of which TimeoutError and ConnectionError are two
    for module, names in _OF_HTTP_CLIENTS.items():
        client = sys.modules.get(module)
        errors = [getattr(client, name, None) for name in names]  # None: not all imported yet
        found += [error for error in errors if error is not None]
    return tuple(found)


def _pause(config: RetryConfig, attempt: int) -> float:
    pause = config.base_backoff_sec * 2.0 ** min(attempt - 1, 60)
    pause = min(pause, config.max_backoff_sec)
    return pause * random.uniform(1 - config.jitter, 1 + config.jitter)  # noqa: S311 - no secret


def _payload(name: str, attempts: int, retryable: bool, error: Exception) -> dict[str, Any]:
    logger.warning("%s failed for good after %d attempts: %r", name, attempts, error)
    return {
        "tool": name,
        "status": "error",
        "attempts": attempts,
        "retryable": retryable,
        "error_type": type(error).__name__,
        "error": str(error),
    }
