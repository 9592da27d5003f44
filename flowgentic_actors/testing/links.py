"""Faulty connections: a relay in front of a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Literal

from flowgentic_actors.actors.daemon_threads import on_daemon_thread

Cut = Literal["both", "late", "half"]
"""`both`: the connection breaks in the middle of a frame. `late`: so it seems to the client, and
what it had sent still arrives, later. `half`: nothing arrives at the client any more, and nobody
is told for a while."""

_CHUNK = 1 << 16
_FILE_WAIT = 10.0


class FaultyLink:
    """Relays connections to a Unix socket, and disturbs them when told to.

    Args:
        path: Where to listen.
        target: The socket behind.
        seed: Decides the jitter of delays.
    """

    def __init__(self, path: Path, target: str, seed: str) -> None:
        self.path = path
        self._target = target
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._server: asyncio.Server | None = None
        self._relays: set[_Relay] = set()
        self.delay = 0.0

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accepted, self.path)

    async def close(self) -> None:
        """Close all connections, and stop listening."""
        if self._server is not None:
            self._server.close()
        tasks = [task for relay in self._relays for task in relay.tasks]
        for relay in list(self._relays):
            relay.break_off()
        if tasks:
            await asyncio.wait(tasks)
        await on_daemon_thread(_FILE_WAIT, self.path.unlink, missing_ok=True)

    @property
    def connections(self) -> int:
        """The number of connections that are relayed now."""
        return len(self._relays)

    def cut(self, how: Cut, after: int, hold: float) -> None:
        """Break all current connections.

        Args:
            how: In which way.
            after: Bytes that still get through, in each direction.
            hold: Seconds: of what arrives `late`, of the silence of `half`.
        """
        for relay in self._relays:
            relay.cut(how, after, hold)

    def pause_time(self) -> float:
        """The delay of a chunk."""
        return self.delay * self._rng.uniform(0.2, 1.0) if self.delay else 0.0

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()  # the actor is down: so is its socket
            return
        relay = _Relay(self, (reader, writer), behind)
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)


class _Relay:
    """One relayed connection: both of its sockets."""

    def __init__(
        self,
        link: FaultyLink,
        front: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        behind: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._link = link
        self._front, self._behind = front, behind
        self._how: Cut | None = None
        self._left = 0
        self._hold = 0.0
        self._late = False
        self.tasks: list[asyncio.Task[None]] = []

    def cut(self, how: Cut, after: int, hold: float) -> None:
        self._how, self._left, self._hold = how, after, hold

    def break_off(self) -> None:
        for _, writer in (self._front, self._behind):
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()

    async def run(self) -> None:
        """Relay until one side ends."""
        there = asyncio.create_task(self._pump(self._front[0], self._behind[1], to_actor=True))
        back = asyncio.create_task(self._pump(self._behind[0], self._front[1], to_actor=False))
        self.tasks = [there, back]
        try:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._late:
                await asyncio.wait([there])
        finally:
            self.break_off()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_actor: bool
    ) -> None:
        with contextlib.suppress(OSError):  # one side is gone: so is the relay
            while data := await reader.read(_CHUNK):
                if pause := self._link.pause_time():
                    await asyncio.sleep(pause)
                if self._how is not None and len(data) >= self._left:
                    await self._spoil(data, writer, to_actor=to_actor)
                    return
                self._left -= len(data)
                writer.write(data)
                await writer.drain()

    async def _spoil(self, data: bytes, writer: asyncio.StreamWriter, *, to_actor: bool) -> None:
        if self._how == "half":
            await asyncio.sleep(self._hold)  # reads nothing more: buffers fill, no side is told
        elif self._how == "both":
            writer.write(data[: self._left])
        elif to_actor:
            # Whole, so that the actor understands it: requests that were long on their way.
            self._late = True
            self._front[1].transport.abort()
            await asyncio.sleep(self._hold)
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(self._hold)
