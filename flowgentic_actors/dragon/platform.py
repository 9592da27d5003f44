"""Dragon as a platform: native processes on all nodes of a runtime, and DDicts."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.spawn import Spawner
from flowgentic_actors.dragon.ddict_sizing import ddict_settings, end_tiers
from flowgentic_actors.dragon.host_launcher import launch_host
from flowgentic_actors.dragon.runtime_cleanup import RUNTIME_FILE, RUNTIME_VARIABLE, end_runtime
from flowgentic_actors.dragon.shared_memory import check_runtime_shm
from flowgentic_actors.dragon.spawner import DragonSpawner, dragon_nodes, start_dragon_process
from flowgentic_actors.environment import inside_dragon, job_hosts, why_no_dragon
from flowgentic_actors.platform import Platform
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import TierSettings
from flowgentic_actors.storage.private_files import overwrite
from flowgentic_actors.wire.interfaces import choose_address

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig

_FIND_TIMEOUT: Final = 30.0


class DragonPlatform(Platform):
    """A Dragon runtime: this process's own, or one that is started."""

    name = "dragon"
    host_program = "Dragon's launcher"
    gives_up = True  # now and then, on a busy machine
    falls_back = True
    why_not = staticmethod(why_no_dragon)
    launch_host = staticmethod(launch_host)
    address = staticmethod(choose_address)
    end_tiers = staticmethod(end_tiers)

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

    def spawner(self, *, uses_tier: bool, on_event: EventSink) -> Spawner:
        """The spawner of native processes; of plain ones outside of a runtime."""
        if not inside_dragon():
            return super().spawner(uses_tier=uses_tier, on_event=on_event)
        return DragonSpawner(on_event, uses_dragon=uses_tier)

    def node_launcher(self, command: list[str], folder: Path) -> DragonNodeLauncher:  # noqa: ARG002
        """The launcher of native processes on the runtime's other nodes."""
        return DragonNodeLauncher(command)

    def note_runtime(self, folder: Path) -> None:
        """Note the id of the runtime."""
        overwrite(folder / RUNTIME_FILE, os.environ.get(RUNTIME_VARIABLE, "").encode())

    def end_runtime(self) -> None:
        """End the runtime's part on this node, except this process."""
        end_runtime(os.environ.get(RUNTIME_VARIABLE, ""))


class DragonNodeLauncher:
    """Starts agents on the other nodes of this process's Dragon runtime; see `NodeLauncher`.

    Args:
        command: The agent's program and arguments.
    """

    def __init__(self, command: list[str]) -> None:
        self.here = socket.gethostname()
        self._command = command

    async def find(self, count: int) -> list[str]:  # noqa: ARG002 - they are given
        """Find the runtime's other nodes."""
        here, nodes = await on_daemon_thread(_FIND_TIMEOUT, dragon_nodes)
        return [node for node in nodes if node != here]

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        """Start a native process on the node."""
        await on_daemon_thread(
            timeout,
            start_dragon_process,
            self._command,
            None,
            uses_dragon=True,
            node=node,
            told=ticket,
        )

    def ended(self) -> dict[str, str]:
        """Always empty: Dragon is not asked about processes that may have been killed."""
        return {}

    def folder(self, node: str) -> str:  # noqa: ARG002 - the same on all
        """Always empty, for the usual folder: the node is a machine of its own."""
        return ""

    def close(self) -> None:
        """Do nothing: the runtime ends the processes that it started."""
