"""A client that sends what it is told, be it against the protocol."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from flowgentic_actors.wire.channel import ClientChannel, client_channel
from flowgentic_actors.wire.messages import Hello, Role, ToClient, ToServer
from flowgentic_actors.wire.server_connection import Connection
from tests.support.counter import PATIENCE, SECRET
from tests.support.wire_peer import LIMIT


class RawClient:
    """A dialling side that sends what it is told, and notes frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.channel: ClientChannel = client_channel(SECRET, LIMIT)
        self.frames: list[list[ToClient]] = []
        self.rest = b""

    async def shake_hands(self) -> None:
        while not self.channel.established:
            self.writer.write(b"".join(self.channel.take()))
            async with asyncio.timeout(PATIENCE):
                data = await self.reader.read(1 << 16)
            assert data
            self.frames += self.channel.receive(data)
        self.writer.write(b"".join(self.channel.take()))

    def send(self, *messages: ToServer) -> None:
        for message in messages:
            self.channel.send(message)
        # In one: `writelines` of Python 3.12 and 3.13 never gets rid of an empty last chunk.
        self.writer.write(b"".join(self.channel.take()))

    def hello(self, role: Role = "client") -> None:
        self.send(Hello(role, bytes(16), os.getpid()))

    async def read(self, messages: int) -> None:
        """Read until so many messages are there."""
        while sum(map(len, self.frames)) < messages:
            async with asyncio.timeout(PATIENCE):
                data = await self.reader.read(1 << 16)
            assert data, "the server hung up"
            self.frames += self.channel.receive(data)

    def pause(self) -> None:
        """Read nothing: what is sent stays in the sockets."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def ended(self) -> bool:
        """Whether the server hangs up, as it must soon."""
        try:
            async with asyncio.timeout(PATIENCE):
                while data := await self.reader.read(1 << 16):
                    if self.channel.established:
                        self.frames += self.channel.receive(data)
        except ConnectionError:
            return True
        return True


@asynccontextmanager
async def raw_client(path: Path) -> AsyncIterator[RawClient]:
    client = RawClient(*await asyncio.open_unix_connection(path))
    try:
        yield client
    finally:
        client.writer.transport.abort()
        await asyncio.sleep(0)


def unsent(connection: Connection) -> int:
    return connection._transport.get_write_buffer_size() if connection._transport else 0
