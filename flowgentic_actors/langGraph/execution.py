"""Where the tools and nodes of a graph run: in this process, on an executor, or with AsyncFlow.

A graph stays the same wherever its work is done; `Execution` is told once, and what it decorates is
a LangChain tool or a LangGraph node like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import logging
import pickle
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, get_args, get_origin, get_type_hints, overload

import cloudpickle  # type: ignore[import-untyped]
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.prebuilt import InjectedStore, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore

from flowgentic_actors.actors.threads import on_daemon_thread
from flowgentic_actors.langGraph.retries import RetryConfig, retry

logger = logging.getLogger("flowgentic_actors")

P = ParamSpec("P")
D = TypeVar("D")

_Async = Callable[P, Coroutine[Any, Any, Any]]
_Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]

_RETRY = RetryConfig()
_LOOP_ANSWERS = 5.0  # seconds within which a loop that is not blocked gets to a callback


class AsyncFlowType(Enum):
    """What `Execution.asyncflow` makes of a function."""

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
    that took too long, or whose caller was cancelled, may still run to its end there, and nobody
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

            An executor and an engine are closed by whoever made them. A backend of AsyncFlow is
            shut down on exit, with the engine.
        open_timeout: Seconds that a backend of AsyncFlow has to come up.
        close_timeout: Seconds that its executor, and then its engine, have to end.

    Raises:
        TypeError: If the backend is none of these.
    """

    def __init__(
        self, backend: Any = None, *, open_timeout: float = 60.0, close_timeout: float = 30.0
    ) -> None:
        self._place = _place_for(backend, open_timeout, close_timeout)
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
            return _decorated(partial(self._node, place=_Here(), retry=config), func)
        if retry is not None:
            raise TypeError("retry does not apply to a service: it is started, and goes on")
        return _decorated(self._service, func)

    # ------------------------------------------------------------------ what they make

    def _node(
        self, function: Callable[..., Any], *, place: _Place, retry: RetryConfig
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
        if not isinstance(place, _Engine):
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
        self, function: Callable[..., Any], place: _Place, config: RetryConfig
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


# ---------------------------------------------------------------------- what can be decorated


def _check(function: Any, place: _Place, injected: tuple[str, ...] = ()) -> None:
    """Refuse what cannot work on a backend.

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
    """Whether a type hint, or a part of it, is of something that cannot leave this process."""
    if hint is RunnableConfig:
        return True
    kind = hint if isinstance(hint, type) else get_origin(hint)
    if not isinstance(kind, type):
        kind = type(hint)  # what annotates a type: InjectedStore()
    if issubclass(kind, (BaseStore, InjectedStore, Runtime, ToolRuntime)):
        return True
    return any(_stays_here(part) for part in get_args(hint))


# ---------------------------------------------------------------------- places


class _Place:
    """Where functions run."""

    remote = False
    """Whether arguments leave this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name

    def check(self, function: Callable[..., Any]) -> None:
        """Refuse a function that this place in particular cannot run."""

    async def open(self) -> None:
        """Get ready."""

    async def close(self) -> None:
        """End what `open` began."""

    async def run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        """Run a function once."""
        raise NotImplementedError


class _Here(_Place):
    def __init__(self) -> None:
        super().__init__("no backend")

    async def run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        args, kwargs = arguments
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await _on_thread(None, _call, function, arguments)


class _Threads(_Place):
    def __init__(self, executor: ThreadPoolExecutor) -> None:
        super().__init__(type(executor).__name__)
        self._executor = executor

    async def run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        if not inspect.iscoroutinefunction(function):
            return await _on_thread(self._executor, _call, function, arguments)
        own = _OwnLoop(function, arguments)
        try:
            return await _on_thread(self._executor, own.run)
        finally:
            own.cancel()


class _Processes(_Place):
    """Any executor that is not known to run its functions in this process."""

    remote = True

    def __init__(self, executor: Executor) -> None:
        super().__init__(type(executor).__name__)
        self._executor = executor

    async def run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        # Handing it over may start a process, which takes too long for the event loop.
        future = await asyncio.to_thread(
            self._executor.submit, _call_there, _Portable(function), arguments
        )
        return await _watched(asyncio.wrap_future(future))


class _Engine(_Place):
    """A `WorkflowEngine` of AsyncFlow, which belongs to somebody else."""

    remote = True

    def __init__(self, engine: Any, name: str) -> None:
        super().__init__(name)
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        if "workflow_id" in parameters:
            raise TypeError(
                f"{function.__name__} takes 'workflow_id', which AsyncFlow keeps for itself: "
                "rename that argument"
            )
        wanted = parameters.get("task_description")
        if wanted is not None and not isinstance(wanted.default, dict):
            raise TypeError(
                f"{function.__name__} takes 'task_description', by which AsyncFlow understands a "
                "dictionary of resources: make one the default, or rename that argument"
            )

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def start(
        self, function: Callable[..., Any], arguments: _Arguments, *, service: bool = False
    ) -> asyncio.Future[Any]:
        """Hand a function to the engine; on its loop."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"{function.__name__}: a service starts on the event loop that its Execution was "
                "entered on"
            )
        ended = getattr(self._engine, "_shutdown_event", None)  # nothing public tells
        if ended is not None and ended.is_set():  # it would take the task and never run it
            raise RuntimeError(
                f"{function.__name__} cannot run: AsyncFlow's engine was shut down, by a signal, "
                "its owner, or its backend's failure (see the log of radical.asyncflow)"
            )
        args, kwargs = arguments
        options = {"service": True} if service else {}
        wanted = inspect.signature(function).parameters.get("task_description")
        if wanted is not None:
            merged = {**wanted.default, **kwargs.get("task_description", {})}
            kwargs = {**kwargs, "task_description": merged}
        task = self._engine.function_task(_as_task(function), **options)
        future: asyncio.Future[Any] = asyncio.ensure_future(task(*args, **kwargs))
        return future

    async def run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        loop = self._loop
        assert loop is not None, "an Execution is open when it runs something"
        if loop is asyncio.get_running_loop():
            return await self._run(function, arguments)
        await _expect_answer(loop)
        work = asyncio.run_coroutine_threadsafe(self._run(function, arguments), loop)
        return await _watched(asyncio.wrap_future(work))

    async def _run(self, function: Callable[..., Any], arguments: _Arguments) -> Any:
        future = self.start(function, arguments)
        try:
            # To await the future itself would leave it to the engine, whose futures have a
            # `cancel` of their own, when a cancellation of the caller takes effect.
            await asyncio.wait({_watched(future)})
        finally:
            if not future.done():
                future.cancel()
        if future.cancelled():
            raise RuntimeError(
                f"AsyncFlow cancelled {function.__name__}: its engine or {self} was shut down"
            )
        return future.result()


class _OwnEngine(_Engine):
    """An engine that is made for a backend on entry and ended on exit."""

    def __init__(self, backend: Any, open_timeout: float, close_timeout: float) -> None:
        super().__init__(None, type(backend).__name__)
        self._backend = backend
        self._open_timeout = open_timeout
        self._close_timeout = close_timeout

    async def open(self) -> None:
        asyncflow = await on_daemon_thread(self._open_timeout, _import_asyncflow)
        try:
            async with asyncio.timeout(self._open_timeout):
                if inspect.isawaitable(self._backend):  # it starts then; nothing the second time
                    await self._backend
                self._engine = await _create_engine(asyncflow, self._backend)
        except TimeoutError as error:
            raise TimeoutError(
                f"{self} did not come up within open_timeout={self._open_timeout} s"
            ) from error
        await super().open()

    async def close(self) -> None:
        ended = await self._end_executor()
        try:
            async with asyncio.timeout(self._close_timeout):
                await self._engine.shutdown(skip_execution_backend=not ended)
        except TimeoutError:
            logger.warning(
                "the AsyncFlow engine of %s did not end within close_timeout=%s s and is left",
                self,
                self._close_timeout,
            )
        with contextlib.suppress(OSError):  # it is not empty: tasks left their output there
            folder = Path(self._engine.work_dir, self._engine.uid)
            await on_daemon_thread(self._close_timeout, folder.rmdir)

    async def _end_executor(self) -> bool:
        """End the executor of a backend that would wait for it on the event loop's own thread."""
        executor = getattr(self._backend, "executor", None)
        if not isinstance(executor, Executor):
            return True
        try:
            await on_daemon_thread(self._close_timeout, executor.shutdown, cancel_futures=True)
        except TimeoutError:
            logger.warning(
                "functions on %s still run after close_timeout=%s s; Python waits for them when "
                "the program ends",
                self,
                self._close_timeout,
            )
            return False
        return True


def _place_for(backend: Any, open_timeout: float, close_timeout: float) -> _Place:
    if backend is None:
        return _Here()
    if isinstance(backend, ThreadPoolExecutor):
        return _Threads(backend)
    if isinstance(backend, Executor):
        return _Processes(backend)
    if not isinstance(backend, type):
        if callable(getattr(backend, "function_task", None)):
            return _Engine(backend, type(backend).__name__)
        needed = ("get_task_states_map", "register_callback", "shutdown", "submit_tasks")
        if all(callable(getattr(backend, name, None)) for name in needed):
            return _OwnEngine(backend, open_timeout, close_timeout)
    raise TypeError(
        f"backend={backend!r} cannot run functions: give None, a concurrent.futures executor, a "
        "backend of radical.asyncflow (made, and awaited if it has to be), or a WorkflowEngine"
    )


# ---------------------------------------------------------------------- AsyncFlow


def _import_asyncflow() -> Any:
    try:
        return importlib.import_module("radical.asyncflow")
    except ModuleNotFoundError as error:
        raise ImportError(
            "this backend needs radical.asyncflow, which is not installed: "
            'pip install "flowgentic-actors[asyncflow]"'
        ) from error


async def _create_engine(asyncflow: Any, backend: Any) -> Any:
    # The engine would take SIGINT, SIGTERM and SIGHUP from the program, for good: they would end
    # the engine, and no longer the program. It is our exit that ends this engine.
    leaves_signals_alone = {"_setup_signal_handlers": lambda _: None}
    engine = type("WorkflowEngine", (asyncflow.WorkflowEngine,), leaves_signals_alone)
    return await engine.create(backend=backend)  # type: ignore[attr-defined]


def _as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """What AsyncFlow takes: an async function, which it sends by value."""
    portable = _Portable(function)

    async def task(*args: Any, **kwargs: Any) -> Any:
        result = portable(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    task.__name__ = function.__name__
    return task


async def _expect_answer(loop: asyncio.AbstractEventLoop) -> None:
    answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    try:
        async with asyncio.timeout(_LOOP_ANSWERS):
            await asyncio.wrap_future(answer)
    except TimeoutError:
        raise RuntimeError(
            f"the event loop of AsyncFlow's engine has been blocked for {_LOOP_ANSWERS} s, by "
            "graph.invoke() perhaps: await graph.ainvoke() instead"
        ) from None


# ---------------------------------------------------------------------- other threads, processes


async def _on_thread(executor: Executor | None, function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function on an executor's thread, in the caller's context."""
    run = contextvars.copy_context().run
    loop = asyncio.get_running_loop()
    return await _watched(loop.run_in_executor(executor, run, function, *args))


def _watched(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Have the error of a future looked at, also when its waiter was cancelled just before.

    asyncio would complain that nobody did.
    """
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _call(function: Callable[..., Any], arguments: _Arguments) -> Any:
    args, kwargs = arguments
    try:
        return function(*args, **kwargs)
    except StopIteration as error:  # no future can carry it: its waiter would wait for ever
        raise RuntimeError(f"{function.__name__} raised StopIteration") from error


def _call_there(function: Callable[..., Any], arguments: _Arguments) -> Any:
    args, kwargs = arguments
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(*args, **kwargs))
    return _call(function, arguments)


class _OwnLoop:
    """An async function with an event loop of its own, on a thread, that can be cancelled."""

    def __init__(self, function: Callable[..., Any], arguments: _Arguments) -> None:
        self._function = function
        self._arguments = arguments
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def run(self) -> Any:
        return asyncio.run(self._main())

    async def _main(self) -> Any:
        self._task = asyncio.current_task()
        if self._cancelled:
            raise asyncio.CancelledError
        args, kwargs = self._arguments
        return await self._function(*args, **kwargs)

    def cancel(self) -> None:
        """Cancel it, from any thread; nothing if it has ended."""
        self._cancelled = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class _Portable:
    """A function on its way to another process, where the function itself arrives.

    What a decorator of ours replaced is not what pickle finds under its name. It is sent as the
    name of its replacement all the same, so that a module's globals (a model that was loaded, a
    cache) are those of the other process and outlive the call; what has no name there is sent by
    value.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        module, name = self._function.__module__, self._function.__qualname__
        if module != "__main__":  # which may be a notebook, or another program, there
            with contextlib.suppress(AttributeError, ImportError):
                if _named(module, name) is self._function:
                    return _named, (module, name)
        return pickle.loads, (cloudpickle.dumps(self._function),)


def _named(module: str, name: str) -> Any:
    """The function that is defined under a name, be it decorated or not."""
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, StructuredTool):
        found = found.coroutine
    return getattr(found, "__wrapped__", found)
