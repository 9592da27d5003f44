"""A cluster's memory as one of its nodes has it: the actors of its shards, and their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowgentic_actors.actors.child import ChildSpec
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.dragon.ddict_sizing import tier_folder


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """The memory on one node.

    Attributes:
        factory: Makes an actor.
        arguments: Its arguments, but for folders.
        generation: The folder in which each shard has one.
        folder: The cluster's private folder on the node.
        ip: Where the actors listen for other nodes, empty without any.
        leased: Whether they answer only with a lease.
    """

    factory: str
    arguments: dict[str, str]
    generation: Path
    folder: Path
    ip: str
    leased: bool = False

    def child_spec(self, shard: int) -> ChildSpec:
        """A shard's actor on the node."""
        name = actor_name(shard)
        return ChildSpec(
            name=name,
            factory=self.factory,
            arguments={
                **self.arguments,
                "folder": str(self.generation / name),
                "tier_folder": str(tier_folder(self.folder, name)),
            },
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
        return [self.child_spec(shard) for shard in range(self.shards)]
