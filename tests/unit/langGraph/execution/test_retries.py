"""Retries of tools and nodes on every backend."""

from __future__ import annotations

import asyncio
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt import ToolNode
from pydantic import ValidationError

from flowgentic_actors.langGraph import backends
from flowgentic_actors.langGraph.execution import Execution
from flowgentic_actors.langGraph.retries import RetryConfig, retry
from tests.support.execution import QUICK, Flaky, call_of, fail, graph_of

pytestmark = pytest.mark.anyio


async def test_transient_errors_are_retried_and_others_are_not() -> None:
    flaky = Flaky(TimeoutError(), ConnectionResetError())
    assert await retry(flaky, QUICK, "f") == "done"
    assert flaky.calls == 3

    for errors in ([OSError()] * 3, [ValueError()]):
        flaky = Flaky(*errors)
        with pytest.raises(type(errors[0])) as caught:
            await retry(flaky, QUICK, "f")
        assert flaky.calls == len(errors)
        notes = getattr(caught.value, "__notes__", [])
        assert notes == (["f: this was attempt 3"] if len(errors) == 3 else [])


async def test_what_is_retried_can_be_said() -> None:
    config = QUICK.model_copy(update={"retryable_exceptions": (KeyError,)})
    assert await retry(Flaky(KeyError("k")), config, "f") == "done"
    with pytest.raises(OSError):
        await retry(Flaky(OSError()), config, "f")


async def test_errors_of_http_clients_are_transient_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NetworkError(Exception):
        pass

    monkeypatch.delitem(sys.modules, "aiohttp", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", SimpleNamespace(NetworkError=NetworkError))
    assert await retry(Flaky(NetworkError()), QUICK, "f") == "done"
    monkeypatch.delitem(sys.modules, "httpx")
    with pytest.raises(NetworkError):
        await retry(Flaky(NetworkError()), QUICK, "f")


async def test_pauses_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    config = RetryConfig(max_attempts=7)
    await retry(Flaky(*[OSError()] * 6), config, "f")
    for pause, middle in zip(pauses, (0.5, 1, 2, 4, 8, 8), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle

    pauses.clear()
    config = RetryConfig(max_attempts=1000, jitter=0, base_backoff_sec=1)
    await retry(Flaky(*[OSError()] * 999), config, "f")
    assert pauses == [1, 2, 4] + [8] * 996


async def test_an_attempt_that_takes_too_long_is_retried(execution: Execution) -> None:
    async def slow() -> None:
        await asyncio.sleep(20)

    config = RetryConfig(max_attempts=2, timeout_sec=0.1, base_backoff_sec=0)
    began = time.monotonic()
    place = execution._place
    if isinstance(place, backends._Processes):
        return  # it would keep the only process
    with pytest.raises(TimeoutError, match=r"slow took longer than timeout_sec=0\.1 s") as caught:
        await execution.task(slow, retry=config)()
    assert time.monotonic() - began < 5
    assert caught.value.__notes__ == ["slow: this was attempt 2"]


async def test_the_error_of_a_tool_can_be_read_by_the_model(execution: Execution) -> None:
    config = RetryConfig(raise_on_failure=False, base_backoff_sec=0)
    tool = execution.tool(fail, retry=config)
    error = {
        "tool": "fail",
        "status": "error",
        "attempts": 1,
        "retryable": False,
        "error_type": "ValueError",
        "error": "no 1",
    }
    assert await tool.ainvoke({"a": 1}) == error
    result = await graph_of(ToolNode([tool])).ainvoke(
        {"messages": [call_of("fail", a=1)], "total": 0}
    )
    assert '"error": "no 1"' in result["messages"][-1].content

    flaky = Flaky(*[OSError("gone")] * 3)
    answer: Any = await retry(flaky, config, "f")
    assert (answer["attempts"], answer["retryable"], answer["error"]) == (3, True, "gone")


async def test_what_steers_a_graph_is_no_failure() -> None:
    config = RetryConfig(
        raise_on_failure=False, retryable_exceptions=(Exception,), base_backoff_sec=0
    )
    flaky = Flaky(GraphInterrupt())
    with pytest.raises(GraphInterrupt):
        await retry(flaky, config, "f")
    assert flaky.calls == 1


def test_impossible_settings_are_refused() -> None:
    settings: list[tuple[str, Any]] = [
        ("max_attempts", 0),
        ("jitter", 1.5),
        ("timeout_sec", 0),
        ("base_backoff_sec", -1),
        ("retryable_exceptions", (asyncio.CancelledError,)),
        ("attempts", 3),
    ]
    for name, value in settings:
        with pytest.raises(ValidationError, match=name):
            RetryConfig(**{name: value})
