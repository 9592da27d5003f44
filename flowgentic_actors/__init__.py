"""Supervised memory actors for LangGraph agents.

async with MemoryCluster() as memory:
    graph = builder.compile(checkpointer=memory.checkpointer, store=memory.store)
    await graph.ainvoke(state, {"configurable": {"thread_id": "123"}})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowgentic_actors.adapters.cache import AsyncCache
    from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
    from flowgentic_actors.adapters.decoding import StrictSerializer
    from flowgentic_actors.adapters.listing import ThreadInfo
    from flowgentic_actors.adapters.store import AsyncStore
    from flowgentic_actors.cluster.protocol.handle import ClusterHandle
    from flowgentic_actors.cluster.protocol.status import (
        ActorStatus,
        ClusterEvent,
        ClusterStatus,
        NodeStatus,
    )
    from flowgentic_actors.config import MemoryConfig
    from flowgentic_actors.errors import (
        ActorError,
        ActorFailedError,
        ActorStartError,
        ActorUnavailableError,
        AuthenticationError,
        BackpressureError,
        ClusterClosedError,
        ClusterClosingError,
        ClusterError,
        ClusterExistsError,
        ClusterNotFoundError,
        ClusterOpenError,
        ColdValuesError,
        ConflictError,
        DragonUnavailableError,
        FlowgenticError,
        InvalidRequestError,
        JournalDamagedError,
        JournalError,
        JournalLockedError,
        LimitExceededError,
        LocalClusterError,
        MemoryFailedError,
        MemoryFullError,
        NotSentError,
        NotSerializableError,
        OutcomeUnknownError,
        PartialFailureError,
        PersistError,
        PersistHeldError,
        ProtocolError,
        RejectedError,
        ReplicaUnavailableError,
        RequestError,
        RequestExpiredError,
        ShardLostError,
        SharedMemoryError,
        SlotsMovedError,
        StorageError,
        ThreadConflictError,
        TierBusyError,
        TierError,
        TierFullError,
        TierLostError,
        TypeNotAllowedError,
        UntrustedPathError,
        VersionConflictError,
        WireError,
    )
    from flowgentic_actors.event_kinds import EventKind
    from flowgentic_actors.langGraph.distributed_config import DistributedMemoryConfig
    from flowgentic_actors.langGraph.distributed_memory import (
        DistributedMemoryManager,
        DragonCheckpointSaver,
        DragonDDictStore,
    )
    from flowgentic_actors.langGraph.main import LangraphIntegration
    from flowgentic_actors.langGraph.memory import LangraphMemoryManager
    from flowgentic_actors.memory import MemoryCluster

__version__ = "0.1.0"

__all__ = [
    "ActorError",
    "ActorFailedError",
    "ActorStartError",
    "ActorStatus",
    "ActorUnavailableError",
    "AsyncCache",
    "AsyncCheckpointSaver",
    "AsyncStore",
    "AuthenticationError",
    "BackpressureError",
    "ClusterClosedError",
    "ClusterClosingError",
    "ClusterError",
    "ClusterEvent",
    "ClusterExistsError",
    "ClusterHandle",
    "ClusterNotFoundError",
    "ClusterOpenError",
    "ClusterStatus",
    "ColdValuesError",
    "ConflictError",
    "DistributedMemoryConfig",
    "DistributedMemoryManager",
    "DragonCheckpointSaver",
    "DragonDDictStore",
    "DragonUnavailableError",
    "EventKind",
    "FlowgenticError",
    "InvalidRequestError",
    "JournalDamagedError",
    "JournalError",
    "JournalLockedError",
    "LangraphIntegration",
    "LangraphMemoryManager",
    "LimitExceededError",
    "LocalClusterError",
    "MemoryCluster",
    "MemoryConfig",
    "MemoryFailedError",
    "MemoryFullError",
    "NodeStatus",
    "NotSentError",
    "NotSerializableError",
    "OutcomeUnknownError",
    "PartialFailureError",
    "PersistError",
    "PersistHeldError",
    "ProtocolError",
    "RejectedError",
    "ReplicaUnavailableError",
    "RequestError",
    "RequestExpiredError",
    "ShardLostError",
    "SharedMemoryError",
    "SlotsMovedError",
    "StorageError",
    "StrictSerializer",
    "ThreadConflictError",
    "ThreadInfo",
    "TierBusyError",
    "TierError",
    "TierFullError",
    "TierLostError",
    "TypeNotAllowedError",
    "UntrustedPathError",
    "VersionConflictError",
    "WireError",
]

_HOMES = {name: "errors" for name in __all__ if name.endswith("Error")} | {
    "ActorStatus": "cluster.protocol.status",
    "AsyncCache": "adapters.cache",
    "AsyncCheckpointSaver": "adapters.checkpoint",
    "AsyncStore": "adapters.store",
    "ClusterEvent": "cluster.protocol.status",
    "ClusterHandle": "cluster.protocol.handle",
    "ClusterStatus": "cluster.protocol.status",
    "DistributedMemoryConfig": "langGraph.distributed_config",
    "DistributedMemoryManager": "langGraph.distributed_memory",
    "DragonCheckpointSaver": "langGraph.distributed_memory",
    "DragonDDictStore": "langGraph.distributed_memory",
    "EventKind": "event_kinds",
    "LangraphIntegration": "langGraph.main",
    "LangraphMemoryManager": "langGraph.memory",
    "MemoryCluster": "memory",
    "MemoryConfig": "config",
    "NodeStatus": "cluster.protocol.status",
    "StrictSerializer": "adapters.decoding",
    "ThreadInfo": "adapters.listing",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: actors' processes import this package too, and need none of LangGraph.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
