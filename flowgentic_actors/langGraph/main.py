"""`LangraphIntegration`: memory and execution backend of a LangGraph program, opened and closed.

The name is that of Flowgentic's `langGraph.main`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from flowgentic_actors.errors import ClusterClosedError
from flowgentic_actors.langGraph.distributed_config import DistributedMemoryConfig
from flowgentic_actors.langGraph.execution import Execution
from flowgentic_actors.langGraph.memory import LangraphMemoryManager, MemoryConfig
from flowgentic_actors.langGraph.summary import Model


class LangraphIntegration:
    """Opens the memory and the backend on entry, and closes both on exit.

        async with LangraphIntegration(backend=backend, distributed_config=config) as integration:
            store = integration.memory_manager.get_store()
            graph = builder.compile(store=store)

    Args:
        backend: Where tools and nodes run: anything with AsyncFlow's backend interface, a
            `concurrent.futures` executor, or None for this process; see `Execution`.
        memory_config: Limits of the conversations.
        distributed_config: Where store and checkpoints live.
        llm: A chat model that summarizes conversations.
        **settings: Further fields of `MemoryCluster`'s configuration.

    Raises:
        pydantic.ValidationError: If a setting is unknown or impossible.
        TypeError: If the backend is none that is known.
    """

    def __init__(
        self,
        backend: Any = None,
        memory_config: MemoryConfig | None = None,
        distributed_config: DistributedMemoryConfig | None = None,
        *,
        llm: Model | None = None,
        **settings: Any,
    ) -> None:
        self.backend = backend
        self.memory_manager = LangraphMemoryManager(
            memory_config, llm, distributed_config, **settings
        )
        self._execution = Execution(backend)
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.memory_manager)
            await stack.enter_async_context(self._execution)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(exc_type, exc, traceback)

    @property
    def execution_wrappers(self) -> Execution:
        """Makes tools and nodes that run on the backend; under Flowgentic's name."""
        if self._stack is None:
            raise ClusterClosedError("use it inside `async with LangraphIntegration(...)`")
        return self._execution
