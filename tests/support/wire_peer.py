"""An accepting side that answers as it is told, and connections to one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from flowgentic_actors.errors import WireError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.channel import ServerChannel, server_channel
from flowgentic_actors.wire.messages import (
    Cancel,
    Hello,
    Reply,
    Request,
    ToClient,
    ToServer,
    Welcome,
)
from tests.support.counter import SECRET, clear

LIMIT = 1 << 20
SOON = 0.2
"""A deadline that is meant to pass."""


class Peer:
    """An accepting side that notes every frame and answers as it is told.

    Attributes:
        frames: The frames that came in, on all connections.
        reading: Cleared: what comes in stays in the sockets.
        answer: Makes what is sent back for the requests of a frame.
    """

    def __init__(self, secret: Secret[bytes] = SECRET) -> None:
        self.frames: list[list[ToServer]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.answer: Callable[[list[Request]], list[ToClient]] = echo
        self._secret = secret
        self._writers: dict[asyncio.StreamWriter, ServerChannel] = {}

    @property
    def hellos(self) -> list[Hello]:
        return [m for frame in self.frames for m in frame if isinstance(m, Hello)]

    @property
    def requests(self) -> list[Request]:
        return [m for frame in self.frames for m in frame if isinstance(m, Request)]

    @property
    def cancelled(self) -> list[int]:
        return [m.seq for frame in self.frames for m in frame if isinstance(m, Cancel)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = server_channel(self._secret, LIMIT)
        self._writers[writer] = channel
        with contextlib.suppress(WireError, OSError):
            while data := await reader.read(1 << 16):
                for messages in channel.receive(data):
                    self.frames.append(messages)
                    if any(isinstance(message, Hello) for message in messages):
                        channel.send(Welcome("peer", 1, os.getpid()))
                    asked = [m for m in messages if isinstance(m, Request)]
                    for message in self.answer(asked):
                        channel.send(message)
                writer.write(b"".join(channel.take()))
                await self.reading.wait()
        writer.close()

    def send(self, messages: list[ToClient]) -> None:
        """Send something late, over the one connection there is."""
        ((writer, channel),) = self._writers.items()
        for message in messages:
            channel.send(message)
        writer.write(b"".join(channel.take()))

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


def echo(requests: list[Request]) -> list[ToClient]:
    return [Reply(request.seq, request.body) for request in requests]


def silence(requests: list[Request]) -> list[ToClient]:
    return []


@asynccontextmanager
async def peer_at(path: Path, secret: Secret[bytes] = SECRET) -> AsyncIterator[Peer]:
    clear(path)
    peer = Peer(secret)
    listener = await asyncio.start_unix_server(peer.serve, path)
    try:
        yield peer
    finally:
        listener.close()
        peer.reading.set()
        peer.hang_up()
        await asyncio.sleep(0.01)  # its tasks see that the connections are gone


@asynccontextmanager
async def connection_to(
    path: Path, secret: Secret[bytes] = SECRET
) -> AsyncIterator[AsyncConnection]:
    connection = AsyncConnection(str(path), secret, "peer", LIMIT)
    try:
        yield connection
    finally:
        await connection.close()


def body(value: object) -> bytes:
    return msgspec.msgpack.encode(value)
