"""The memory of a LangGraph server; a module, so that all importers share one."""

from __future__ import annotations

import functools
import threading

from flowgentic_actors import MemoryCluster

_opening = threading.Lock()


@functools.cache
def _open() -> MemoryCluster:
    return MemoryCluster(mode="local", persist_path="agent-memory").open()


def memory() -> MemoryCluster:
    """The memory, opened when it is first asked for, and closed when the server ends. Blocks."""
    with _opening:
        return _open()
