"""The spawner of actors as native processes of this process's Dragon runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.spawn import ACTOR_MODULE, Spawned, SubprocessSpawner
from flowgentic_actors.dragon.fixes import with_fixes
from flowgentic_actors.environment import without_dragon
from flowgentic_actors.errors import ActorStartError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.python import python_command
from flowgentic_actors.secret import Secret
from flowgentic_actors.storage.private_files import open_log


class _DragonChild:
    # Which pid it has, the process itself says; Dragon is not asked again about it, since a call
    # about a process that was killed may never return.
    pid: int | None = None

    def reap(self) -> int | None:
        return None  # its parent is Dragon's own service, which reaps it


class DragonSpawner:
    """Starts native processes; one Dragon call each, on a thread that can be abandoned.

    A process that was killed in the middle of a Dragon call can leave a lock behind with which the
    runtime starts nothing any more, while what runs goes on. From the first start on that does not
    return, plain child processes are started, which know nothing of Dragon.

    Args:
        on_event: Called, once, when Dragon starts nothing any more.
        uses_dragon: Whether the actors call Dragon themselves (to own a DDict).
        patience: Seconds that a start may take, and half of its own deadline at most.
    """

    def __init__(
        self,
        on_event: EventSink,
        *,
        uses_dragon: bool = False,
        patience: float = 15.0,  # for what takes a second on a busy machine
    ) -> None:
        self._uses_dragon = uses_dragon
        self._on_event = on_event
        self._patience = patience
        self._without: SubprocessSpawner | None = None

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        """Start a Dragon process; see `Spawner.spawn`."""
        command = python_command(ACTOR_MODULE, str(spec_file))
        if self._without is None:
            patience = min(self._patience, timeout / 2)
            try:
                await on_daemon_thread(
                    patience, start_dragon_process, command, log_file, uses_dragon=self._uses_dragon
                )
                return _DragonChild()
            except TimeoutError:
                # Should it start after all, the supervisor does not let it go on beside another.
                if self._without is None:
                    self._without = SubprocessSpawner(without_dragon(os.environ))
                    why = f"Dragon started no process within {patience:g} s"
                    text = f"{why}: actors go on without it"
                    self._on_event(EventKind.DRAGON_HUNG, "", text)
        return await self._without.spawn(spec_file, log_file, timeout)


def dragon_nodes() -> tuple[str, list[str]]:
    """This node and all nodes of the runtime, by host name. Blocks; call it on a daemon thread.

    Raises:
        ActorStartError: If Dragon does not tell.
    """
    from dragon.native.machine import Node, System, current  # noqa: PLC0415 - slow, and optional

    try:
        return current().hostname, [Node(node).hostname for node in System().nodes]
    except Exception as error:  # Dragon's errors have no common root
        raise ActorStartError(
            f"Dragon does not tell its nodes: {type(error).__name__}: {error}"
        ) from error


def start_dragon_process(
    command: list[str],
    log_file: Path | None,
    *,
    uses_dragon: bool = False,
    node: str | None = None,
    environ: Mapping[str, str] | None = None,
    told: Secret[str] | None = None,
) -> None:
    """Start a native Dragon process. Blocks; call it on a daemon thread.

    Args:
        command: Program and arguments.
        log_file: Where stdout and stderr go; its folder is the working directory. None: nowhere,
            and the root folder.
        uses_dragon: Whether the program calls Dragon itself.
        node: Host name of the node; this one if None.
        environ: Its environment; this process's own if None.
        told: What it finds on its standard input; nothing, and an empty input, if None.

    Raises:
        ActorStartError: If Dragon refuses.
    """
    from dragon.infrastructure.policy import Policy  # noqa: PLC0415 - slow, and optional
    from dragon.infrastructure.process_desc import ProcessOptions  # noqa: PLC0415
    from dragon.native.machine import current  # noqa: PLC0415
    from dragon.native.process import Popen, Process  # noqa: PLC0415

    try:
        where = current().hostname if node is None else node
        if log_file is not None:
            open_log(log_file).close()  # Dragon opens it by name, with the mode that it has then
        output = str(log_file) if log_file is not None else Popen.DEVNULL
        process = Process(
            command[0],
            command[1:],
            cwd=str(log_file.parent) if log_file is not None else "/",
            env=with_fixes(os.environ if environ is None else environ),
            stdin=Popen.PIPE if told is not None else None,
            stdout=output,
            stderr=output,
            policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=where),
            options=ProcessOptions(make_inf_channels=uses_dragon),
        )
        process.start()
        if told is not None:
            process.stdin_conn.send(told.reveal())
    except Exception as error:  # Dragon's errors have no common root
        raise ActorStartError(
            f"Dragon did not start a process: {type(error).__name__}: {error}"
        ) from error
