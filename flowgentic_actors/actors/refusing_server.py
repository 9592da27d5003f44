"""A server in place of an actor that has ended for good: it refuses, with the reason."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.errors import ProtocolError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.messages import (
    Cancel,
    Failure,
    FailureKind,
    Request,
    ToServer,
    sendable,
)
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

_FILE_TIMEOUT = 30.0


class RefusingServer:
    """Handles the connections of a server that refuses everything.

    Args:
        kind: What callers get.
        text: Why.
    """

    def __init__(self, kind: FailureKind, text: str) -> None:
        self._kind = kind
        self._text = sendable(text)

    def connected(self, connection: Connection) -> None:
        """Accept connections of clients only."""
        if connection.role != "client":
            raise ProtocolError(f"nothing is here for a {connection.role}: {self._text}")

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Refuse every request."""
        for message in messages:
            match message:
                case Request(seq):
                    connection.send(Failure(seq, self._kind, self._text))
                case Cancel():
                    pass
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not a message for an actor")

    def disconnected(self, connection: Connection) -> None:
        """Do nothing: no state is kept for a connection."""


async def refuse(
    address: str, name: str, secret: Secret[bytes], max_bytes: int, refusal: RefusingServer
) -> Server:
    """Listen on an actor's address, and refuse its requests.

    Args:
        address: Path of the Unix socket; what a dead actor left there is replaced.
        name: The actor's name.
        secret: The cluster's secret.
        max_bytes: Largest message.
        refusal: What callers get.
    """
    await on_daemon_thread(_FILE_TIMEOUT, partial(Path(address).unlink, missing_ok=True))
    server = Server(refusal, secret, name, 0, max_bytes)
    await server.listen(address)
    return server
