"""Backends of an `Execution`: where its functions run, behind one interface."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import logging
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec

import cloudpickle  # type: ignore[import-untyped]
from langchain_core.tools import StructuredTool

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.deadlines import timeout

logger = logging.getLogger("flowgentic_actors")

P = ParamSpec("P")

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a call."""

_LOOP_ANSWERS = 5.0  # seconds within which a loop that is not blocked gets to a callback


class Backend(ABC):
    """A backend: runs functions somewhere."""

    remote = False
    """Whether arguments leave this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name

    def check(self, function: Callable[..., Any]) -> None:  # noqa: B027 - most run everything
        """Refuse a function that this backend cannot run."""

    async def open(self) -> None:  # noqa: B027 - most are ready
        """Open the backend."""

    async def close(self) -> None:  # noqa: B027
        """Close the backend."""

    @abstractmethod
    async def run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """Run a function once."""


class Here(Backend):
    """The backend of this process: async functions on the caller's loop, others on a thread."""

    def __init__(self) -> None:
        super().__init__("no backend")

    async def run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """See `Backend.run`."""
        args, kwargs = arguments
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await _on_thread(None, _call, function, arguments)


class _Threads(Backend):
    def __init__(self, executor: ThreadPoolExecutor) -> None:
        super().__init__(type(executor).__name__)
        self._executor = executor

    async def run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        if not inspect.iscoroutinefunction(function):
            return await _on_thread(self._executor, _call, function, arguments)
        own = _OwnLoop(function, arguments)
        try:
            return await _on_thread(self._executor, own.run)
        finally:
            own.cancel()


class _Processes(Backend):
    """The backend of an executor that may run its functions in other processes."""

    remote = True

    def __init__(self, executor: Executor) -> None:
        super().__init__(type(executor).__name__)
        self._executor = executor

    async def run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        # Handing it over may start a process, which takes too long for the event loop.
        future = await asyncio.to_thread(
            self._executor.submit, _call_there, _Portable(function), arguments
        )
        return await _watched(asyncio.wrap_future(future))


class AsyncFlowEngine(Backend):
    """The backend of a `WorkflowEngine` of AsyncFlow that the program owns."""

    remote = True

    def __init__(self, engine: Any, name: str) -> None:
        super().__init__(name)
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self, function: Callable[..., Any]) -> None:
        """See `Backend.check`."""
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
        """See `Backend.open`."""
        self._loop = asyncio.get_running_loop()

    def start(
        self, function: Callable[..., Any], arguments: Arguments, *, service: bool = False
    ) -> asyncio.Future[Any]:
        """Hand a function to the engine, on its loop."""
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

    async def run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """See `Backend.run`."""
        loop = self._loop
        assert loop is not None, "an Execution is open when it runs something"
        if loop is asyncio.get_running_loop():
            return await self._run(function, arguments)
        await _expect_answer(loop)
        work = asyncio.run_coroutine_threadsafe(self._run(function, arguments), loop)
        return await _watched(asyncio.wrap_future(work))

    async def _run(self, function: Callable[..., Any], arguments: Arguments) -> Any:
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


class _OwnEngine(AsyncFlowEngine):
    """The backend of an AsyncFlow engine that is made on entry and ended on exit."""

    def __init__(self, backend: Any, open_timeout: float, close_timeout: float) -> None:
        super().__init__(None, type(backend).__name__)
        self._backend = backend
        self._open_timeout = open_timeout
        self._close_timeout = close_timeout

    async def open(self) -> None:
        asyncflow = await on_daemon_thread(self._open_timeout, _import_asyncflow)
        try:
            async with timeout(self._open_timeout):
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
            async with timeout(self._close_timeout):
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


def backend_for(backend: Any, open_timeout: float, close_timeout: float) -> Backend:
    """Make the `Backend` for what the user gave as one.

    Raises:
        TypeError: If it is none that is known.
    """
    if backend is None:
        return Here()
    if isinstance(backend, ThreadPoolExecutor):
        return _Threads(backend)
    if isinstance(backend, Executor):
        return _Processes(backend)
    if not isinstance(backend, type):
        if callable(getattr(backend, "function_task", None)):
            return AsyncFlowEngine(backend, type(backend).__name__)
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
    """Wrap a function as AsyncFlow takes it: async, and sent by value."""
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
    """Retrieve the error of a future, even if its waiter was cancelled just before.

    asyncio would log it otherwise.
    """
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _call(function: Callable[..., Any], arguments: Arguments) -> Any:
    args, kwargs = arguments
    try:
        return function(*args, **kwargs)
    except StopIteration as error:  # no future can carry it: its waiter would wait for ever
        raise RuntimeError(f"{function.__name__} raised StopIteration") from error


def _call_there(function: Callable[..., Any], arguments: Arguments) -> Any:
    args, kwargs = arguments
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(*args, **kwargs))
    return _call(function, arguments)


class _OwnLoop:
    """An async function on an event loop and thread of its own, which can be cancelled."""

    def __init__(self, function: Callable[..., Any], arguments: Arguments) -> None:
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
        """Cancel the function, from any thread; does nothing if it has ended."""
        self._cancelled = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class _Portable:
    """A function wrapped for another process, where it is unwrapped on arrival.

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
    """The function that is defined under a name, decorated or not."""
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, StructuredTool):
        found = found.coroutine
    return getattr(found, "__wrapped__", found)
