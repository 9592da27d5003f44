"""The accepting side: plain asyncio protocols that hand messages to a handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, cast

from flowgentic_actors.errors import ProtocolError, WireError
from flowgentic_actors.wire.addresses import CLOSING, keep_alive, limit_unread
from flowgentic_actors.wire.channel import server_channel
from flowgentic_actors.wire.messages import (
    NO_BODY,
    Hello,
    Reply,
    Role,
    ToClient,
    ToServer,
    Welcome,
)
from flowgentic_actors.wire.sockets import check_path, check_peer, peer_pid, widen

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 5.0
FLUSH_TIMEOUT = 1.0
MAX_CONNECTIONS = 4096
_WRITE_BUFFER = 4 << 20
_BACKLOG = 512


class Handler(Protocol):
    """What a server does with its connections. Called on the event loop."""

    def connected(self, connection: Connection) -> None:
        """A peer has proved itself and said hello."""

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """The messages of one frame came in.

        Raises:
            ProtocolError: If one has no place here; the connection is ended.
        """

    def disconnected(self, connection: Connection) -> None:
        """A connection that was connected is gone."""


class Connection(asyncio.Protocol):
    """One accepted connection.

    Args:
        server: Who accepted it.
        context: For TLS, which every connection over TCP begins with; None on a Unix socket.

    Attributes:
        remote: Whether it came over TCP.
        role: What the peer said it is for.
        session: The peer's session id.
        pid: The peer's process, from the operating system where it tells, else what the peer says.
        clogged: Whether the peer does not read what it is sent.
        on_clear: Called when it reads again.
        timed_out: Whether the operating system gave it up, for its peer's machine does not answer.
    """

    def __init__(self, server: Server, context: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._context = context
        self._bare: asyncio.Transport | None = None  # below TLS, until that is agreed upon
        self._ended = self._lost = False
        self._channel = server_channel(server.secret, server.max_bytes)
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._incoming: Iterator[list[ToServer]] | None = None
        self._held: list[bytes] = []  # arrived after reading was paused
        self._pauses = 0
        self._patience: asyncio.TimerHandle | None = None
        self._origin = ""
        self.remote = context is not None
        self.greeted = False
        self.role: Role = "client"
        self.session = b""
        self.pid = 0
        self.clogged = False
        self.timed_out = False
        self.on_clear: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<{self.role} connection of pid {self.pid}{self._origin}>"

    # ------------------------------------------------------------------ towards the peer

    def reply(self, seq: int, body: bytes) -> None:
        """Queue the reply to a request, for the `flush` that whoever replies calls."""
        self._channel.send(Reply(seq, NO_BODY), body)

    def send(self, message: ToClient) -> None:
        """Queue a message; all of one tick leave in one frame."""
        self._channel.send(message)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what is queued."""
        self._flushing = False
        transport = self._transport
        if transport is not None and not transport.is_closing() and self._channel.pending:
            for piece in self._channel.take_joined():
                transport.write(piece)

    def pause(self) -> None:
        """Read and decode nothing more until `resume` was called as often."""
        self._pauses += 1
        if self._pauses == 1 and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Undo one `pause`."""
        self._pauses -= 1
        if self._pauses == 0 and self._transport is not None:
            self._transport.resume_reading()
            asyncio.get_running_loop().call_soon(self._pump)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()
        else:
            self.abort()  # there can be nothing to flush

    def abort(self) -> None:
        """Close at once."""
        transport = self._transport or self._bare
        if transport is not None:
            transport.abort()

    # ------------------------------------------------------------------ the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check who is there and give them a while to prove themselves."""
        # uvloop's transports are not subclasses of asyncio's, though they are transports
        transport = cast("asyncio.Transport", transport)
        sock: socket.socket = transport.get_extra_info("socket")
        if self._context is None:
            self._transport = transport
            transport.set_write_buffer_limits(high=_WRITE_BUFFER)
            try:
                check_peer(sock)
                widen(sock)
            except WireError as error:
                self._end(error)
                return
            self.pid = peer_pid(sock) or 0
        else:
            self._bare = transport
            transport.pause_reading()  # what comes now is for TLS
            host, port, *_ = transport.get_extra_info("peername") or ("?", 0)
            self._origin = f" at {host}:{port}"
        if not self._server.admit(self):
            self._end(ProtocolError(f"more than {MAX_CONNECTIONS} connections"))
            return
        self._patience = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._too_slow)
        if self._context is not None:
            keep_alive(sock)
            limit_unread(sock)
            self._server.spawn(self._secure(transport, self._context))

    async def _secure(self, bare: asyncio.Transport, context: ssl.SSLContext) -> None:
        """Put TLS between the socket and this protocol, or let go of whoever cannot do it."""
        if bare.is_closing():
            return  # TLS would wait for an end that was told already
        secured: asyncio.Transport | None = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                bare,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=CLOSING,
            )
        except OSError as error:
            if not self._ended:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                self._end(ProtocolError(f"no TLS connection came about: {reason}"))
        self._bare = None
        if secured is None or self._lost:
            self.connection_lost(None)  # nobody else tells: so far, this was TLS's connection
            return
        self._transport = secured
        secured.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._pump()  # what came together with the end of TLS's handshake

    def data_received(self, data: bytes) -> None:
        """Decode now, or later when paused."""
        self._held.append(data)
        if not self._pauses:
            self._pump()

    def pause_writing(self) -> None:
        """Take no more requests from a peer that does not read its replies."""
        self.clogged = True
        self.pause()

    def resume_writing(self) -> None:
        """Go on with a peer that reads again."""
        self.clogged = False
        self.resume()
        self.on_clear()

    def eof_received(self) -> bool:
        """Say so when the peer went away in the middle of a frame."""
        if self._channel.truncated:
            logger.warning("%r ended in the middle of a frame", self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything held for this peer."""
        if exc is not None:
            self.timed_out = isinstance(exc, TimeoutError)
            logger.info("%r is lost: %s", self, exc)
        if self._patience is not None:
            self._patience.cancel()
        self._lost = True
        self._transport = None
        self._incoming = None
        self._held.clear()
        if self._server.forget(self) and self.greeted:
            self._server.handler.disconnected(self)

    # ------------------------------------------------------------------ decoding

    def _pump(self) -> None:
        """Decode frame by frame until nothing is left or someone pauses this connection."""
        try:
            while not self._pauses and self._transport is not None:
                if self._incoming is None:
                    if not self._held:
                        break
                    self._incoming = self._channel.receive(self._held.pop(0))
                messages = next(self._incoming, None)
                if messages is None:
                    self._incoming = None
                    if self._channel.pending:
                        self.flush()
                    continue
                if not self.greeted:
                    self._greet(messages)
                if messages:
                    self._server.handler.received(self, messages)
        except WireError as error:
            self._end(error)

    def _greet(self, messages: list[ToServer]) -> None:
        """Take the first message, which says who is there, out of a frame."""
        if not messages:
            return
        message = messages.pop(0)
        if not isinstance(message, Hello):
            raise ProtocolError(f"{type(message).__name__} before hello")
        self.role, self.session = message.role, message.session
        self.pid = self.pid or message.pid
        self.greeted = True
        if self._patience is not None:
            self._patience.cancel()
        self.send(self._server.welcome)
        self._server.handler.connected(self)

    def _too_slow(self) -> None:
        self._end(ProtocolError(f"no complete handshake within {HANDSHAKE_TIMEOUT} s"))

    def _end(self, error: WireError) -> None:
        self._ended = True
        logger.warning("%r is ended: %s", self, error)
        self.abort()


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
        self, handler: Handler, secret: bytes, name: str, epoch: int, max_bytes: int
    ) -> None:
        self.handler = handler
        self.secret = secret
        self.max_bytes = max_bytes
        self.welcome = Welcome(name, epoch, os.getpid())
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listeners: list[asyncio.Server] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> frozenset[Connection]:
        """The connections that are open now."""
        return frozenset(self._connections)

    async def listen(self, path: str) -> None:
        """Begin to accept connections on a Unix socket."""
        check_path(path)
        # A socket file that a dead predecessor left is replaced by asyncio.
        self._listeners.append(
            await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), path, backlog=_BACKLOG
            )
        )

    async def listen_tcp(self, host: str, context: ssl.SSLContext, port: int = 0) -> int:
        """Begin to accept connections over TCP, which begin with TLS.

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
            listener = await loop.create_server(
                lambda: Connection(self, context), sock=sock, backlog=_BACKLOG
            )
        except BaseException:
            sock.close()
            raise
        self._listeners.append(listener)
        return int(sock.getsockname()[1])

    def stop_listening(self) -> None:
        """Accept no more connections; those that are open stay."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Stop listening, flush and close every connection; cut off what is not read in time."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self._empty.wait()
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        if self._handshakes:
            await asyncio.wait(self._handshakes, timeout=FLUSH_TIMEOUT)

    def spawn(self, handshake: Coroutine[Any, Any, None]) -> None:
        """Run a connection's TLS handshake; called by the connection itself."""
        task = asyncio.get_running_loop().create_task(handshake)
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for one more connection; called by the connection itself."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        self._empty.clear()
        return True

    def forget(self, connection: Connection) -> bool:
        """Whether the connection was admitted; called by the connection itself."""
        known = connection in self._connections
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
        return known
