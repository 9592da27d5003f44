"""What tests of the engine share."""

from __future__ import annotations

import pytest

from flowgentic_actors.engine import Shard
from tests.support.engine_commands import put_checkpoint, put_item


@pytest.fixture
def shard() -> Shard:
    return Shard()


@pytest.fixture
def history(shard: Shard) -> Shard:
    put_checkpoint(shard, "1", "a", facets={"source": "input", "step": -1})
    put_checkpoint(shard, "4", "a", facets={"source": "loop", "step": 0})
    put_checkpoint(shard, "3", "a", "child", facets={"source": "loop", "step": 1})
    put_checkpoint(shard, "2", "b", facets={"source": "input"})
    put_checkpoint(shard, "4", "b", facets={"source": "fork", "step": None})
    return shard


@pytest.fixture
def store(shard: Shard) -> Shard:
    for namespace, key in [
        (("users", "2"), "e"),
        (("users", "10"), "c"),
        (("users",), "b"),
        (("users", "10", "deep"), "d"),
        (("users\0",), "f"),
        (("usersx", "1"), "g"),
        (("docs",), "a"),
    ]:
        put_item(shard, namespace, key, {"key": key})
    return shard
