"""Hosts of clusters as processes of their own, without a `MemoryCluster` around them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from flowgentic_actors.actors.spec import SupervisorSettings
from flowgentic_actors.cluster.opener.host_connection import HostConnection
from flowgentic_actors.cluster.opener.host_watchdog import HostWatchdog
from flowgentic_actors.cluster.persistence.cluster_folders import HOST_SOCKET
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.protocol.host import (
    EventsReply,
    GetEvents,
    GetStatus,
    HostCommand,
    StatusReply,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.protocol.status import ClusterStatus
from flowgentic_actors.cluster.shard_limits import actor_settings, taken_from
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.deadlines import Patience
from flowgentic_actors.errors import FlowgenticError
from flowgentic_actors.platform import Platform
from flowgentic_actors.wire.messages import Role
from tests.support.counter import PATIENCE, SECRET

T = TypeVar("T")


def host_spec(folder: Path, config: MemoryConfig | None = None, **changes: Any) -> HostSpec:
    """The settings of a host of two actors in a folder, with some fields changed."""
    given = config or MemoryConfig()
    fields: dict[str, Any] = {
        "name": "cluster",
        "folder": str(folder),
        "memory": str(folder / "memory"),
        "persist": False,
        "instance": "instance-1",
        "job": "",
        "secret": SECRET,
        "spawner": "subprocess",
        "actors": 2,
        "actor": actor_settings(given, None),
        "supervision": taken_from(given, SupervisorSettings),
        "shared": SharedSettings.of(given),
        "opened": time.time(),
        "stop_file": None,
        "scratch": "",
    }
    return taken_from(given, HostSpec, **fields | changes)


class RunningHost:
    """A host that has opened its cluster.

    Args:
        spec: What it was told.
        platform: How it is started.
    """

    def __init__(self, spec: HostSpec, platform: Platform | None = None) -> None:
        self.spec = spec
        self.watchdog = HostWatchdog(spec, platform or platform_named("subprocess"))
        try:
            self.watchdog.open(Patience(PATIENCE))
        except BaseException:
            self.watchdog.close(0.0)
            raise

    def ask(self, command: HostCommand, reply: type[T], role: Role = "client") -> T:
        """What the host answers on a connection that is closed afterwards."""
        address = str(socket_folder(Path(self.spec.folder)) / HOST_SOCKET)
        connection = HostConnection(address, self.spec.secret, self.spec.max_message_bytes, role)
        try:
            return msgspec.msgpack.decode(connection.ask(command, PATIENCE), type=reply)
        finally:
            connection.close()

    @property
    def status(self) -> ClusterStatus:
        """The cluster's status."""
        return self.ask(GetStatus(), StatusReply).status

    def events(self, kind: str) -> list[str]:
        """The details of the events of one kind."""
        found = self.ask(GetEvents(0, 0.0), EventsReply).events
        return [event.detail for event in found if event.kind == kind]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so; the host may not answer meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, FlowgenticError):
                if condition():
                    return
            assert time.monotonic() < deadline, "it was not so in time"
            time.sleep(0.02)

    def kill(self) -> None:
        """End the host's process as a crash does."""
        psutil.Process(self.status.host_pid).kill()


@contextmanager
def running_host(spec: HostSpec) -> Iterator[RunningHost]:
    """A host, closed with all its actors."""
    host = RunningHost(spec)
    try:
        yield host
    finally:
        host.watchdog.close(spec.close_timeout)
