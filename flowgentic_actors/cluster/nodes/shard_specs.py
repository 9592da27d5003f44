"""The specifications of the shards' actors on one node."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.shard.settings import ActorArguments, ActorSettings

SHARD_FACTORY: Final = "flowgentic_actors.shard.actor:make_shard_actor"
REPLICA_FACTORY: Final = "flowgentic_actors.shard.replication.replica_actor:make_replica_actor"


def shard_spec(
    shard: int,
    settings: ActorSettings,
    *,
    replicated: bool,
    memory: Path,
    folder: Path,
    host: str,
    leased: bool = False,
) -> ChildSpec:
    """The specification of a shard's actor on this node.

    Args:
        shard: Number of the shard.
        settings: What it has in common with the other shards' actors.
        replicated: Whether the shard has two copies.
        memory: Folder in which each shard has one of its actor's name.
        folder: The cluster's private folder on this node.
        host: IP address where it serves other nodes too, empty for none.
        leased: Whether it needs a lease.
    """
    name = actor_name(shard)
    arguments = ActorArguments(
        folder=str(memory / name), tier_path=str(folder / name), settings=settings
    )
    return ChildSpec(
        name=name,
        factory=REPLICA_FACTORY if replicated else SHARD_FACTORY,
        arguments=Raw(msgspec.json.encode(arguments)),
        address=str(socket_folder(folder) / f"{name}.sock"),
        host=host,
        leased=leased,
    )


def shard_folder(spec: ChildSpec) -> Path:
    """The folder of the shard whose actor is specified."""
    return Path(msgspec.json.decode(spec.arguments, type=ActorArguments).folder)
