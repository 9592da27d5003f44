"""The specifications of the shards' actors on one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.shard.settings import ActorArguments, ActorSettings

SHARD_FACTORY: Final = "flowgentic_actors.shard.actor:make_shard_actor"
REPLICA_FACTORY: Final = "flowgentic_actors.shard.replication.replica_actor:make_replica_actor"


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """The memory on one node: what its shards' actors there are made of.

    Attributes:
        actor: What the actors have in common.
        replicated: Whether each shard has two copies.
        generation: Folder in which each shard has one of its actor's name.
        folder: The cluster's private folder on the node.
        ip: Where the actors serve other nodes too, empty for nowhere.
        leased: Whether they need a lease.
    """

    actor: ActorSettings
    replicated: bool
    generation: Path
    folder: Path
    ip: str
    leased: bool = False

    def shard_folder(self, shard: int) -> Path:
        """The folder of a shard."""
        return self.generation / actor_name(shard)

    def shard_spec(self, shard: int) -> ChildSpec:
        """The specification of a shard's actor on the node."""
        name = actor_name(shard)
        arguments = ActorArguments(
            folder=str(self.shard_folder(shard)),
            tier_path=str(self.folder / name),
            settings=self.actor,
        )
        return ChildSpec(
            name=name,
            factory=REPLICA_FACTORY if self.replicated else SHARD_FACTORY,
            arguments=Raw(msgspec.json.encode(arguments)),
            address=str(socket_folder(self.folder) / f"{name}.sock"),
            host=self.ip,
            leased=self.leased,
        )


@dataclass(frozen=True, kw_only=True)
class OpenMemory(NodeMemory):
    """The memory on the host's node, which has it open.

    Attributes:
        shards: How many there are.
        note_table: Writes down how many there are, and which has which slots. Blocks.
    """

    shards: int
    note_table: Callable[[int, SlotTable], None]

    @property
    def specs(self) -> list[ChildSpec]:
        """The actors of all shards on the host's node."""
        return [self.shard_spec(shard) for shard in range(self.shards)]
