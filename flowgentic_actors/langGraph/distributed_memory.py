"""The store and the checkpointer of Flowgentic's distributed memory, and their manager."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Final, Self

from langgraph.checkpoint.serde.base import SerializerProtocol

from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.langGraph.distributed_config import DistributedMemoryConfig, GiB
from flowgentic_actors.memory import MemoryCluster

_STORE: Final = 10 * GiB
_CHECKPOINTS: Final = 20 * GiB


class _OverCluster:
    """The common base: a cluster of its own, which it closes, or another owner's."""

    def _open(
        self, cluster: MemoryCluster | None, sizes: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        if cluster is not None and settings:
            raise TypeError(
                f"{', '.join(settings)}: give settings to the cluster when it is made, not to what "
                "is over it"
            )
        self._owned = cluster is None
        if cluster is None:
            cluster = MemoryCluster(**{"mode": "distributed", **sizes, **settings}).open()
        self._cluster = cluster
        self._uses_dragon = cluster.uses_dragon

    @property
    def cluster(self) -> MemoryCluster:
        """The cluster that holds the memory."""
        return self._cluster

    @property
    def using_dragon(self) -> bool:
        """Whether Dragon holds the memory; otherwise it is in this process."""
        return self._uses_dragon

    def close(self) -> None:
        """Close the cluster if it owns it, blocking; a second time does nothing."""
        if self._owned:
            self._cluster.close()


class DragonDDictStore(_OverCluster, AsyncStore):
    """A `BaseStore` over memory actors that Dragon starts; in this process where Dragon cannot run.

    It opens a cluster of its own when it is made, which blocks for as long as that takes (seconds
    with Dragon), and holds it until `close`. In a running event loop, or to have store and
    checkpointer share one cluster, take them from a `DistributedMemoryManager` or `MemoryCluster`.

    Args:
        managers_per_node: Processes on each node that hold values.
        n_nodes: Nodes to use; see `DistributedMemoryConfig`.
        total_mem: Quota of the bytes of all items.
        fallback_to_local: Without Dragon, or without room, go on in this process.
        cluster: An open cluster to use instead of one of its own.
        **settings: Further fields of `MemoryConfig`, `index` and `ttl` among them.

    Raises:
        ClusterOpenError: If the cluster cannot be opened and there is no falling back.
        TypeError: If settings are given beside a cluster that has its own.
    """

    def __init__(
        self,
        managers_per_node: int = 1,
        n_nodes: int = 1,
        total_mem: int = _STORE,
        *,
        fallback_to_local: bool = True,
        cluster: MemoryCluster | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "n_nodes": n_nodes,
            "managers_per_node": managers_per_node,
            "store_total_mem": total_mem,
            "fallback_to_local": fallback_to_local,
        }
        self._open(cluster, given, settings)
        index, ttl = self.cluster.store_settings
        super().__init__(self.cluster.client, index=index, ttl=ttl)


class DragonCheckpointSaver(_OverCluster, AsyncCheckpointSaver):
    """A `BaseCheckpointSaver` over memory actors that Dragon starts; see `DragonDDictStore`.

    Args:
        managers_per_node: Processes on each node that hold values.
        n_nodes: Nodes to use; see `DistributedMemoryConfig`.
        total_mem: Quota of the bytes of all checkpoints.
        fallback_to_local: Without Dragon, or without room, go on in this process.
        serde: Serializer of checkpoints. Default: as `allowed_types` of the cluster says.
        cluster: An open cluster to use instead of one of its own.
        **settings: Further fields of `MemoryConfig`.

    Raises:
        ClusterOpenError: If the cluster cannot be opened and there is no falling back.
        TypeError: If settings are given beside a cluster that has its own.
    """

    def __init__(
        self,
        managers_per_node: int = 1,
        n_nodes: int = 1,
        total_mem: int = _CHECKPOINTS,
        *,
        fallback_to_local: bool = True,
        serde: SerializerProtocol | None = None,
        cluster: MemoryCluster | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "n_nodes": n_nodes,
            "managers_per_node": managers_per_node,
            "checkpoint_total_mem": total_mem,
            "fallback_to_local": fallback_to_local,
        }
        self._open(cluster, given, settings)
        config = self.cluster.config
        super().__init__(
            self.cluster.client,
            serde=serde,
            detect_conflicts=config.detect_conflicts,
            backlog=config.thread_backlog,
            request_timeout=config.request_timeout,
        )


class DistributedMemoryManager:
    """One cluster, and the store and checkpointer that share it.

    It is opened by the first call that needs it, blocking, or by `async with`.

    Args:
        config: Where the memory lives. Default: `DistributedMemoryConfig()`.
        **settings: Further fields of `MemoryConfig`, such as `index`, `ttl` or `persist_path`.

    Raises:
        pydantic.ValidationError: If a setting is unknown or impossible.
    """

    def __init__(self, config: DistributedMemoryConfig | None = None, **settings: Any) -> None:
        self.config = config if config is not None else DistributedMemoryConfig()
        self._cluster = MemoryCluster(**{**self.config.cluster_settings(), **settings})
        self._opening = threading.Lock()
        self._opened = False
        self._closed = False
        self._store: DragonDDictStore | None = None
        self._checkpointer: DragonCheckpointSaver | None = None

    # ------------------------------------------------------------------ opening and closing

    async def __aenter__(self) -> Self:
        if not self._opened:
            await self._cluster.__aenter__()
            self._opened = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the cluster; a second time does nothing."""
        if self._opened and not self._closed:
            self._closed = True
            await self._cluster.__aexit__(None, None, None)

    def close(self) -> None:
        """Close the cluster, blocking; a second time does nothing."""
        if self._opened and not self._closed:
            self._closed = True
            self._cluster.close()

    @property
    def closed(self) -> bool:
        """Whether the cluster was closed."""
        return self._closed

    @property
    def cluster(self) -> MemoryCluster:
        """The opened cluster."""
        with self._opening:
            if not self._opened:
                self._cluster.open()
                self._opened = True
        return self._cluster

    # ------------------------------------------------------------------ adapters and status

    @property
    def store(self) -> DragonDDictStore | None:
        """The store, None if it is not enabled."""
        if self._store is None and self.config.enable_store:
            self._store = DragonDDictStore(cluster=self.cluster)
        return self._store

    @property
    def checkpointer(self) -> DragonCheckpointSaver | None:
        """The checkpointer, None if it is not enabled."""
        if self._checkpointer is None and self.config.enable_checkpointer:
            self._checkpointer = DragonCheckpointSaver(cluster=self.cluster)
        return self._checkpointer

    def is_distributed(self) -> bool:
        """Whether the memory is in actors of their own processes."""
        return self.cluster.is_distributed

    def get_memory_info(self) -> dict[str, Any]:
        """Location and limits of the memory, in Flowgentic's shape.

        `n_nodes` are the nodes that it is on, which may be fewer than were asked for.
        """
        config = self.config
        return {
            "mode": config.mode,
            "is_distributed": self.is_distributed(),
            "store_enabled": config.enable_store,
            "checkpointer_enabled": config.enable_checkpointer,
            "n_nodes": self.cluster.n_nodes,
            "managers_per_node": config.managers_per_node,
            "store_memory_gb": config.store_total_mem / GiB,
            "checkpoint_memory_gb": config.checkpoint_total_mem / GiB,
        }
