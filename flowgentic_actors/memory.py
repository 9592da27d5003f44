"""`MemoryCluster`: the memory that a program opens."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast

from flowgentic_actors.actors.daemon_threads import on_daemon_thread, run_blocking
from flowgentic_actors.adapters.cache import AsyncCache
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.cluster.client.attaching import (
    KeptTarget,
    Target,
    config_to_attach,
    find_cluster,
    kept,
)
from flowgentic_actors.cluster.client.cluster_watch import Watched, watched_file
from flowgentic_actors.cluster.client.host_client import describe
from flowgentic_actors.cluster.client.inline import InlineClient
from flowgentic_actors.cluster.client.local_memory import LocalMemory
from flowgentic_actors.cluster.client.opening_log import count_and_tell, tell_new
from flowgentic_actors.cluster.client.remote import MemoryClient, RemoteClient
from flowgentic_actors.cluster.job_end import (
    WALLTIME_UNKNOWN,
    refuse_stale,
    watch_stop_file,
    watch_walltime,
)
from flowgentic_actors.cluster.opener.exit_hook import close_at_exit
from flowgentic_actors.cluster.opener.host_watchdog import one_line
from flowgentic_actors.cluster.opener.owner import Owner
from flowgentic_actors.cluster.opener.rendezvous import Rendezvous
from flowgentic_actors.cluster.opener.signals import on_sigterm, on_stop_signal
from flowgentic_actors.cluster.protocol.handle import ClusterHandle, Descriptor
from flowgentic_actors.cluster.protocol.host import Description
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.protocol.status import ClusterEvent, ClusterStatus
from flowgentic_actors.cluster.shard_limits import shard_settings, transfer_rate
from flowgentic_actors.config import MemoryConfig, config_of
from flowgentic_actors.environment import (
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
    UntrustedPathError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.foreign import is_foreign

if TYPE_CHECKING:
    from pathlib import Path

    from langgraph.store.base import IndexConfig, TTLConfig

logger = logging.getLogger("flowgentic_actors")

T = TypeVar("T")

_Client: TypeAlias = InlineClient | RemoteClient
_MARGIN = 30.0  # for killing and cleaning up beyond a deadline of their own

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
        self._config = config_of(config, settings)
        self._target: KeptTarget = None
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
    def attach(cls, target: Target = None, /, **settings: Any) -> MemoryCluster:
        """Attach to a cluster that another process opened; leaving the block does not end it.

        Its opener's `detect_conflicts`, `thread_backlog` and `ttl` hold here, too, unless they are
        given. A program that puts items into a memory with an `index`, or searches it by
        similarity, gives `index` with the embedding function; `fields` are the opener's unless they
        are given.

        Args:
            target: A handle, the string of `handle.export()`, the name of a cluster of this user on
                this node, or a path: of its folder, of its descriptor file (`cluster.json`), or the
                `persist_path` that it has open. Default: the path in `$FLOWGENTIC_MEMORY`. When the
                cluster is closed, calls raise `ClusterClosedError`; if a name was given, they use
                the next cluster of that name once it is open.
            **settings: `request_timeout`, `connection_pool`, `stay_awake`, `scratch` (where names
                are looked up), `detect_conflicts`, `thread_backlog`, `ttl`, `index`,
                `allowed_types`, as in `MemoryConfig`. What is decoded each program decides for
                itself.

        Returns:
            A cluster to be entered with `async with`, which raises `ClusterNotFoundError` when
            there is none, and `ClusterOpenError` when `index` is for other vectors than its
            opener's.

        Raises:
            TypeError: If the target is of another type, or a setting is not for this program.
            pydantic.ValidationError: If a setting is impossible.
        """
        memory = cls(config_to_attach(target, settings))
        memory._target = kept(target)
        memory._attached = True
        return memory

    # ------------------------------------------------------------------ opening and closing

    def open(self) -> Self:
        """Open the cluster, blocking; `close` ends it. For programs without an event loop.

        On an event loop's own thread it blocks that loop: use `async with` there.

        Returns:
            Itself.
        """
        return run_blocking(self.__aenter__)

    def close(self) -> None:
        """Close the cluster, blocking; a second time does nothing.

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
        if self._closed:
            raise ClusterClosedError("this MemoryCluster was closed: make another one to open")
        if self._client is not None:
            raise ClusterError("this MemoryCluster is open already: make another one")
        close_at_exit(self)
        timeout = self._config.open_timeout + _MARGIN
        try:
            return await self._open(timeout)
        except BaseException as error:
            await self._undo(error)
            if not isinstance(error, OSError) or is_foreign(error):
                raise
            if isinstance(error, UntrustedPathError):
                raise ClusterOpenError(str(error)) from error
            # Such as a folder without permission, or on a file system that does not answer.
            raise ClusterOpenError(
                f"the cluster cannot be opened: {type(error).__name__}: "
                f"{str(error) or f'not done after {timeout:g} s'}. Its folders: "
                f"{self._config.folders}"
            ) from error

    async def _open(self, timeout: float) -> Self:
        if self._attached:
            self._client = await self._open_or_close(self._attach, _close_blocking, timeout)
            return self
        inside_job = inside_dragon() or scheduler_job() is not None
        reason: str | None = ""
        if self._config.wants_processes(inside_job=inside_job):
            reason = await self._open_in_step(timeout)
        if self._client is None:
            stop_file = await on_daemon_thread(timeout, refuse_stale, self._config.stop_file)
            self._client = await self._open_local(timeout)
            if reason:
                self._fall_back(reason, self._client)
            self._watch_for_the_end(self._client, stop_file)
        return self

    async def _undo(self, error: BaseException) -> None:
        """Close what a failed opening has opened."""
        if self._client is not None:
            await self.__aexit__(type(error), error, None)

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
        if rank.rank == 0:
            await on_daemon_thread(timeout, place.begin, self._config.scratch)
        if not place.is_first:
            found = await self._open_or_close(
                partial(self._attach_in_step, place), partial(_leave_blocking, place), timeout
            )
            if isinstance(found, str):
                return found
            self._client = found
            return None
        try:
            reason = await self._open_distributed(timeout)
        except BaseException as error:
            self._rendezvous = None  # what is announced stays, for ranks that come later
            told = f"{type(error).__name__}: {error}"
            try:
                await on_daemon_thread(timeout, place.announce, None, error=told)
            except OSError as untold:
                error.add_note(f"The other ranks of this step were not told: {untold}")
            raise
        descriptor, local = self._owner.descriptor if self._owner else None, self._owner is None
        await on_daemon_thread(timeout, place.announce, descriptor, local=local, error=reason or "")
        return reason

    def _attach_in_step(self, place: Rendezvous) -> RemoteClient | str:
        """The client of the first rank's cluster, or the reason for a local one."""
        note = place.find(self._config.open_timeout)
        descriptor = note.descriptor
        if descriptor is None:
            reason = f"rank 0 of this step: {note.error}"
            if not self._config.may_fall_back:
                raise ClusterOpenError(f"there is no cluster to attach to. {reason}")
            return reason
        try:
            description = describe(descriptor, self._config.request_timeout)
            self._complete_config(description)
            place.enter(descriptor)
            return self._remote(descriptor, description, watched_file(descriptor))
        except BaseException as error:
            place.leave()
            # One that answers, and has another index, is not silent.
            if isinstance(error, ClusterOpenError) or not isinstance(
                error, FlowgenticError | OSError
            ):
                raise
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} that rank 0 of this step opened does not answer: "
                f"{error}"
            ) from error

    async def _leave_step(self, *, failed: bool) -> None:
        """Let the first rank close the cluster; as the first, wait until the others have."""
        place, self._rendezvous = self._rendezvous, None
        if place is None:
            return
        config, descriptor = self._config, self._owner.descriptor if self._owner else None
        longest = config.ranks_timeout
        if not place.is_first:
            place.leave()
            return
        if descriptor is not None and not failed:
            await on_daemon_thread(
                longest + _MARGIN, place.await_others, descriptor, config.open_timeout, longest
            )
        await on_daemon_thread(_MARGIN, place.remove)

    async def _open_local(self, timeout: float) -> InlineClient:
        config = self._config
        name = config.name or f"local-{os.getpid()}"
        if config.persist_path is None:
            if config.ack == "disk":
                raise ClusterOpenError(
                    "ack='disk' promises to survive the loss of power, and a local cluster without "
                    "persist_path has no journal: set persist_path=, or mode='distributed'"
                )
            return InlineClient(
                name,
                config.namespace_depth,
                settings=shard_settings(config, 1),
                index=SharedSettings.of(config).index,
                allowed_types=config.allowed_types,
            )
        memory = await on_daemon_thread(timeout, LocalMemory, config, config.persist_path, name)
        try:
            await self._open_or_close(memory.open, lambda _: memory.close(), timeout)
        except BaseException:
            memory.stop_opening()
            raise
        return InlineClient(
            name,
            config.namespace_depth,
            memory,
            timeout=config.request_timeout,
            close_timeout=config.close_timeout,
            allowed_types=config.allowed_types,
        )

    async def _open_distributed(self, timeout: float) -> str | None:
        """Open a distributed cluster, or return the reason for a local one."""
        spawner = "dragon" if self._config.spawner == "auto" else self._config.spawner
        reason = await on_daemon_thread(timeout, why_no_dragon) if spawner == "dragon" else None
        if reason is None:
            owner = Owner(self._config, spawner)
            try:
                description = await self._open_or_close(
                    owner.open, lambda _: owner.close(), timeout
                )
            except ClusterError as error:
                falls_back = spawner == "dragon" and self._config.may_fall_back
                if owner.host_log:
                    level = logging.INFO if falls_back else logging.ERROR
                    logger.log(level, "the log of its host ends with:\n%s", owner.host_log)
                if not (falls_back and isinstance(error, ClusterOpenError)):
                    raise
                return str(error)
            assert owner.descriptor is not None
            self._owner, self._handle = owner, owner.handle
            try:
                self._client = client = self._remote(owner.descriptor, description)
                on_sigterm.add(owner, partial(self._end_by_signal, owner, client))
                self._heed_warnings(owner)
                if description.found:
                    await count_and_tell(client, description.memory, description.found)
                elif self._config.persist_path is not None:
                    tell_new(description.memory)
            except BaseException:
                await self._close()
                raise
            return None
        if not self._config.may_fall_back:
            raise DragonUnavailableError(f"Dragon not available: {reason}")
        return reason

    @staticmethod
    async def _open_or_close(
        open_it: Callable[[], T], close_it: Callable[[T], object], timeout: float
    ) -> T:
        """Open on a thread; if this task is cancelled meanwhile, the thread closes it again."""
        lock, abandoned = threading.Lock(), False
        opened: list[T] = []

        def open_or_close() -> T:
            result = open_it()
            with lock:
                opened.append(result)
                keep = not abandoned
            if not keep:
                close_it(result)
            return result

        try:
            return await on_daemon_thread(timeout, open_or_close)
        except BaseException as error:
            with lock:
                abandoned = True
                late = [*opened]
            for result in late:  # opened in the very moment in which this task was cancelled
                threading.Thread(target=close_it, args=(result,), daemon=True).start()
            if isinstance(error, TimeoutError) and not is_foreign(error):
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
        """Watch the job's end for a local cluster, as a host does for a distributed one."""
        config = self._config
        # Without a journal nothing is left to close, and the kernel's own action ends a program at
        # once, but not the first of a PID namespace, as in a container.
        if config.persist_path is not None or os.getpid() == 1:
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
                lambda: client.event(EventKind.WALLTIME_UNKNOWN, WALLTIME_UNKNOWN),
            )

    def _fall_back(self, reason: str, client: InlineClient) -> None:
        if missing := self._config.without_effect_locally:
            reason += f". Without effect in this process: {', '.join(missing)}"
        client.event(EventKind.FALLBACK_TO_LOCAL, reason)
        if reason not in _said:
            _said.add(reason)
            logger.warning(
                "Dragon not available - using local fallback: the memory is in this process and "
                "ends with it. Reason: %s (all of it: event fallback_to_local; to fail instead: "
                "fallback_to_local=False)",
                one_line(reason),
            )

    def _attach(self) -> RemoteClient:
        descriptor, watched, self._handle = find_cluster(self._target, self._config.scratch)
        try:
            description = describe(descriptor, self._config.request_timeout)
        except RequestError as error:
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} does not answer: {error}"
            ) from error
        self._complete_config(description)
        return self._remote(descriptor, description, watched)

    def _complete_config(self, description: Description) -> None:
        """Complete the configuration with the settings of the cluster's opener."""
        if description.shared is not None:
            self._config = description.shared.completed(self._config)

    def _remote(
        self, descriptor: Descriptor, description: Description, watched: Watched | None = None
    ) -> RemoteClient:
        config = self._config
        timeout, pool = config.request_timeout, config.connection_pool
        logs = self._owner is None
        return RemoteClient(
            descriptor,
            description,
            timeout,
            pool,
            watched,
            logs=logs,
            allowed_types=config.allowed_types,
            stay_awake=config.stay_awake,
        )

    # ------------------------------------------------------------------ adapters and status

    @property
    def config(self) -> MemoryConfig:
        """The configuration of the cluster; once attached, completed by its opener's."""
        return self._config

    @property
    def checkpointer(self) -> AsyncCheckpointSaver:
        """The checkpointer, for `builder.compile(checkpointer=...)`."""
        if self._checkpointer is None:
            config = self._config
            self._checkpointer = AsyncCheckpointSaver(
                self._opened(),
                detect_conflicts=config.detect_conflicts,
                backlog=config.thread_backlog,
                request_timeout=config.request_timeout,
            )
        return self._checkpointer

    @property
    def store(self) -> AsyncStore:
        """The store, for `builder.compile(store=...)`."""
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
        """The client that sends commands to shards, for adapters of your own."""
        return self._opened()

    @property
    def cache(self) -> AsyncCache[Any]:
        """The cache, for `builder.compile(cache=...)`, with a `CachePolicy` on nodes."""
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
        """The number of nodes that have shards now."""
        return self._opened().n_nodes

    @property
    def handle(self) -> ClusterHandle:
        """The handle for other processes to attach with; picklable, without the secret.

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
        """The status of the cluster: what runs where, and what it holds."""
        return await self._opened().status()

    async def rebalance(
        self,
        n_nodes: int | None = None,
        *,
        without: str | Collection[str] = (),
        max_bytes_per_second: float | str = 32 << 20,
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
                text such as `"64 MiB"` is taken, and `math.inf` for as fast as can be.
            timeout: Seconds to wait for the end.

        Raises:
            RejectedError: If not all of it could be done, with the reason; what is done stays.
            OutcomeUnknownError: If it takes longer than `timeout`; it goes on.
            LocalClusterError: If this is a local cluster, which has one shard in one process.
        """
        if n_nodes is not None and n_nodes < 1:
            raise InvalidRequestError(f"n_nodes must be at least 1, not {n_nodes}")
        rate = transfer_rate(max_bytes_per_second)
        client = self._opened()
        if isinstance(client, InlineClient):
            raise LocalClusterError(
                "a local cluster is one shard in this process: there is nothing to move. Open it "
                "with mode='distributed' and n_nodes=2 or more"
            )
        names = (without,) if isinstance(without, str) else tuple(without)
        await client.rebalance(n_nodes or 0, names, rate, timeout)

    def events(self, start: int = 0) -> AsyncGenerator[ClusterEvent, None]:
        """Iterate over past and future events: starts, exits, restarts, fallbacks.

        Args:
            start: Number of the first event to give; 0 is the first of all.
        """
        return self._opened().events(start)

    async def closing(self) -> str:
        """Wait until the cluster begins to end; returns the reason.

        A scheduler's warning (`stop_signal`), a stop file or the end of the walltime begin that;
        what was accepted is finished, and every further call gets `ClusterClosingError`.
        """
        async for event in self.events():
            if event.kind == EventKind.CLUSTER_CLOSING:
                return event.detail
        raise AssertionError("events do not end")

    async def recent_events(self) -> list[ClusterEvent]:
        """The past events of the cluster."""
        return await self._opened().recent_events()

    def __repr__(self) -> str:
        if "_client" not in vars(self):  # in a traceback with locals of settings that are refused
            return object.__repr__(self)
        state = "new" if self._client is None else type(self._client).__name__
        return f"<MemoryCluster {self._config.mode} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        if self._client is not None:
            self._client.__reduce__()  # says what to do in this mode
        raise TypeError("a MemoryCluster belongs to its process: send memory.handle and attach")

    def _opened(self) -> _Client:
        if self._client is None:
            raise ClusterClosedError("open the cluster first: async with MemoryCluster() as memory")
        return self._client


def _close_blocking(client: RemoteClient) -> None:
    run_blocking(client.close)


def _leave_blocking(place: Rendezvous, found: RemoteClient | str) -> None:
    place.leave()
    if not isinstance(found, str):
        _close_blocking(found)
