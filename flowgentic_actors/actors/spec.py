"""What a spawned process needs to become an actor, handed over in a private file."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from flowgentic_actors.wire.identity import Identity

BOOT = (
    "import sys; sys.path.insert(0, {root!r}); import {package}; sys.path.append(sys.path.pop(0)); "
    "from {module} import main; sys.exit(main())"
)


class ActorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one incarnation of an actor.

    Attributes:
        name: Name of the actor.
        epoch: Number of the incarnation, growing.
        factory: `"module:callable"` that makes the actor from `arguments`.
        arguments: Keyword arguments of the factory.
        address: Path of the Unix socket to serve on.
        supervisor: Path of the supervisor's Unix socket.
        secret: The cluster's secret.
        mailbox_requests: Bound of the mailbox.
        mailbox_bytes: Bound of the mailbox.
        max_message_bytes: Largest message.
        fence_after: Seconds of the supervisor's silence after which the actor answers nothing.
        rejoin_grace: Further seconds after which it ends.
        host: IP address where it serves other nodes too, over TLS; empty for none.
        identity: What it proves there that it is of this cluster.
        leased: Whether it answers only with a lease of its supervisor.
    """

    name: str
    epoch: int
    factory: str
    arguments: dict[str, str]
    address: str
    supervisor: str
    secret: bytes
    mailbox_requests: int
    mailbox_bytes: int
    max_message_bytes: int
    fence_after: float
    rejoin_grace: float
    host: str = ""
    identity: Identity | None = None
    leased: bool = False

    def __repr__(self) -> str:
        return f"ActorSpec(name={self.name!r}, epoch={self.epoch}, secret=...)"


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module.main()` in a new Python, as this package and no other copy.

    The package's own parent folder is first on the path while the package is found and last from
    then on, so a source checkout beside an installed copy works and nothing of the standard library
    is shadowed.
    """
    root = str(Path(__file__).parents[2])
    boot = BOOT.format(root=root, package=module.partition(".")[0], module=module)
    return [sys.executable, "-P", "-c", boot, *arguments]
