"""Slow requests are named in the events, in every mode, and not too many of them."""

from __future__ import annotations

import time

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.client import inline as inline_client
from flowgentic_actors.engine.commands import GetItem, SearchItems
from flowgentic_actors.shard.slow_requests import SlowRequests

pytestmark = pytest.mark.anyio


def test_one_is_told_of_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told: list[tuple[str, str]] = []
    requests = SlowRequests(lambda *event: told.append(event))
    requests.note(SearchItems((), b"", 1, 0), 0.5)
    requests.note(GetItem(("a",), "k"), 2.0)
    now += 11
    requests.note(GetItem(("a",), "k"), 0.25)
    assert told == [
        ("slow_request", "SearchItems took 0.50 s, in which others waited"),
        (
            "slow_request",
            "GetItem took 0.25 s, in which others waited; 1 others since the last event",
        ),
    ]


async def test_a_slow_page_is_an_event_of_a_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_client, "SLOW", 0.0)
    async with MemoryCluster(mode="local") as memory:
        await memory.store.aput(("a",), "k", {"n": 1})
        await memory.store.asearch(("a",))
        async for event in memory.events():
            if event.kind == "slow_request":
                break
        assert event.actor == "shard-0"
        assert event.detail.startswith("SearchItems took 0.0")
