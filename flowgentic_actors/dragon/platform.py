"""Dragon as a platform: processes on all nodes of a runtime, and DDicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.dragon.ddict_sizing import ddict_settings, end_tiers
from flowgentic_actors.dragon.host_launcher import launch_host
from flowgentic_actors.dragon.node_launcher import DragonNodeLauncher
from flowgentic_actors.dragon.runtime_cleanup import RUNTIME_FILE, RUNTIME_VARIABLE, end_runtime
from flowgentic_actors.dragon.shared_memory import check_runtime_shm
from flowgentic_actors.dragon.spawner import DragonSpawner
from flowgentic_actors.environment import inside_dragon, job_hosts, why_no_dragon
from flowgentic_actors.shard.settings import TierSettings
from flowgentic_actors.storage.private_files import overwrite
from flowgentic_actors.wire.interfaces import choose_address

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig


class DragonPlatform:
    """A Dragon runtime: this process's own, or one that is started; see `Platform`."""

    name = "dragon"
    host_program = "Dragon's launcher"
    gives_up = True  # now and then, on a busy machine
    falls_back = True
    launch_host = staticmethod(launch_host)
    end_tiers = staticmethod(end_tiers)
    address = staticmethod(choose_address)
    why_not = staticmethod(why_no_dragon)

    def nodes(self, asked: int | None) -> int:
        """The nodes of the runtime or the job, as many as asked for."""
        return asked or 0 if inside_dragon() or len(job_hosts()) > 1 else 1

    def owns_runtime(self) -> bool:
        """Whether this process is in no runtime, so that one is started."""
        return not inside_dragon()

    def tier(self, config: MemoryConfig) -> TierSettings | None:
        """The settings of each actor's DDict."""
        if not inside_dragon():
            check_runtime_shm()
        quotas = (config.store_total_mem or 0) + (config.checkpoint_total_mem or 0)
        expected = config.n_nodes or max(1, len(job_hosts()))
        return ddict_settings(
            quotas // (expected if self.nodes(config.n_nodes) != 1 else 1),
            config.actors_per_node,
            config.managers_per_node,
        )

    def spawner(self, *, uses_tier: bool, on_hung: Callable[[str], None]) -> Spawner:
        """The spawner of native processes; of plain ones outside of a runtime."""
        if not inside_dragon():
            return SubprocessSpawner()
        return DragonSpawner(uses_dragon=uses_tier, on_hung=on_hung)

    def node_launcher(self, command: list[str], folder: Path) -> DragonNodeLauncher:  # noqa: ARG002 - each node has its own
        """The launcher of native processes on the runtime's other nodes."""
        return DragonNodeLauncher(command)

    def note_runtime(self, folder: Path) -> None:
        """Note the id of the runtime, for `dragon.host_launcher`."""
        overwrite(folder / RUNTIME_FILE, os.environ.get(RUNTIME_VARIABLE, "").encode())

    def end_runtime(self) -> None:
        """End the runtime's part on this node, except this process."""
        end_runtime(os.environ.get(RUNTIME_VARIABLE, ""))
