"""`MemoryCluster`: what users open."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast

from flowgentic_actors.actors.threads import on_daemon_thread, run_blocking
from flowgentic_actors.adapters.cache import AsyncCache
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.cluster.client import MemoryClient, RemoteClient, describe
from flowgentic_actors.cluster.endings import (
    WALLTIME_UNKNOWN,
    refuse_stale,
    watch_stop_file,
    watch_walltime,
)
from flowgentic_actors.cluster.exits import close_at_exit
from flowgentic_actors.cluster.folders import descriptor_of
from flowgentic_actors.cluster.handle import ClusterHandle, Descriptor, is_export, read_export
from flowgentic_actors.cluster.inline_client import InlineClient
from flowgentic_actors.cluster.local import LocalMemory
from flowgentic_actors.cluster.owner import Owner
from flowgentic_actors.cluster.protocol import Description
from flowgentic_actors.cluster.rendezvous import Note, Rendezvous
from flowgentic_actors.cluster.signals import on_sigterm, on_stop_signal
from flowgentic_actors.cluster.sizes import shard_settings
from flowgentic_actors.cluster.status import ClusterEvent, ClusterStatus
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.environment import (
    DESCRIPTOR_VARIABLE,
    inside_dragon,
    scheduler_job,
    step_rank,
    why_no_dragon,
)
from flowgentic_actors.errors import (
    ClusterClosedError,
    ClusterError,
    ClusterNotFoundError,
    ClusterOpenError,
    DragonUnavailableError,
    FlowgenticError,
    InvalidRequestError,
    LocalClusterError,
    RequestError,
)

if TYPE_CHECKING:
    from langgraph.store.base import IndexConfig, TTLConfig

logger = logging.getLogger("flowgentic_actors")

T = TypeVar("T")

_Client: TypeAlias = InlineClient | RemoteClient
_MARGIN = 30.0  # for killing and cleaning up beyond a deadline of their own
_FASTEST = 1 << 40  # bytes a second: as good as without a limit

_said: set[str] = set()


class MemoryCluster:
    """The memory of LangGraph agents, opened for the length of an `async with`.

        async with MemoryCluster() as memory:
            graph = builder.compile(checkpointer=memory.checkpointer, store=memory.store)
            await graph.ainvoke(state, {"configurable": {"thread_id": "123"}})

    In local mode the memory is in this process. In distributed mode supervised actors in processes
    of their own hold it: what was acknowledged survives the death of any actor, and other
    processes reach it with `MemoryCluster.attach(memory.handle)`.

    An open cluster may be used from any event loop, thread and (distributed) forked child of the
    process, and closed in another task than it was opened in.

    Args:
        config: The configuration; or give its fields as keywords.
        **settings: Fields of `MemoryConfig`.

    Raises:
        pydantic.ValidationError: If a setting is unknown or impossible.
    """

    def __init__(self, config: MemoryConfig | None = None, /, **settings: Any) -> None:
        if config is not None and settings:
            raise TypeError("give either a MemoryConfig or its fields as keywords, not both")
        self._config = config if config is not None else MemoryConfig(**settings)
        self._target: ClusterHandle | str | None = None
        self._attached = False
        self._closed = False
        self._owner: Owner | None = None
        self._unwatch = threading.Event()
        self._client: _Client | None = None
        self._handle: ClusterHandle | None = None
        self._rendezvous: Rendezvous | None = None
        self._checkpointer: AsyncCheckpointSaver | None = None
        self._store: AsyncStore | None = None
        self._cache: AsyncCache[Any] | None = None

    @classmethod
    def attach(cls, target: ClusterHandle | str | None = None, /, **settings: Any) -> MemoryCluster:
        """Reach a cluster that another process opened; leaving the `async with` does not end it.

        Args:
            target: A handle, the string of `handle.export()`, or the name of a cluster of this
                user on this node. Default: the descriptor file that `$FLOWGENTIC_MEMORY` names.
            **settings: `request_timeout`, `connection_pool`, `scratch` (where names are looked
                up), `detect_conflicts`, `thread_backlog`, `ttl`, `index`, as in `MemoryConfig`.

        Returns:
            A cluster to be entered with `async with`.
        """
        allowed = {
            "request_timeout",
            "connection_pool",
            "scratch",
            "detect_conflicts",
            "thread_backlog",
            "ttl",
            "index",
        }
        if extra := sorted(set(settings) - allowed):
            raise TypeError(
                f"attach() takes {', '.join(sorted(allowed))}; {', '.join(extra)} was decided by "
                "whoever opened the cluster"
            )
        memory = cls(MemoryConfig(mode="distributed", **settings))
        memory._target = target
        memory._attached = True
        return memory

    # ------------------------------------------------------------------ opening and closing

    def open(self) -> Self:
        """Open it, blocking; `close` ends it. For programs without an event loop.

        On an event loop's own thread it blocks that loop: use `async with` there.

        Returns:
            Itself.
        """
        return run_blocking(self.__aenter__)

    def close(self) -> None:
        """Close it, blocking; a second time does nothing.

        What is open still when the interpreter ends is closed then.
        """
        if not self._closed:
            run_blocking(lambda: self.__aexit__(None, None, None))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        if self._client is not None:
            raise ClusterError("this MemoryCluster is open already: make another one")
        close_at_exit(self)
        timeout = self._config.open_timeout + _MARGIN
        if self._attached:
            self._client = await on_daemon_thread(timeout, self._attach)
            return self
        reason = self._why_local()
        if reason is None:
            reason = await self._open_in_step(timeout)
        if self._client is None:
            stop_file = await on_daemon_thread(timeout, refuse_stale, self._config.stop_file)
            self._client = await self._open_local(timeout)
            if reason:
                self._fall_back(reason, self._client)
            self._watch_for_the_end(self._client, stop_file)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._closed:
            return  # when the interpreter ended, and what holds it is cleared only now
        try:
            await self._leave_step(failed=exc is not None)
        finally:
            await self._close()

    async def _close(self) -> None:
        owner = self._owner  # kept until it is closed: this may be interrupted, and begun again
        self._unwatch.set()
        try:
            if self._client is not None:
                await self._client.close()
                self._forget_signals(self._client)
        finally:
            if owner is not None:
                timeout = self._config.close_timeout + _MARGIN
                try:
                    began = time.monotonic()
                    trouble = await on_daemon_thread(timeout, owner.close)
                    took = time.monotonic() - began
                finally:
                    self._forget_signals(owner)
                if on_sigterm.received:  # all of them are closed first, then the signal ends us
                    await on_daemon_thread(timeout, on_sigterm.done.wait, timeout)
                    await asyncio.sleep(_MARGIN)
                if trouble:
                    logger.warning(
                        "cluster %s did not end in order: %s. Closing took %.1f s, of which an "
                        "orderly end may take %g s (setting: close_timeout); what was left of it "
                        "was killed",
                        owner.handle.name,
                        trouble,
                        took,
                        self._config.close_timeout,
                    )
            self._owner = None
            self._closed = self._client is not None

    async def _open_in_step(self, timeout: float) -> str | None:
        """Open a distributed cluster, or attach to the one that the first rank of the step opens.

        Returns:
            Why it has to be a local one, None when it need not be.
        """
        rank = step_rank()
        if rank is None:
            return await self._open_distributed(timeout)
        place = await on_daemon_thread(timeout, Rendezvous, rank, self._config.rendezvous)
        self._rendezvous = place
        if rank.rank > 0:
            return await on_daemon_thread(timeout, self._attach_in_step, place)
        await on_daemon_thread(timeout, place.begin)
        try:
            reason = await self._open_distributed(timeout)
        except BaseException as error:
            note = Note(error=f"{type(error).__name__}: {error}")
            await on_daemon_thread(timeout, place.announce, note)
            raise
        descriptor = self._owner.descriptor if self._owner is not None else None
        note = Note(descriptor=descriptor, local=descriptor is None, error=reason or "")
        await on_daemon_thread(timeout, place.announce, note)
        return reason

    def _attach_in_step(self, place: Rendezvous) -> str | None:
        note = place.find(self._config.open_timeout)
        descriptor = note.descriptor
        if descriptor is None:
            return f"rank 0 of this step: {note.error}"
        try:
            description = describe(descriptor, self._config.request_timeout)
            place.enter(descriptor)
        except (FlowgenticError, OSError) as error:
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} that rank 0 of this step opened does not answer: "
                f"{error}"
            ) from error
        self._client = self._remote(descriptor, description)
        return None

    async def _leave_step(self, *, failed: bool) -> None:
        """Let the first rank close the cluster; as the first, wait until the others have."""
        place, self._rendezvous = self._rendezvous, None
        if place is None:
            return
        config, descriptor = self._config, self._owner.descriptor if self._owner else None
        longest = config.ranks_timeout
        if place.rank.rank > 0:
            place.leave()
            return
        if descriptor is not None and not failed:
            await on_daemon_thread(
                longest + _MARGIN, place.await_others, descriptor, config.open_timeout, longest
            )
        await on_daemon_thread(_MARGIN, place.remove)

    def _why_local(self) -> str | None:
        """Why not even to try processes: an empty string when that is simply what was asked for."""
        config = self._config
        if config.mode == "local":
            return ""
        if config.mode == "auto" and not inside_dragon() and scheduler_job() is None:
            return ""
        return None

    async def _open_local(self, timeout: float) -> InlineClient:
        config = self._config
        name = config.name or f"local-{os.getpid()}"
        if config.persist_path is None:
            if config.ack == "disk":
                raise ClusterOpenError(
                    "ack='disk' promises to survive the loss of power, and a local cluster without "
                    "persist_path has no journal: set persist_path=, or mode='distributed'"
                )
            settings = shard_settings(config, 1)
            return InlineClient(name, config.namespace_depth, settings=settings)
        memory = await on_daemon_thread(timeout, LocalMemory, config, config.persist_path, name)
        try:
            await self._open_or_close(memory.open, memory.close, timeout)
        except BaseException:
            memory.stop_opening()
            raise
        return InlineClient(name, config.namespace_depth, memory, config.request_timeout)

    async def _open_distributed(self, timeout: float) -> str | None:
        """Open a distributed cluster, or say why it has to be a local one."""
        spawner = "dragon" if self._config.spawner == "auto" else self._config.spawner
        reason = await on_daemon_thread(timeout, why_no_dragon) if spawner == "dragon" else None
        if reason is None:
            owner = Owner(self._config, spawner)
            try:
                description = await self._open_or_close(owner.open, owner.close, timeout)
            except ClusterOpenError as error:
                if spawner != "dragon" or not self._may_fall_back():
                    raise
                return str(error)
            assert owner.descriptor is not None
            self._owner, self._handle = owner, owner.handle
            try:
                self._client = client = self._remote(owner.descriptor, description)
                on_sigterm.add(owner, partial(self._end_by_signal, owner, client))
                self._heed_warnings(owner)
            except BaseException:
                await self._close()
                raise
            return None
        if not self._may_fall_back():
            raise DragonUnavailableError(f"Dragon not available: {reason}")
        return reason

    def _may_fall_back(self) -> bool:
        # A memory that was to outlive the job must not silently become one that does not.
        config = self._config
        lasts = config.persist_path is not None or config.ack == "disk" or config.replicas > 1
        return config.fallback_to_local and not lasts

    @staticmethod
    async def _open_or_close(
        open_it: Callable[[], T], close_it: Callable[[], object], timeout: float
    ) -> T:
        """Open on a thread; if this task is cancelled meanwhile, the thread closes it again."""
        lock, abandoned, opened = threading.Lock(), False, False

        def open_or_close() -> T:
            nonlocal opened
            result = open_it()
            with lock:
                opened = True
                keep = not abandoned
            if not keep:
                close_it()
            return result

        try:
            return await on_daemon_thread(timeout, open_or_close)
        except BaseException as error:
            with lock:
                abandoned = True
                late = opened
            if late:  # it was opened in the very moment in which this task was cancelled
                threading.Thread(target=close_it, daemon=True).start()
            if isinstance(error, TimeoutError):
                raise ClusterOpenError(
                    f"opening the cluster hangs: not done after {timeout:g} s"
                ) from error
            raise

    @staticmethod
    def _end_by_signal(owner: Owner, client: RemoteClient) -> None:
        try:
            owner.close()
        finally:
            client.end("signal SIGTERM")

    def _heed_warnings(self, owner: Owner) -> None:
        warning = self._config.stop_signal
        if warning is not None:
            on_stop_signal[warning].add(owner, lambda: owner.end(f"signal {warning}"))

    @staticmethod
    def _forget_signals(key: object) -> None:
        for actions in (on_sigterm, *on_stop_signal.values()):
            actions.remove(key)

    def _watch_for_the_end(self, client: InlineClient, stop_file: Path | None) -> None:
        """What a host does for a distributed cluster."""
        config = self._config
        if config.persist_path is not None:
            on_sigterm.add(client, lambda: client.close_now("signal SIGTERM"))
        warning = config.stop_signal
        if warning is not None:
            on_stop_signal[warning].add(client, lambda: client.end(f"signal {warning}"))
        if stop_file is not None:
            watch_stop_file(stop_file, self._unwatch, client.end)
        if config.walltime_margin is not None:
            watch_walltime(
                config.walltime_margin,
                self._unwatch,
                client.end,
                lambda: client.event("walltime_unknown", WALLTIME_UNKNOWN),
            )

    def _fall_back(self, reason: str, client: InlineClient) -> None:
        client.event("fallback_to_local", reason)
        if reason not in _said:
            _said.add(reason)
            logger.warning(
                "Dragon not available - using local fallback: the memory is in this process and "
                "ends with it. Reason: %s",
                reason,
            )

    def _attach(self) -> RemoteClient:
        descriptor = self._find()
        try:
            description = describe(descriptor, self._config.request_timeout)
        except RequestError as error:
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} does not answer: {error}"
            ) from error
        return self._remote(descriptor, description)

    def _find(self) -> Descriptor:
        target = self._target
        if target is None:
            path = os.environ.get(DESCRIPTOR_VARIABLE)
            if not path:
                raise ClusterNotFoundError(
                    f"attach() was given no handle or name, and ${DESCRIPTOR_VARIABLE} is not set"
                )
            target = ClusterHandle(Path(path).parent.name, path)
        elif isinstance(target, str):
            if is_export(target):
                return read_export(target)
            target = ClusterHandle(target, str(descriptor_of(target, self._config.scratch)))
        self._handle = target
        return target.read()

    def _remote(self, descriptor: Descriptor, description: Description) -> RemoteClient:
        config = self._config
        return RemoteClient(descriptor, description, config.request_timeout, config.connection_pool)

    # ------------------------------------------------------------------ what users use

    @property
    def config(self) -> MemoryConfig:
        """The configuration that it was made with."""
        return self._config

    @property
    def checkpointer(self) -> AsyncCheckpointSaver:
        """For `builder.compile(checkpointer=...)`."""
        if self._checkpointer is None:
            config = self._config
            self._checkpointer = AsyncCheckpointSaver(
                self._opened(),
                detect_conflicts=config.detect_conflicts,
                backlog=config.thread_backlog,
            )
        return self._checkpointer

    @property
    def store(self) -> AsyncStore:
        """For `builder.compile(store=...)`."""
        if self._store is None:
            index, ttl = self.store_settings
            self._store = AsyncStore(self._opened(), index=index, ttl=ttl)
        return self._store

    @property
    def store_settings(self) -> tuple[IndexConfig | None, TTLConfig | None]:
        """`index` and `ttl` of the configuration, as LangGraph's types, for stores of your own."""
        config = self._config  # checked by pydantic
        return cast("IndexConfig | None", config.index), cast("TTLConfig | None", config.ttl)

    @property
    def client(self) -> MemoryClient:
        """How adapters reach the shards, for adapters of your own."""
        return self._opened()

    @property
    def cache(self) -> AsyncCache[Any]:
        """For `builder.compile(cache=...)`, with a `CachePolicy` on nodes."""
        if self._cache is None:
            self._cache = AsyncCache(self._opened())
        return self._cache

    @property
    def is_distributed(self) -> bool:
        """Whether the memory is in actors of their own processes."""
        return isinstance(self._opened(), RemoteClient)

    @property
    def uses_dragon(self) -> bool:
        """Whether Dragon started the actors, which then have DDicts."""
        return self._opened().spawner == "dragon"

    @property
    def n_nodes(self) -> int:
        """Nodes that its shards are on now."""
        return self._opened().n_nodes

    @property
    def handle(self) -> ClusterHandle:
        """What other processes attach with; picklable, without the secret.

        Raises:
            LocalClusterError: In local mode, where no other process can reach the memory.
        """
        self._opened()
        if self._handle is None:
            raise LocalClusterError(
                "this cluster cannot hand out a handle: it is local, or was attached to by an "
                "exported string. Open it with mode='distributed'"
            )
        return self._handle

    async def status(self) -> ClusterStatus:
        """What runs, where, and what it holds."""
        return await self._opened().status()

    async def rebalance(
        self,
        n_nodes: int | None = None,
        *,
        without: str | Collection[str] = (),
        max_bytes_per_second: float = 32 << 20,
        timeout: float = 3600.0,
    ) -> None:
        """Spread the memory evenly over more, fewer or other nodes, while it is used.

        Threads and namespaces are kept in 4,096 slots, and only the slots that have to move do.
        Those that are under way are answered by the shard that has them, but for a moment at the
        end of each move, in which their callers wait. Nothing that was acknowledged is lost, also
        when a node is lost meanwhile or this call is cancelled: what has moved stays there, the
        rest stays where it is, and the next call goes on. A node that was away and is back gets its
        part again.

        Args:
            n_nodes: Nodes to use, the host's own included. Default: all that there are. Where the
                cluster has its nodes from a Dragon runtime, it has to be in one with as many.
            without: Name or names of nodes (`status().nodes`) that are not to be used. They end up
                with nothing on them, and may be taken away.
            max_bytes_per_second: How fast to copy, so that enough is left for those who use it;
                `math.inf` for as fast as can be.
            timeout: Seconds to wait for the end.

        Raises:
            RejectedError: If not all of it could be done, with the reason; what is done stays.
            OutcomeUnknownError: If it takes longer than `timeout`; it goes on.
            LocalClusterError: If this is a local cluster, which has one shard in one process.
        """
        if n_nodes is not None and n_nodes < 1:
            raise InvalidRequestError(f"n_nodes must be at least 1, not {n_nodes}")
        if max_bytes_per_second < 1:
            raise InvalidRequestError(
                f"max_bytes_per_second must be at least 1, not {max_bytes_per_second}"
            )
        client = self._opened()
        if isinstance(client, InlineClient):
            raise LocalClusterError(
                "a local cluster is one shard in this process: there is nothing to move. Open it "
                "with mode='distributed' and n_nodes=2 or more"
            )
        names = (without,) if isinstance(without, str) else tuple(without)
        rate = int(min(max_bytes_per_second, _FASTEST))
        await client.rebalance(n_nodes or 0, names, rate, timeout)

    def events(self, start: int = 0) -> AsyncGenerator[ClusterEvent, None]:
        """What happened and happens: starts, exits, restarts, fallbacks.

        Args:
            start: Number of the first event to give; 0 is the first of all.
        """
        return self._opened().events(start)

    async def closing(self) -> str:
        """Wait until the cluster ends its work, and learn why.

        A scheduler's warning (`stop_signal`), a stop file or the end of the walltime begin that;
        what was accepted is finished, and every further call gets `ClusterClosingError`.
        """
        async for event in self.events():
            if event.kind == "cluster_closing":
                return event.detail
        raise AssertionError("events do not end")

    async def recent_events(self) -> list[ClusterEvent]:
        """What happened so far."""
        return await self._opened().recent_events()

    def __repr__(self) -> str:
        state = "new" if self._client is None else type(self._client).__name__
        return f"<MemoryCluster {self._config.mode} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a MemoryCluster belongs to its process: send memory.handle and attach")

    def _opened(self) -> _Client:
        if self._client is None:
            raise ClusterClosedError("open the cluster first: async with MemoryCluster() as memory")
        return self._client
