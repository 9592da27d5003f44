"""Supervisors of counters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.spawn import Spawned, SubprocessSpawner
from tests.support.counter import PATIENCE, Office, alive, command, number, until

SHORT: dict[str, Any] = {"heartbeat_interval": 0.05, "hang_timeout": 1.0}
"""So that a hang is noticed soon."""


class Recording(SubprocessSpawner):
    """Notes which of the processes that it started lived when it was asked for another."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int] = []
        self.beside: list[list[int]] = []

    def living(self) -> list[int]:
        return [pid for pid in self.pids if alive(pid)]

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        self.beside.append(await asyncio.to_thread(self.living))
        spawned = await super().spawn(spec_file, log_file, timeout)
        assert spawned.pid is not None
        self.pids.append(spawned.pid)
        return spawned


def reasons(opened: Office, kind: str = "actor_exited") -> list[str]:
    return [detail for found, _, detail in opened.events if found == kind]


async def restarted(opened: Office, epoch: int = 2) -> None:
    child = opened.child()
    await until(lambda: child.epoch >= epoch and child.state is ChildState.RUNNING)


def read(path: Path) -> str:
    return path.read_text()


async def total(ref: ActorRef) -> int:
    return number(await ref.ask(command("get"), PATIENCE))
