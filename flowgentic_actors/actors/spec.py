"""The specification of an actor, and that of its process, handed over in a private file."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec
from msgspec import Raw

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.identity import Identity


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a supervisor and of its actors' processes.

    Times are in seconds, sizes in bytes; see `MemoryConfig`, which has fields of the same names.
    """

    heartbeat_interval: float
    hang_timeout: float
    busy_timeout: float
    restart_intensity: int
    restart_period: float
    open_timeout: float
    mailbox_requests: int
    mailbox_bytes: int
    max_message_bytes: int
    rejoin_grace: float
    stay_awake: float = 0.0


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The specification of one actor: what to run, and how.

    Attributes:
        name: Name of the actor, unique under its supervisor.
        factory: `"module:callable"` that makes the actor from `arguments`.
        arguments: JSON that the factory decodes.
        address: Path of the Unix socket that it serves on, the same for every incarnation.
        rank: Actors of the highest rank are ended first, those of one rank together.
        host: IP address where it serves other nodes too, over TLS; empty for none.
        leased: Whether it answers only until the end of the lease that its supervisor extends.
    """

    name: str
    factory: str
    arguments: Raw
    address: str
    rank: int = 0
    host: str = ""
    leased: bool = False


class ActorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The specification of one incarnation of an actor.

    Attributes:
        child: The actor.
        epoch: Number of the incarnation, growing.
        supervisor: Path of the supervisor's Unix socket.
        secret: The cluster's secret.
        settings: Those of its supervisor. After `hang_timeout` of the supervisor's silence the
            actor answers nothing, and after a further `rejoin_grace` it ends.
        identity: What it proves to other nodes that it is of this cluster, None without them.
    """

    child: ChildSpec
    epoch: int
    supervisor: str
    secret: Secret[bytes]
    settings: SupervisorSettings
    identity: Identity | None = None


def named_callable(name: str) -> Any:
    """The callable of a name as `"module:callable"`; its module is imported."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
