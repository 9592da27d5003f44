"""References to actors, by which requests are sent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from msgspec import Raw

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import Destination, describe_address
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.blocking_connection import BlockingCall, BlockingPool
from flowgentic_actors.wire.sockets import let_go_after_fork

_parents_connections: list[AsyncConnection] = []
"""In a forked child: kept so that they are not collected, which would warn of open transports."""


class ActorRef:
    """Sends requests to one actor, from any event loop and any thread of any process.

    Connections are made when needed: one for each event loop, and a bounded pool for blocking
    calls. They belong to this process; a forked child makes its own.

    Args:
        name: The actor's name, for messages.
        address: Where it is.
        secret: The cluster's secret.
        max_bytes: Largest message, bytes.
        pool: Blocking connections that may be open at once.
        exactly: Whether to refuse a peer whose name differs.
        stay_awake: Seconds for which a caller does not sleep while it waits for an answer.
    """

    _lock: threading.Lock
    _connections: dict[asyncio.AbstractEventLoop, AsyncConnection]

    def __init__(
        self,
        name: str,
        address: Destination,
        secret: Secret[bytes],
        max_bytes: int,
        pool: int,
        *,
        exactly: bool = False,
        stay_awake: float = 0.0,
    ) -> None:
        self.name = name
        self.address = address
        self._secret = secret
        self._max_bytes = max_bytes
        self._expects = name if exactly else None
        self._stay_awake = stay_awake
        self._blocking = BlockingPool(
            address, secret, name, max_bytes, pool, name=self._expects, stay_awake=stay_awake
        )
        self._begin()
        let_go_after_fork(self)

    def __repr__(self) -> str:
        return f"<ActorRef {self.name} at {describe_address(self.address)}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an ActorRef holds live connections: send memory.handle and attach instead")

    def ask(self, body: bytes, timeout: float) -> Coroutine[Any, Any, Raw]:
        """Send a request from this event loop; see `AsyncConnection.request`."""
        return self.connection().request(body, timeout)

    def connection(self) -> AsyncConnection:
        """This event loop's connection, made at the first request."""
        return self._connections.get(asyncio.get_running_loop()) or self._connect()

    def is_connected_here(self) -> bool:
        """Whether this event loop has a connection, and may wait for an answer."""
        return asyncio.get_running_loop() in self._connections

    def ask_sync(self, body: bytes, timeout: float) -> Raw:
        """Send a request and block this thread, which may be an event loop's own."""
        return self._blocking.request(body, timeout)

    def begin_sync(self, body: bytes, timeout: float) -> BlockingCall:
        """Send a request whose answer this thread waits for later."""
        return self._blocking.begin(body, timeout)

    async def close(self) -> None:
        """Close every connection of this process."""
        self._blocking.close()
        with self._lock:
            connections, self._connections = self._connections, {}
        here = asyncio.get_running_loop()
        for loop, connection in connections.items():
            if loop is here:
                await connection.close()
            elif not loop.is_closed():
                with contextlib.suppress(RuntimeError):  # that loop was closed just now
                    loop.call_soon_threadsafe(connection.abandon)

    def move(self, address: Destination) -> None:
        """Switch to the actor's new address. Callable from any thread.

        What is unfinished is sent there again, under the same numbers.
        """
        with self._lock:
            if address == self.address:
                return
            self.address = address
            connections = list(self._connections.items())
        self._blocking.move(address)
        here = _running_loop()
        for loop, connection in connections:
            if loop is here:
                connection.move(address)
            elif not loop.is_closed():
                with contextlib.suppress(RuntimeError):  # that loop was closed just now
                    loop.call_soon_threadsafe(connection.move, address)

    def close_blocking(self) -> None:
        """Close the connections of blocking calls, for a reference that has no others."""
        self._blocking.close()

    def after_fork(self) -> None:
        """Drop the parent's connections in a forked child."""
        _parents_connections.extend(self._connections.values())
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._connections = {}

    def _connect(self) -> AsyncConnection:
        with self._lock:
            for dead in [other for other in self._connections if other.is_closed()]:
                del self._connections[dead]
            connection = AsyncConnection(
                self.address,
                self._secret,
                self.name,
                self._max_bytes,
                name=self._expects,
                stay_awake=self._stay_awake,
            )
            self._connections[asyncio.get_running_loop()] = connection
        return connection


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
