"""Actors as native processes of the Dragon runtime that this process runs in."""

from __future__ import annotations

import os
from pathlib import Path

from flowgentic_actors.actors.spawn import ACTOR_MODULE, Spawned
from flowgentic_actors.actors.spec import python_command
from flowgentic_actors.actors.threads import on_daemon_thread
from flowgentic_actors.dragon_fixes import with_fixes
from flowgentic_actors.errors import ActorStartError


class _DragonChild:
    # Which pid it has, the process itself says; Dragon is not asked again about it, since a call
    # about a process that was killed may never return.
    pid: int | None = None

    def reap(self) -> int | None:
        return None  # its parent is Dragon's own service, which reaps it


class DragonSpawner:
    """Starts native processes; one Dragon call each, on a thread that can be abandoned.

    Args:
        uses_dragon: Whether the actors call Dragon themselves (to own a DDict).
    """

    name = "dragon"

    def __init__(self, *, uses_dragon: bool = False) -> None:
        self._uses_dragon = uses_dragon

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        """Start a Dragon process; see `Spawner.spawn`."""
        command = python_command(ACTOR_MODULE, str(spec_file))
        await on_daemon_thread(
            timeout, start_dragon_process, command, log_file, uses_dragon=self._uses_dragon
        )
        return _DragonChild()


def start_dragon_process(command: list[str], log_file: Path, *, uses_dragon: bool = False) -> None:
    """Start a native Dragon process on this node. Blocks; call it on a daemon thread.

    Args:
        command: Program and arguments.
        log_file: Where stdout and stderr go; its folder is the working directory.
        uses_dragon: Whether the program calls Dragon itself.

    Raises:
        ActorStartError: If Dragon refuses.
    """
    from dragon.infrastructure.policy import Policy  # noqa: PLC0415 - slow, and optional
    from dragon.infrastructure.process_desc import ProcessOptions  # noqa: PLC0415
    from dragon.native.machine import current  # noqa: PLC0415
    from dragon.native.process import Process  # noqa: PLC0415

    try:
        here = Policy(placement=Policy.Placement.HOST_NAME, host_name=current().hostname)
        Process(
            command[0],
            command[1:],
            cwd=str(log_file.parent),
            env=with_fixes(os.environ),
            stdout=str(log_file),
            stderr=str(log_file),
            policy=here,
            options=ProcessOptions(make_inf_channels=uses_dragon),
        ).start()
    except Exception as error:  # Dragon's errors have no common root
        raise ActorStartError(
            f"Dragon did not start a process: {type(error).__name__}: {error}"
        ) from error
