"""The join protocol: how an agent that was just started gets its settings from the host.

It is given a ticket on its standard input, so that no process has it in its environment or command
line: the addresses of a listener that the host opens for this, the certificate that the host proves
itself with, and a secret that is good for joining alone and only for as long as that listener is
open. Over it the node gets its spec, and in it the cluster's secret and key.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError, ProtocolError
from flowgentic_actors.secret import Secret, concealed, revealed
from flowgentic_actors.shard.settings import ActorSettings
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.blocking_connection import BlockingConnection
from flowgentic_actors.wire.handshake import new_secret
from flowgentic_actors.wire.identity import Identity
from flowgentic_actors.wire.messages import Cancel, Failure, Reply, Request, ToServer, sendable
from flowgentic_actors.wire.server_connection import Connection

_TICKET_TIMEOUT: Final = 30.0
_PAUSE: Final = 0.2
_MAX_BYTES: Final = 4 << 20
_SHARED_GRACE: Final = 25.0
"""A node without its host lets go of journals at `persist_path` before the next cluster takes hold
of them, which is when their holder has been silent for `memory_lock.SILENCE`."""

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


class Ticket(Struct, frozen=True):
    """What an agent is started with: the host's addresses and a secret to join with.

    Attributes:
        node: The name that it has for the host.
        addresses: Where the host listens for those who join.
        secret: Good for joining.
        patience: Seconds for which it tries.
    """

    node: str
    addresses: tuple[TcpAddress, ...]
    secret: Secret[bytes]
    patience: float

    def write(self) -> Secret[str]:
        """The ticket as a line of JSON."""
        return Secret(msgspec.json.encode(self, enc_hook=revealed).decode() + "\n")


def take_ticket(source: int = 0) -> Ticket:
    """Read the ticket from a pipe, by default this process's standard input. Blocks.

    Raises:
        ClusterOpenError: If there is none in time.
    """
    poll = select.poll()
    poll.register(source, select.POLLIN)
    try:
        with os.fdopen(source, "rb", closefd=False) as lines:
            there = poll.poll(_TICKET_TIMEOUT * 1000)
            line = Secret(lines.readline() if there else b"")
        return msgspec.json.decode(line.reveal(), type=Ticket, dec_hook=concealed)
    except (OSError, msgspec.DecodeError) as error:
        raise ClusterOpenError(
            "there is no ticket on the standard input: this program is started by a cluster's host"
        ) from error


class Join(Struct, array_like=True, frozen=True):
    """Request of an agent to join.

    Attributes:
        node: The name on its ticket.
        machine: The machine that it is on, as `environment.machine` names it.
    """

    node: str
    machine: str


class NodeSpec(Struct, frozen=True, kw_only=True):
    """The settings of a node.

    Attributes:
        cluster: The settings of the host.
        folder: The node's private folder, empty for the usual one on its machine.
        manifest: What its memory folder is to hold as manifest, where the memory is its own.
        generation: Folder below the memory's in which each shard has one of its name.
        identity: What its actors prove to other nodes.
        host: Where the host listens.
        host_id: What it calls itself; another host of the cluster starts nodes of its own.
        actor: What the shards' actors have in common, here and now.
        lease: Seconds.
    """

    cluster: HostSpec
    folder: str
    manifest: bytes
    generation: str
    identity: Identity
    host: TcpAddress
    host_id: str
    actor: ActorSettings
    lease: float

    @property
    def rejoin_grace(self) -> float:
        """Seconds for which it waits for a host that is silent, beyond its lease."""
        grace = self.cluster.supervision.rejoin_grace
        return min(grace, _SHARED_GRACE) if self.cluster.persist else grace


class JoinServer:
    """Handles the connections of joining agents, which wait until the settings are known.

    Args:
        on_join: Told who is there; raises `ClusterOpenError` if that one is not welcome.
    """

    def __init__(self, on_join: Callable[[Join], None]) -> None:
        self._on_join = on_join
        self._waiting: list[tuple[Connection, int, str]] = []
        self._specs: Callable[[str], NodeSpec] | None = None
        self.secret = new_secret()

    def release(self, specs: Callable[[str], NodeSpec]) -> None:
        """Send their settings to the agents that have joined, and to those that join later.

        Args:
            specs: Makes the spec of a node.
        """
        self._specs = specs
        waiting, self._waiting = self._waiting, []
        for connection, seq, node in waiting:
            connection.send(Reply(seq, Raw(_encode(specs(node)))))

    def connected(self, connection: Connection) -> None:
        """Accept connections of clients only."""
        if connection.role != "client":
            raise ProtocolError(f"nothing is here for a {connection.role}")

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Handle requests to join."""
        for message in messages:
            match message:
                case Request(seq, _, _, body):
                    self._answer(connection, seq, body)
                case Cancel():
                    pass
                case _:
                    raise ProtocolError(f"{type(message).__name__} has no place here")

    def disconnected(self, connection: Connection) -> None:
        """Forget the agent that waits on a closed connection."""
        self._waiting = [waiting for waiting in self._waiting if waiting[0] is not connection]

    def _answer(self, connection: Connection, seq: int, body: Raw) -> None:
        try:
            who = msgspec.msgpack.decode(body, type=Join)
            self._on_join(who)
        except (msgspec.DecodeError, UnicodeDecodeError, FlowgenticError) as error:
            connection.send(Failure(seq, "invalid", sendable(str(error))))
            return
        if self._specs is None:
            self._waiting.append((connection, seq, who.node))
        else:
            connection.send(Reply(seq, Raw(_encode(self._specs(who.node)))))


def join(ticket: Ticket, who: Join) -> NodeSpec:
    """Join with a ticket, at the first of the host's addresses that can be reached. Blocks.

    Raises:
        ClusterOpenError: If none could in time, or the ticket is not good.
    """
    deadline = time.monotonic() + ticket.patience
    trouble: FlowgenticError | None = None
    while time.monotonic() < deadline:
        for address in ticket.addresses:
            connection = BlockingConnection(address, ticket.secret, "the host", _MAX_BYTES)
            try:
                answer = connection.request(_encode(who), max(1.0, deadline - time.monotonic()))
                return msgspec.msgpack.decode(answer, type=NodeSpec, dec_hook=concealed)
            except FlowgenticError as error:
                trouble = error
            finally:
                with contextlib.suppress(OSError):
                    connection.close()
        time.sleep(_PAUSE)
    raise ClusterOpenError(f"the host cannot be reached: {trouble}") from trouble
