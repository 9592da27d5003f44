"""`MemoryCluster`: the memory that a program opens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from flowgentic_actors.actors.daemon_threads import run_blocking
from flowgentic_actors.adapters.cache import AsyncCache
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.cluster.client.attaching import (
    Target,
    config_to_attach,
    kept,
)
from flowgentic_actors.cluster.client.inline import InlineClient
from flowgentic_actors.cluster.client.memory_client import MemoryClient
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.opener.exit_hook import close_at_exit
from flowgentic_actors.cluster.opener.opening import Client, Opening
from flowgentic_actors.cluster.protocol.handle import ClusterHandle
from flowgentic_actors.cluster.protocol.status import ClusterEvent, ClusterStatus
from flowgentic_actors.cluster.shard_limits import transfer_rate
from flowgentic_actors.config import MemoryConfig, config_of
from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.errors import (
    ClusterClosedError,
    ClusterError,
    InvalidRequestError,
    LocalClusterError,
)
from flowgentic_actors.event_kinds import EventKind

if TYPE_CHECKING:
    from langgraph.store.base import IndexConfig, TTLConfig


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
        self._opening = Opening(config_of(config, settings))
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
        memory._opening = Opening(memory.config, attaches=True, target=kept(target))
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
        if not self._opening.closed:
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
        if self._opening.closed:
            raise ClusterClosedError("this MemoryCluster was closed: make another one to open")
        if self._opening.client is not None:
            raise ClusterError("this MemoryCluster is open already: make another one")
        close_at_exit(self)
        await self._opening.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._opening.close(failed=exc is not None)

    # ------------------------------------------------------------------ adapters and status

    @property
    def config(self) -> MemoryConfig:
        """The configuration of the cluster; once attached, completed by its opener's."""
        return self._opening.config

    @property
    def checkpointer(self) -> AsyncCheckpointSaver:
        """The checkpointer, for `builder.compile(checkpointer=...)`."""
        if self._checkpointer is None:
            config = self.config
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
        config = self.config  # checked by pydantic
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
        return self._opened().spawner == DragonPlatform.name

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
        if self._opening.handle is None:
            raise LocalClusterError(
                "this cluster cannot hand out a handle: it is local, or was attached to by an "
                "exported string. Open it with mode='distributed'"
            )
        return self._opening.handle

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
        if "_opening" not in vars(self):  # in a traceback with locals of settings that are refused
            return object.__repr__(self)
        client = self._opening.client
        state = "new" if client is None else type(client).__name__
        return f"<MemoryCluster {self.config.mode} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        if self._opening.client is not None:
            self._opening.client.__reduce__()  # says what to do in this mode
        raise TypeError("a MemoryCluster belongs to its process: send memory.handle and attach")

    def _opened(self) -> Client:
        client = self._opening.client
        if client is None:
            raise ClusterClosedError("open the cluster first: async with MemoryCluster() as memory")
        return client
