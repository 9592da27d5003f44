"""`DistributedMemoryConfig`: where the memory of a `LangraphMemoryManager` lives, and how large."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from flowgentic_actors.config_values import Bytes, Settings
from flowgentic_actors.environment import inside_dragon, scheduler_job

GiB = 1024**3

Ceiling = Annotated[Bytes, Field(ge=2**20, le=2**50)]


class DistributedMemoryConfig(Settings):
    """The eight parameters of Flowgentic's distributed memory; unknown names are refused.

    The sizes are quotas. With Dragon, room for them has to be there in `/dev/shm`: where it is
    not, opening fails with an error that names what is needed and what there is, or, with
    `fallback_to_local`, the memory is in this process and that is said once.
    """

    mode: Literal["local", "distributed", "auto"] = "auto"
    """`"local"`: in this process. `"distributed"`: in actors that Dragon starts. `"auto"`:
    distributed inside a Dragon runtime or a job of SLURM, PBS or LSF and with several nodes, local
    elsewhere."""

    managers_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes on each node that hold values."""

    n_nodes: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Nodes to use, of those in the Dragon runtime or the scheduler's job; where there are fewer,
    all of them, and the events say so."""

    store_total_mem: Ceiling = 10 * GiB
    """Quota of the bytes of all items of the store."""

    checkpoint_total_mem: Ceiling = 20 * GiB
    """Quota of the bytes of all checkpoints."""

    enable_store: bool = True
    """Whether there is a store."""

    enable_checkpointer: bool = True
    """Whether there is a checkpointer."""

    fallback_to_local: bool = True
    """Without Dragon, or without room, go on in this process instead of raising."""

    def should_use_distributed(self) -> bool:
        """Whether the memory is to be distributed, here and now."""
        if self.mode == "auto":
            return self.n_nodes > 1 or inside_dragon() or scheduler_job() is not None
        return self.mode == "distributed"

    def cluster_settings(self) -> dict[str, Any]:
        """The settings of a `MemoryCluster` for this configuration."""
        return {
            "mode": self.mode,
            "managers_per_node": self.managers_per_node,
            "n_nodes": self.n_nodes,
            "store_total_mem": self.store_total_mem if self.enable_store else None,
            "checkpoint_total_mem": self.checkpoint_total_mem if self.enable_checkpointer else None,
            "fallback_to_local": self.fallback_to_local,
        }
