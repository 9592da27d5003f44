"""The protocol of a platform: how a cluster's processes are started, and what is around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flowgentic_actors.actors.spawn import Spawner
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.settings import TierSettings

if TYPE_CHECKING:  # hosts import this module, and no pydantic
    from flowgentic_actors.config import MemoryConfig


class HostProcess(Protocol):
    """A host's process that was started."""

    def running(self) -> bool:
        """Whether the host, with its launcher or runtime, may still come up or be up."""

    def look(self) -> None:
        """Note what the host uses now, to remove it if the host is killed."""

    def let_go(self) -> None:
        """Note that the host has ended its work, and ends by itself from now on."""

    def ending(self) -> str:
        """How the host ended, as a predicate for messages."""

    def wait(self, timeout: float) -> bool:
        """Wait until the host and its launcher are gone; False when they are not in time."""

    def kill(self) -> None:
        """Kill what is left of the host, and remove the files and shared memory it leaves."""


class NodeLauncher(Protocol):
    """Starts agents on nodes."""

    async def find(self, count: int) -> tuple[str, list[str]]:
        """Find the name of this node, and the other available nodes.

        Args:
            count: Nodes that there shall be in all, where they can be made at will.
        """

    async def launch(self, node: str, ticket: Secret[str], timeout: float) -> None:
        """Start the agent of a node.

        Args:
            node: One of those that were found.
            ticket: A line that the agent finds on its standard input.
            timeout: Seconds.

        Raises:
            OSError, TimeoutError, ActorStartError: If it could not be started.
        """

    def ended(self) -> dict[str, str]:
        """The agents that are known to have ended, and how, by node. Blocks."""

    def folder(self, node: str) -> str:
        """The folder for a node's files, empty for the usual one."""

    def close(self) -> None:
        """Kill the agents that do not end by themselves, where that is possible from here."""


class Platform(Protocol):
    """One value of the setting `spawner`: who starts the processes, and what they can use.

    All methods but `spawner` and `node_launcher` may block.

    Attributes:
        name: The value of the setting.
        host_program: What is started as the host's process, for messages.
        gives_up: Whether that program may end before the host runs, and succeed the next time.
        falls_back: Whether a local cluster may take the place of one that does not open.
    """

    name: str
    host_program: str
    gives_up: bool
    falls_back: bool

    def why_not(self) -> str | None:
        """The reason why no cluster can be opened, with what to do about it; None if one can."""

    def nodes(self, asked: int | None) -> int:
        """The number of nodes to use, 0 for all that there are.

        Args:
            asked: How many the user wants, None for no wish.
        """

    def owns_runtime(self) -> bool:
        """Whether a runtime is started for the host of a cluster, and ends with it."""

    def tier(self, config: MemoryConfig) -> TierSettings | None:
        """The settings of the actors' memory tiers, None for none.

        Raises:
            ClusterOpenError: If there is not enough room for what is asked for.
        """

    def launch_host(
        self,
        command: list[str],
        *,
        folder: Path,
        log_file: Path,
        pid_file: Path,
        nodes: int,
        timeout: float,
    ) -> HostProcess:
        """Start the host. Blocks for as long as that takes, not until the host serves.

        Args:
            command: Program and arguments.
            folder: The cluster's folder.
            log_file: Where its stdout and stderr go, appended.
            pid_file: Where the host writes its pid.
            nodes: The number of nodes to use, as `nodes` gave it.
            timeout: Seconds.

        Raises:
            ClusterOpenError: If it could not be started.
        """

    def spawner(self, *, uses_tier: bool, on_hung: Callable[[str], None]) -> Spawner:
        """The spawner of the actors on this process's node.

        Args:
            uses_tier: Whether they have memory tiers.
            on_hung: Called, once, with the reason why actors go on without the runtime.
        """

    def node_launcher(self, command: list[str], folder: Path) -> NodeLauncher:
        """The launcher of agents on nodes.

        Args:
            command: The agent's program and arguments.
            folder: The cluster's folder.
        """

    def address(self, network: str | None) -> str:
        """The IP address at which other nodes reach this one; `network` as in `MemoryConfig`."""

    def note_runtime(self, folder: Path) -> None:
        """Note in the cluster's folder which runtime this host is in, which ends with it."""

    def end_runtime(self) -> None:
        """End this node's part of the runtime that this process is in, except this process."""

    def end_tiers(self, folder: Path) -> None:
        """End the memory tiers of actors that have ended, of a cluster with this folder."""
