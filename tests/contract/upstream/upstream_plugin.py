"""A pytest plugin that serves LangGraph's own tests with our memory.

Where their tests make an `InMemorySaver` or `InMemoryStore`, in a fixture or by themselves, they
get one of ours. A test may make several, each empty and alone: so each gets another cluster. Opening
one takes a while, so it is emptied and used again in the next test.

It is imported by itself, without the package around it: their package is called `tests`, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

import langgraph.checkpoint.memory
import langgraph.store.memory
import pytest
from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors import AsyncCheckpointSaver, AsyncStore, MemoryCluster
from flowgentic_actors.cluster.client import MemoryClient

REFERENCE = "in-memory"

MODES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "inline": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
}

ELSEWHERE = ("sqlite", "postgres", "redis")
"""Parameters of their fixtures that stand for other savers, stores and caches."""


class Unread(SerializerProtocol):
    """Reads nothing of what it gets: tests store with all sorts of serializers."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        raise NotImplementedError

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return {}


class Clusters:
    """Open clusters of one mode: a test's nth saver and its nth store are those of the nth."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._open: list[MemoryCluster] = []
        self._given: dict[type, int] = {AsyncCheckpointSaver: 0, AsyncStore: 0}

    def client(self, kind: type) -> MemoryClient:
        """How to reach an empty memory, for a saver or a store."""
        number = self._given[kind]
        self._given[kind] += 1
        if number == len(self._open):
            memory = MemoryCluster(**self.settings)
            with ThreadPoolExecutor(1) as thread:  # this one's event loop may be running
                thread.submit(asyncio.run, memory.__aenter__()).result()
            self._open.append(memory)
        return self._open[number].checkpointer._client

    def empty(self) -> None:
        """Delete what the test has stored."""
        for memory in self._open[: self._given[AsyncCheckpointSaver]]:
            saver = AsyncCheckpointSaver(memory.checkpointer._client, serde=Unread())
            for thread in {found.config["configurable"]["thread_id"] for found in saver.list(None)}:
                saver.delete_thread(thread)
        for memory in self._open[: self._given[AsyncStore]]:
            store = AsyncStore(memory.checkpointer._client, serde=Unread())
            for item in store.search((), limit=1_000_000):
                store.delete(item.namespace, item.key)
        self._given = dict.fromkeys(self._given, 0)

    def close(self) -> None:
        while self._open:
            asyncio.run(self._open.pop().__aexit__(None, None, None))


clusters = Clusters()


class OurSaver(AsyncCheckpointSaver):
    """Ours, made and used like an `InMemorySaver`."""

    def __init__(self, *, serde: SerializerProtocol | None = None, factory: Any = None) -> None:
        super().__init__(clusters.client(AsyncCheckpointSaver), serde=serde)
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stack.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("storage", "writes", "blobs"):
            pytest.skip("it looks inside an InMemorySaver")
        raise AttributeError(name)


class OurStore(AsyncStore):
    """Ours, made like an `InMemoryStore`."""

    def __init__(self, *, index: Any = None) -> None:
        if index is not None:
            pytest.skip("our store has no vector index")
        super().__init__(clusters.client(AsyncStore))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--memory", choices=MODES, default=REFERENCE, help="whose memory is used")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Take their classes' places before any file of theirs imports them."""
    mode = early_config.known_args_namespace.memory
    if mode == REFERENCE:
        return
    clusters.settings = MODES[mode]
    for name in ("InMemorySaver", "MemorySaver"):
        setattr(langgraph.checkpoint.memory, name, OurSaver)
    setattr(langgraph.store.memory, "InMemoryStore", OurStore)  # noqa: B010 - mypy knows a class


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not is_elsewhere(item)]


def is_elsewhere(item: pytest.Item) -> bool:
    """Whether a test is done with another saver, store or cache than the one in question."""
    call = getattr(item, "callspec", None)
    given = call.params.values() if call is not None else ()
    return any(isinstance(value, str) and value.startswith(ELSEWHERE) for value in given)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    yield
    clusters.empty()


def pytest_unconfigure() -> None:
    clusters.close()
