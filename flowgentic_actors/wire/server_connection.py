"""One accepted connection: a plain asyncio protocol that hands messages to a handler."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, cast

from flowgentic_actors.errors import ProtocolError, WireError
from flowgentic_actors.wire.addresses import CLOSING, keep_alive, limit_unread
from flowgentic_actors.wire.channel import server_channel
from flowgentic_actors.wire.file_limits import NO_FILES, is_reserved
from flowgentic_actors.wire.messages import (
    NO_BODY,
    Hello,
    Reply,
    Role,
    ToClient,
    ToServer,
)
from flowgentic_actors.wire.sockets import check_peer, peer_pid, widen

if TYPE_CHECKING:
    from flowgentic_actors.wire.server import Server

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 5.0
_WRITE_BUFFER: Final = 4 << 20


class Handler(Protocol):
    """The handler of a server's connections. Called on the event loop."""

    def connected(self, connection: Connection) -> None:
        """Handle a new connection: the peer is authenticated and has sent its hello."""

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Handle the messages of one frame.

        Raises:
            ProtocolError: If one has no place here; the connection is ended.
        """

    def disconnected(self, connection: Connection) -> None:
        """Handle the end of a connection that was connected."""


class Connection(asyncio.Protocol):
    """One accepted connection.

    Args:
        server: Who accepted it.
        origin: For TCP, the peer's host and port, as text; "" on a Unix socket.

    Attributes:
        remote: Whether it came over TCP.
        role: What the peer said it is for.
        session: The peer's session id.
        peer: Whose it is: a process, or the host of another node.
        active_at: When it was read from last, or could be again, on the event loop's clock.
        pid: The peer's process, from the operating system where it tells, else what the peer says.
        clogged: Whether the peer does not read what it is sent.
        on_clear: Called when it reads again.
        timed_out: Whether the operating system gave it up, for its peer's machine does not answer.
    """

    def __init__(self, server: Server, origin: str = "") -> None:
        self._server = server
        self._origin = origin
        self._handshake: asyncio.Task[None] | None = None  # of TLS
        self._begun = False
        self._channel = server_channel(server.secret, server.max_bytes)
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._incoming: Iterator[list[ToServer]] | None = None
        self._held: list[bytes] = []  # arrived after reading was paused
        self._pauses = 0
        self._under_way = False  # whether a part of a frame is held
        self.active_at = 0.0
        self.peer: int | str = origin.rpartition(":")[0]
        self._patience: asyncio.TimerHandle | None = None
        self.remote = bool(origin)
        self.greeted = False
        self.role: Role = "client"
        self.session = b""
        self.pid = 0
        self.clogged = False
        self.timed_out = False
        self.on_clear: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        origin = f" at {self._origin}" if self._origin else ""
        return f"<{self.role} connection of pid {self.pid}{origin}>"

    # ------------------------------------------------------------------ towards the peer

    def reply(self, seq: int, body: bytes) -> None:
        """Queue the reply to a request; the caller has to `flush`."""
        self._channel.send(Reply(seq, NO_BODY), body)

    def send(self, message: ToClient) -> None:
        """Queue a message; all messages of one tick leave in one frame."""
        self._channel.send(message)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write the queued messages."""
        self._flushing = False
        transport = self._transport
        if transport is not None and not transport.is_closing() and self._channel.pending:
            for piece in self._channel.take():
                transport.write(piece)

    def pause(self) -> None:
        """Pause reading and decoding until `resume` was called as often."""
        self._pauses += 1
        if self._pauses == 1 and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Undo one `pause`."""
        self._pauses -= 1
        if self._pauses == 0 and self._transport is not None:
            self._transport.resume_reading()
            loop = asyncio.get_running_loop()
            self.active_at = loop.time()
            loop.call_soon(self._pump)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()
        else:
            self.abort()  # there can be nothing to flush

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
        elif self._handshake is not None:
            self._handshake.cancel()

    # ------------------------------------------------------------------ the transport's callbacks

    def secure(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Start TLS on an accepted socket; the callbacks below are those above TLS.

        Not with `start_tls`: uvloop reads from a new transport although that is paused, and what a
        fast peer sent first would be missing from the handshake.
        """
        keep_alive(sock)
        limit_unread(sock)
        if not self._is_admitted():
            sock.close()
            return
        self._handshake = asyncio.get_running_loop().create_task(self._secure(sock, context))
        self._handshake.add_done_callback(lambda _: self._secured(sock))

    async def _secure(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        try:
            async with self._server.handshakes:  # until `_too_slow`
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: self,
                    sock,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                    ssl_shutdown_timeout=CLOSING,
                )
        except BaseException as error:
            # Its frames have TLS's buffers, 256 KiB with asyncio's loop, and the future that has
            # the error: such a ring would stay until the garbage collector looks at everything.
            traceback.clear_frames(error.__traceback__)
            if not isinstance(error, OSError):
                raise
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            self._log_end(ProtocolError(f"no TLS connection came about: {reason}"))

    def _secured(self, sock: socket.socket) -> None:
        # Not at the end of `_secure`, which does not even begin when it is cancelled at once.
        self._handshake = None
        if not self._begun:
            sock.close()
            self.connection_lost(None)  # the transport does not call it before the handshake ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the peer, and start the timeout of its handshake."""
        self._begun = True
        # uvloop's transports are not subclasses of asyncio's, though they are transports
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        if self.remote:
            return
        sock: socket.socket = transport.get_extra_info("socket")
        if is_reserved(sock.fileno()):
            self._server.tally.note(NO_FILES)
            self.abort()
            return
        try:
            check_peer(sock)
            widen(sock)
        except WireError as error:
            self._end(error)
            return
        self.peer = self.pid = peer_pid(sock) or 0
        self._is_admitted()

    def _is_admitted(self) -> bool:
        """Admit the connection if there is room, and close it if no hello comes in time."""
        loop = asyncio.get_running_loop()
        self.active_at = loop.time()
        if (full := self._server.admit(self)) is not None:
            self._end(ProtocolError(full))
            return False
        self._patience = loop.call_later(HANDSHAKE_TIMEOUT, self._too_slow)
        return True

    def data_received(self, data: bytes) -> None:
        """Decode data now, or later when paused."""
        self._held.append(data)
        self.active_at = asyncio.get_running_loop().time()
        if not self._pauses:
            self._pump()

    def pause_writing(self) -> None:
        """Pause a peer that does not read its replies."""
        self.clogged = True
        self.pause()

    def resume_writing(self) -> None:
        """Resume a peer that reads again."""
        self.clogged = False
        self.resume()
        self.on_clear()

    def eof_received(self) -> bool:
        """Log an end of stream in the middle of a frame."""
        if self._channel.buffered:
            logger.warning("%r ended in the middle of a frame", self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that is held for this peer."""
        if exc is not None:
            self.timed_out = isinstance(exc, TimeoutError)
            if self.greeted:
                logger.info("%r is lost: %s", self, exc)
        if self._patience is not None:
            self._patience.cancel()
        self._transport = None
        self._incoming = None
        self._held.clear()
        self._server.under_way.forget(self)
        if self._server.forget(self) and self.greeted:
            self._server.handler.disconnected(self)

    # ------------------------------------------------------------------ decoding

    def _pump(self) -> None:
        """Decode frame by frame until nothing is left or the connection is paused."""
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
        else:
            self._count_under_way()

    def _count_under_way(self) -> None:
        # While it is paused between whole frames, nothing is under way that its peer has to send.
        held = self._channel.buffered if self._incoming is None else 0
        if held:
            self._under_way = True
            self._server.under_way.holds(self, held)
        elif self._under_way:
            self._under_way = False
            self._server.under_way.forget(self)

    @property
    def reading(self) -> bool:
        """Whether the connection reads."""
        return not self._pauses

    def stalled(self, seconds: float) -> None:
        """Close: others wait for the memory that its incomplete frame takes."""
        self._end(ProtocolError(f"a frame that it began did not go on for {seconds:.0f} s"))

    def give_way(self, idle: float) -> None:
        """Close a connection that was idle for some seconds, to make room for another peer."""
        self._end(ProtocolError(f"all connections are taken, and it was idle for {idle:g} s"))

    def _greet(self, messages: list[ToServer]) -> None:
        """Take the hello, the first message, out of a frame."""
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
        self._log_end(error)
        self.abort()

    def _log_end(self, error: WireError) -> None:
        text = f"{self!r} is ended: {error}"
        if self.greeted or not self.remote:
            logger.warning("%s", text)
        else:
            self._server.tally.note(text)
