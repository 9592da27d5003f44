"""Requests to a host: decoded, answered within their time, and failed in the protocol's words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.cluster.protocol.host import HostCommand, HostReply
from flowgentic_actors.errors import InvalidRequestError, RejectedError
from flowgentic_actors.wire.messages import Failure, Reply, Request, sendable
from flowgentic_actors.wire.server_connection import Connection

_ANSWER_MARGIN = 0.5  # an answer that says why it is late must not be late itself

MAX_OPEN_REQUESTS: Final = 1024
"""Requests that wait for the host at one time, over all connections."""


_decode = msgspec.msgpack.Decoder(HostCommand).decode
_encode = msgspec.msgpack.Encoder().encode


class RequestServer:
    """Serves the requests of all connections.

    Args:
        answer: Answers a command.
        doing: Describes what a request had to wait for that is late.
    """

    def __init__(
        self,
        answer: Callable[[Connection, HostCommand], Awaitable[HostReply | Raw]],
        doing: Callable[[], str],
    ) -> None:
        self._answer = answer
        self._doing = doing
        self._open_requests = 0

    def accept(self, tasks: TaskGroup, connection: Connection, request: Request) -> None:
        """Answer a request in a task of its own; it is refused where too many are open."""
        if self._open_requests >= MAX_OPEN_REQUESTS:
            text = f"the host has {MAX_OPEN_REQUESTS} requests open already: try again later"
            connection.send(Failure(request.seq, "internal", text))
            return
        self._open_requests += 1
        tasks.start_soon(self._serve, connection, request)

    async def _serve(self, connection: Connection, request: Request) -> None:
        try:
            command = _decode(request.body)
            timeout = request.timeout_ms / 1000
            with anyio.fail_after(max(timeout - _ANSWER_MARGIN, timeout / 2)):
                reply = await self._answer(connection, command)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            text = sendable(f"not a command: {error}")
            connection.send(Failure(request.seq, "invalid", text))
        except InvalidRequestError as error:
            connection.send(Failure(request.seq, "invalid", sendable(str(error))))
        except RejectedError as error:
            connection.send(Failure(request.seq, "internal", sendable(str(error))))
        except TimeoutError:
            text = sendable(self._doing())
            connection.send(Failure(request.seq, "expired", text))
        else:
            connection.send(Reply(request.seq, Raw(_encode(reply))))
        finally:
            self._open_requests -= 1
        connection.flush()
