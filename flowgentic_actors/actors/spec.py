"""The specification of an actor's process, handed over in a private file."""

from __future__ import annotations

import msgspec

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.identity import Identity


class ActorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The specification of one incarnation of an actor.

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
        stay_awake: Seconds for which it does not sleep between requests that follow one another.
    """

    name: str
    epoch: int
    factory: str
    arguments: dict[str, str]
    address: str
    supervisor: str
    secret: Secret[bytes]
    mailbox_requests: int
    mailbox_bytes: int
    max_message_bytes: int
    fence_after: float
    rejoin_grace: float
    host: str = ""
    identity: Identity | None = None
    leased: bool = False
    stay_awake: float = 0.0
