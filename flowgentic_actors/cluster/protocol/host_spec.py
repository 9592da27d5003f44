"""The settings of a host, in its private spec file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from flowgentic_actors.actors.spec import SupervisorSettings
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import ActorSettings
from flowgentic_actors.wire.identity import Identity


class OrphanLimits(NamedTuple):
    """Limits on the orphans that are kept; see `MemoryConfig`."""

    ttl: float
    bytes: int


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a host; see `MemoryConfig` for their meaning.

    Attributes:
        opened: When the cluster was opened.
        restarts: How many hosts it had before this one.
        reason: What became of the last of them.
        actor: What its actors have in common, with the quotas of all actors of one node.
        supervision: How they are watched.
        shared: What all programs that use the cluster have in common.
        reindex: Whether items may be embedded in another way than before.
        tier_given_up: Why actors have no memory tier from this host on, empty otherwise.
        actors: Memory actors on each node.
        nodes: Nodes to use, 0 for all that there are.
        asked_nodes: What the user asked for, 0 for nothing.
        scratch: As in `MemoryConfig`, empty for the default.
        identity: What the host and its actors prove to other nodes.
        orphans: Which memories of other clusters are kept on other nodes.
        owns_runtime: Whether the Dragon runtime was started for this cluster, and ends with it.
    """

    name: str
    folder: str
    memory: str
    persist: bool
    instance: str
    job: str
    secret: Secret[bytes]
    spawner: str
    actors: int
    namespace_depth: int
    actor: ActorSettings
    supervision: SupervisorSettings
    shared: SharedSettings
    close_timeout: float
    opened: float
    stop_signal: str | None = None
    stop_file: str | None = None
    walltime_margin: float | None = None
    tier_given_up: str = ""
    nodes: int = 1
    asked_nodes: int = 0
    replicas: int = 1
    degrade: bool = False
    node_timeout: float = 3.0
    network: str | None = None
    scratch: str = ""
    identity: Identity | None = None
    orphans: OrphanLimits = OrphanLimits(0.0, 0)
    owns_runtime: bool = False
    reindex: bool = False
    restarts: int = 0
    reason: str = ""

    @property
    def max_message_bytes(self) -> int:
        """The largest message to and from the cluster's actors."""
        return self.supervision.max_message_bytes


def actor_addresses(spec: HostSpec) -> dict[str, str]:
    """The sockets of a cluster's actors, by name, in the order of their shards."""
    folder = socket_folder(Path(spec.folder))
    names = [actor_name(shard) for shard in range(spec.actors)]
    return {name: str(folder / f"{name}.sock") for name in names}
