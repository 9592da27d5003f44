"""The accepting side: listens, and decides which connections there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import ssl
import sys
from collections import Counter
from operator import attrgetter
from typing import Any, Final

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.file_limits import NO_FILES, is_reserved
from flowgentic_actors.wire.incomplete_frames import IncompleteFrames
from flowgentic_actors.wire.messages import (
    Welcome,
)
from flowgentic_actors.wire.server_connection import Connection, Handler
from flowgentic_actors.wire.sockets import check_path
from flowgentic_actors.wire.unauthenticated import Tally, UnauthenticatedPeers

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 1.0
MAX_CONNECTIONS = 4096
MAX_OF_ONE_PEER = 1024
"""Most connections of one process, or of one other node."""
MAX_HANDSHAKES = 64
"""TLS handshakes at one time, each of which takes some 350 KiB; others wait for theirs."""
IDLE = 60.0
"""Seconds without a message after which a connection gives way to another one, if all are taken."""
_BACKLOG = 512
_FRAMES = 2  # of the largest messages, that all connections together may have under way
_SLICE, _PAUSE = 8, 0.01  # so many connections are accepted, then none for so many seconds
_ACCEPT_AGAIN = 1.0
# From Python 3.13 on event loops remove the file of a Unix socket that they close, with blocking
# calls. Here it stays: callers are refused until the next incarnation replaces it.
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Server:
    """Listens on a Unix socket, on TCP or on both, and owns the connections accepted there.

    Args:
        handler: Who gets the messages.
        secret: What peers must know.
        name: Name told to peers.
        epoch: Incarnation told to peers.
        max_bytes: Largest message, bytes.
    """

    def __init__(
        self, handler: Handler, secret: Secret[bytes], name: str, epoch: int, max_bytes: int
    ) -> None:
        self.handler = handler
        self.secret = secret
        self.max_bytes = max_bytes
        self.welcome = Welcome(name, epoch, os.getpid())
        self.under_way = IncompleteFrames(_FRAMES * max_bytes)
        self._connections: set[Connection] = set()
        self._of_peer: Counter[int | str] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listeners: list[asyncio.Server] = []  # on Unix sockets
        self._tcp: list[socket.socket] = []
        self.handshakes = asyncio.Semaphore(MAX_HANDSHAKES)
        self.tally = Tally(logger)
        self._strangers = UnauthenticatedPeers(secret, self.tally)

    @property
    def connections(self) -> frozenset[Connection]:
        """The open connections."""
        return frozenset(self._connections)

    async def listen(self, path: str) -> None:
        """Listen on a Unix socket."""
        check_path(path)
        # A socket file that a dead predecessor left is replaced by asyncio.
        self._listeners.append(
            await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), path, backlog=_BACKLOG, **_KEEP_FILE
            )
        )

    async def listen_tcp(self, host: str, context: ssl.SSLContext, port: int = 0) -> int:
        """Listen on TCP, for connections with TLS.

        Args:
            host: Name or number of the interface; of several addresses of a name, the first counts.
            context: The certificate and key to show.
            port: Where; 0 for one that the system chooses.

        Returns:
            The port.

        Raises:
            OSError: If there is no such interface, or the port is taken.
        """
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, where = (
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._tcp.append(sock)
        loop.add_reader(sock, self._accept, sock, context)
        return int(sock.getsockname()[1])

    def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        def welcome(sock: socket.socket, origin: str) -> None:
            Connection(self, origin).secure(sock, context)

        pause, strangers = 0.0, 0
        for _ in range(_BACKLOG):
            try:
                sock, (host, port, *_) = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # such as no files being left: others have to close theirs
                self.tally.note(f"no connection can be accepted for a while: {error}")
                pause = _ACCEPT_AGAIN
                break
            if is_reserved(sock.fileno()):
                sock.close()
                self.tally.note(NO_FILES)
                continue
            sock.setblocking(False)
            strangers += not self._strangers.take(sock, host, port, welcome)
            if strangers == _SLICE:
                pause = _PAUSE
                break
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(pause, self._accept_again, listener, context)

    def _accept_again(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        if listener in self._tcp:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener, context)

    def stop_listening(self) -> None:
        """Stop accepting connections; those that are open stay."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for sock in self._tcp:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._tcp.clear()
        self._strangers.close()

    async def close(self) -> None:
        """Stop listening, flush and close every connection, within a timeout."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self._empty.wait()
        for connection in list(self._connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self._empty.wait()
        self.tally.close()

    def admit(self, connection: Connection) -> str | None:
        """Admit one more connection, or return the reason against it; called by the connection."""
        if self._of_peer[connection.peer] >= MAX_OF_ONE_PEER:
            return f"more than {MAX_OF_ONE_PEER} connections of {connection.peer}"
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            return f"more than {MAX_CONNECTIONS} connections"
        self._connections.add(connection)
        self._of_peer[connection.peer] += 1
        self._empty.clear()
        return None

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, if that is long enough."""
        idle = min(self._connections, key=attrgetter("active_at"))
        if asyncio.get_running_loop().time() - idle.active_at < IDLE:
            return False
        idle.give_way(IDLE)
        idle.active_at = math.inf  # it is not chosen again before it is gone
        return True

    def forget(self, connection: Connection) -> bool:
        """Forget a connection; whether it was admitted. Called by the connection."""
        known = connection in self._connections
        self._connections.discard(connection)
        if known:
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]
        if not self._connections:
            self._empty.set()
        return known
