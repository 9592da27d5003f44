"""Execution of a graph's tools and nodes: in this process, on an executor, or by AsyncFlow.

A graph stays the same wherever its work is done; `Execution` is told once, and what it decorates is
a LangChain tool or a LangGraph node like any other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from enum import Enum
from functools import partial, wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, get_args, get_origin, get_type_hints, overload

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.prebuilt import InjectedStore, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore

from flowgentic_actors.langGraph.backends import AsyncFlowEngine, Backend, Here, backend_for
from flowgentic_actors.langGraph.retries import RetryConfig, retry

logger = logging.getLogger("flowgentic_actors")

P = ParamSpec("P")
D = TypeVar("D")

_Async = Callable[P, Coroutine[Any, Any, Any]]

_RETRY = RetryConfig()


class AsyncFlowType(Enum):
    """The kind of callable that `Execution.asyncflow` makes of a function."""

    AGENT_TOOL_AS_FUNCTION = "tool"
    """A LangChain tool."""

    FUNCTION_TASK = "future"
    """An async function that gives the result."""

    SERVICE_TASK = "service_task"
    """An async function that starts a service of AsyncFlow and gives its future."""

    EXECUTION_BLOCK = "block"
    """A LangGraph node that runs in this process and calls what runs elsewhere."""


class Execution:
    """Runs tools and nodes where a backend says, for the length of an `async with`.

        async with Execution(ProcessPoolExecutor()) as execution:

            @execution.tool
            def dock(ligand: str) -> float:
                '''Dock a ligand and return its score.'''
                ...

    Functions may be decorated before it is entered, in a module for instance; they may be called
    only while it is open. What was handed to a thread or a process cannot be stopped: an attempt
    that took too long, or whose caller was cancelled, may still run to its end there, and nothing
    sees its result. An async function on a thread pool is cancelled, too.

    Args:
        backend: Where the functions run:

            - None: async ones are awaited here, others run on a thread.
            - A `ThreadPoolExecutor`: on its threads, an async one with an event loop of its own.
              LangGraph's context (`interrupt()`, `get_stream_writer()`) goes along. A node that
              calls tools of the same pool keeps one of its threads meanwhile.
            - Any other `concurrent.futures.Executor`, such as a `ProcessPoolExecutor`: functions,
              arguments and results are pickled.
            - A backend of `radical.asyncflow` 0.6, of that package's or of RHAPSODY: a
              `WorkflowEngine` is made for it on entry. Arguments and results are pickled.
            - A `WorkflowEngine`, used on the event loop that this is entered on.

            An executor and an engine are closed by their owner. A backend of AsyncFlow is
            shut down on exit, with the engine.
        open_timeout: Seconds that a backend of AsyncFlow has to come up.
        close_timeout: Seconds that its executor, and then its engine, have to end.

    Raises:
        TypeError: If the backend is none of these.
    """

    def __init__(
        self, backend: Any = None, *, open_timeout: float = 60.0, close_timeout: float = 30.0
    ) -> None:
        self._place = backend_for(backend, open_timeout, close_timeout)
        self._open = False

    async def __aenter__(self) -> Self:
        if self._open:
            raise RuntimeError("this Execution is open already: make another one")
        await self._place.open()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        await self._place.close()

    # ------------------------------------------------------------------ decorators

    @overload
    def tool(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        retry: RetryConfig = _RETRY,
    ) -> StructuredTool: ...

    @overload
    def tool(
        self,
        function: None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        retry: RetryConfig = _RETRY,
    ) -> Callable[[Callable[..., Any]], StructuredTool]: ...

    def tool(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        retry: RetryConfig = _RETRY,
    ) -> StructuredTool | Callable[[Callable[..., Any]], StructuredTool]:
        """Make a LangChain tool of a function; a decorator, with or without arguments.

        The arguments' schema comes from the signature and the `Args:` of the docstring. The tool
        is awaited (`ainvoke`, `graph.ainvoke`). Its `invoke` works on threads without a running
        event loop, as those are on which `graph.invoke` calls tools.

        Args:
            function: A function, sync or async.
            name: The tool's name. Default: the function's.
            description: What the model is told. Default: the docstring without its `Args:`.
            retry: What is tried again. With `raise_on_failure=False` the model gets to read the
                error.

        Returns:
            The tool.

        Raises:
            TypeError: If it is no function, or takes a store, config or runtime and the backend
                is out of this process.
            ValueError: If there is neither a description nor a docstring.
        """

        def decorate(function: Callable[..., Any]) -> StructuredTool:
            _check(function, self._place, injected=("runtime",))
            call = self._wrap(function, self._place, retry)

            @wraps(function)
            def call_sync(*args: Any, **kwargs: Any) -> Any:
                return _run_sync(call, args, kwargs)

            return StructuredTool.from_function(
                func=call_sync,
                coroutine=call,
                name=name,
                description=description,
                parse_docstring=True,
            )

        return _decorated(decorate, function)

    @overload
    def node(self, function: Callable[P, Any], *, retry: RetryConfig = _RETRY) -> _Async[P]: ...

    @overload
    def node(
        self, function: None = None, *, retry: RetryConfig = _RETRY
    ) -> Callable[[Callable[P, Any]], _Async[P]]: ...

    def node(
        self, function: Callable[..., Any] | None = None, *, retry: RetryConfig = _RETRY
    ) -> Any:
        """Make a LangGraph node of a function; a decorator, with or without arguments.

        It has the function's signature, so LangGraph hands it `config`, `store`, `runtime` and
        `writer` as it does for the function itself.

        Args:
            function: A function of the state, sync or async.
            retry: What is tried again.

        Returns:
            The node, an async function.

        Raises:
            TypeError: If it is no function, or takes what LangGraph injects and the backend is out
                of this process.
            ValueError: If `retry` has `raise_on_failure=False`: an error is no update of a state.
        """
        return _decorated(partial(self._node, place=self._place, retry=retry), function)

    @overload
    def task(self, function: Callable[P, Any], *, retry: RetryConfig = _RETRY) -> _Async[P]: ...

    @overload
    def task(
        self, function: None = None, *, retry: RetryConfig = _RETRY
    ) -> Callable[[Callable[P, Any]], _Async[P]]: ...

    def task(
        self, function: Callable[..., Any] | None = None, *, retry: RetryConfig = _RETRY
    ) -> Any:
        """Make an async function that runs on the backend; a decorator, with or without arguments.

        Args:
            function: A function, sync or async.
            retry: What is tried again.

        Returns:
            An async function of the same arguments.

        Raises:
            TypeError: If it is no function, or takes a store, config or runtime and the backend
                is out of this process.
        """

        def decorate(function: Callable[..., Any]) -> _Async[...]:
            _check(function, self._place)
            return self._wrap(function, self._place, retry)

        return _decorated(decorate, function)

    @overload
    def asyncflow(
        self,
        func: Callable[..., Any],
        *,
        flow_type: AsyncFlowType,
        retry: RetryConfig | None = None,
        tool_description: str | None = None,
    ) -> Any: ...

    @overload
    def asyncflow(
        self,
        func: None = None,
        *,
        flow_type: AsyncFlowType,
        retry: RetryConfig | None = None,
        tool_description: str | None = None,
    ) -> Callable[[Callable[..., Any]], Any]: ...

    def asyncflow(
        self,
        func: Callable[..., Any] | None = None,
        *,
        flow_type: AsyncFlowType,
        retry: RetryConfig | None = None,
        tool_description: str | None = None,
    ) -> Any:
        """Decorate a function as Flowgentic does; it works with every backend.

        Args:
            func: A function, sync or async.
            flow_type: What to make of it: `tool`, `task`, a service, or a block. A block is a
                `node` that runs in this process on any backend, since it calls tools and tasks.
                AsyncFlow would run it on the same event loop, and lose LangGraph's context.
            retry: What is tried again. Default: `RetryConfig()`.
            tool_description: What the model is told of a tool. Default: the docstring.

        Returns:
            A tool, a node, or an async function; a service's gives an `asyncio.Future` of what
            the function returns, which the caller awaits, or cancels when it is over.

        Raises:
            TypeError: If the flow type cannot be had with these arguments or this backend.
            ValueError: If there is no such flow type.
        """
        kind = AsyncFlowType(flow_type)
        config = _RETRY if retry is None else retry
        if kind is AsyncFlowType.AGENT_TOOL_AS_FUNCTION:
            return self.tool(func, description=tool_description, retry=config)
        if tool_description is not None:
            raise TypeError(
                f"tool_description describes a tool to a model: {kind} is none, so leave it out"
            )
        if kind is AsyncFlowType.FUNCTION_TASK:
            return self.task(func, retry=config)
        if kind is AsyncFlowType.EXECUTION_BLOCK:
            return _decorated(partial(self._node, place=Here(), retry=config), func)
        if retry is not None:
            raise TypeError("retry does not apply to a service: it is started, and goes on")
        return _decorated(self._service, func)

    # ------------------------------------------------------------------ results

    def _node(
        self, function: Callable[..., Any], *, place: Backend, retry: RetryConfig
    ) -> _Async[...]:
        _check(function, place, injected=("config", "runtime", "store", "writer"))
        if not retry.raise_on_failure:
            raise ValueError(
                f"a node updates the state of its graph, which the error of {function.__name__} "
                "would not: use raise_on_failure=True, and LangGraph's error handling"
            )
        return self._wrap(function, place, retry)

    def _service(self, function: Callable[..., Any]) -> _Async[...]:
        place = self._place
        if not isinstance(place, AsyncFlowEngine):
            raise TypeError(
                f"{function.__name__}: a service needs AsyncFlow, and this Execution has "
                f"{place}: give Execution() a backend of radical.asyncflow"
            )
        _check(function, place)

        @wraps(function)
        async def start(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            self._check_open(function)
            return place.start(function, (args, kwargs), service=True)

        return start

    def _wrap(
        self, function: Callable[..., Any], place: Backend, config: RetryConfig
    ) -> _Async[...]:
        # `wraps` keeps signature and annotations, by which LangGraph knows what to inject.
        @wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            self._check_open(function)
            attempt = partial(place.run, function, (args, kwargs))
            return await retry(attempt, config, function.__name__)

        return call

    def _check_open(self, function: Callable[..., Any]) -> None:
        if not self._open:
            raise RuntimeError(
                f"{function.__name__} was called while its Execution was not open: call it within "
                "`async with Execution(...)`"
            )


def _decorated(
    decorate: Callable[[Callable[..., Any]], D], function: Callable[..., Any] | None
) -> D | Callable[[Callable[..., Any]], D]:
    return decorate if function is None else decorate(function)


def _run_sync(call: _Async[...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(call(*args, **kwargs))
    raise RuntimeError(
        "invoke() would block the event loop that runs in this thread: await ainvoke() instead"
    )


# ---------------------------------------------------------------------- checks of functions


def _check(function: Any, place: Backend, injected: tuple[str, ...] = ()) -> None:
    """Refuse a function that cannot work on a backend.

    Args:
        function: What is to be decorated.
        place: Where it is to run.
        injected: Names of arguments into which LangGraph puts what lives in this process only.
    """
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise TypeError(f"a function is decorated here, not {function!r}: wrap it in a `def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__name__} is a generator: return a list instead")
    if not place.remote:
        return
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # of a name that only type checkers import: the arguments' names have to do
        hints = {}
    for name in list(inspect.signature(function).parameters):
        if name in injected or _stays_here(hints.get(name)):
            raise TypeError(
                f"{function.__name__} takes {name!r}, which lives in this process, and {place} "
                "runs functions elsewhere: pass the values that it needs, or use "
                "Execution() or a ThreadPoolExecutor"
            )
    place.check(function)


def _stays_here(hint: Any) -> bool:
    """Whether a type hint, or a part of it, names a type that cannot leave this process."""
    if hint is RunnableConfig:
        return True
    kind = hint if isinstance(hint, type) else get_origin(hint)
    if not isinstance(kind, type):
        kind = type(hint)  # what annotates a type: InjectedStore()
    if issubclass(kind, (BaseStore, InjectedStore, Runtime, ToolRuntime)):
        return True
    return any(_stays_here(part) for part in get_args(hint))
