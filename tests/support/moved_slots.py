"""What clients ask while slots move."""

from __future__ import annotations

import pytest

from flowgentic_actors import AsyncStore

THREADS, EACH = 14, 3
LATE = 0.02
"""Seconds after which a client hears of a table, less than it waits for one."""

both = pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])


async def namespaces(store: AsyncStore, *, blocking: bool) -> list[tuple[str, ...]]:
    return store.list_namespaces() if blocking else await store.alist_namespaces()
