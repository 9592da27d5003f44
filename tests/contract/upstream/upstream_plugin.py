"""A pytest plugin that serves LangGraph's own tests with our memory.

Where their tests make an `InMemorySaver`, `InMemoryStore` or `InMemoryCache`, in a fixture or by
themselves, they get one of ours. A test may make several, each empty and alone: so each gets
another cluster. Opening one takes a while, so it is emptied and used again in the next test.

It is imported by itself, without the package around it: their package is called `tests`, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

import langgraph.cache.memory
import langgraph.checkpoint.memory
import langgraph.store.memory
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors import AsyncCache, AsyncCheckpointSaver, AsyncStore, MemoryCluster
from flowgentic_actors.cluster.client.memory_client import MemoryClient

REFERENCE = "in-memory"

MODES: dict[str, dict[str, Any]] = {
    "inline": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
    "several-actors": {"mode": "distributed", "spawner": "subprocess", "actors_per_node": 3},
}

ELSEWHERE = ("sqlite", "postgres", "redis")
"""What the parameters of their fixtures begin with that stand for anything else."""


class Clusters:
    """Open clusters of one mode: a test's nth saver, store and cache are those of the nth."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._open: list[MemoryCluster] = []
        self._given = Counter[str]()

    def client(self, kind: str) -> MemoryClient:
        """How to reach an empty memory."""
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
        for memory in self._open[: max(self._given.values(), default=0)]:
            for thread in list(memory.checkpointer.threads()):
                memory.checkpointer.delete_thread(thread.thread_id)
            for item in memory.store.search((), limit=1_000_000):
                memory.store.delete(item.namespace, item.key)
            memory.cache.clear()
        self._given.clear()

    def close(self) -> None:
        while self._open:
            asyncio.run(self._open.pop().__aexit__(None, None, None))


clusters = Clusters()


class OurSaver(AsyncCheckpointSaver):
    """Ours, made and used like an `InMemorySaver`."""

    def __init__(self, *, serde: SerializerProtocol | None = None, factory: Any = None) -> None:
        super().__init__(clusters.client("saver"), serde=serde)
        self.stack = ExitStack()

    def __init_subclass__(cls) -> None:
        await_what_is_overridden(cls, "get_tuple", "get_delta_channel_history")

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Note a copy, as the saver of their fixtures does in `put`, which looks for it there."""
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        if "storage_for_copies" in vars(self):
            where = stored["configurable"]
            copies = vars(self)["storage_for_copies"][where["thread_id"]][where["checkpoint_ns"]]
            copies[checkpoint["id"]] = self.serde.dumps_typed(self.get(stored))
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stack.close()

    def __getattr__(self, name: str) -> Any:
        return inside(name, "storage", "writes", "blobs")


class OurStore(AsyncStore):
    """Ours, made like an `InMemoryStore`."""

    def __init__(self, *, index: Any = None) -> None:
        super().__init__(clusters.client("store"), index=index)

    def __getattr__(self, name: str) -> Any:
        return inside(name, "index_config", "embeddings")


class OurCache(AsyncCache[Any]):
    """Ours, made like an `InMemoryCache`."""

    def __init__(self, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(clusters.client("cache"), serde=serde)

    def __init_subclass__(cls) -> None:
        await_what_is_overridden(cls, "get", "set")


def inside(name: str, *names: str) -> Any:
    """Skip a test that asks for what only theirs have, and their base classes do not."""
    if name in names:
        pytest.skip("it looks inside LangGraph's own class")
    raise AttributeError(name)


def await_what_is_overridden(cls: type, *names: str) -> None:
    """Theirs carry out an async call by the sync method: tests override that one alone."""
    for name in names:
        if name in vars(cls) and f"a{name}" not in vars(cls):
            setattr(cls, f"a{name}", awaited(vars(cls)[name]))


def awaited(method: Callable[..., Any]) -> Callable[..., Any]:
    """The async form of a sync method."""

    async def carry_out(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return carry_out


def pytest_addoption(parser: pytest.Parser) -> None:
    modes = (REFERENCE, *MODES)
    parser.addoption("--memory", choices=modes, default=REFERENCE, help="whose memory is used")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Take their classes' places before any file of theirs imports them."""
    mode = early_config.known_args_namespace.memory
    if mode == REFERENCE:
        return
    clusters.settings = MODES[mode]
    checkpoint: Any = langgraph.checkpoint.memory
    store: Any = langgraph.store.memory
    cache: Any = langgraph.cache.memory
    checkpoint.InMemorySaver = checkpoint.MemorySaver = OurSaver
    store.InMemoryStore = OurStore
    cache.InMemoryCache = OurCache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not is_elsewhere(item)]


def is_elsewhere(item: pytest.Item) -> bool:
    """Whether a test is done with another saver, store or cache than the one in question."""
    call = getattr(item, "callspec", None)
    given = call.params.values() if call is not None else ()
    others = any(isinstance(value, str) and value.startswith(ELSEWHERE) for value in given)
    return others or "remote_graph" in getattr(item, "fixturenames", ())  # which needs a server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    yield
    clusters.empty()


def pytest_unconfigure() -> None:
    clusters.close()
