"""One socket of a client: what the event loop's transport calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Final, cast

from flowgentic_actors.errors import WireError
from flowgentic_actors.wire.addresses import unanswered
from flowgentic_actors.wire.channel import ClientChannel
from flowgentic_actors.wire.messages import ToClient, Welcome
from flowgentic_actors.wire.session import check_name

_LOOK: Final = 1.0  # seconds between two looks at whether the peer's node answers
_WRITE_BUFFER: Final = 4 << 20  # bytes in the transport beyond which requests wait unsent


class ClientWire(asyncio.Protocol):
    """One socket's life: the transport's callbacks around a channel.

    Args:
        channel: What is sent, its greeting first, and what decodes.
        sock: The socket.
        name: The name that the peer has to have; None for any.
        on_messages: Called with messages that arrived.
        on_room: Called when requests may be sent again.
        on_end: Called, with the reason, when the socket is closed.

    Attributes:
        congested: Whether the peer reads slower than requests are written.
        ended: Set when the socket is closed.
        welcomed: The peer's welcome, or why there was none.
    """

    def __init__(
        self,
        channel: ClientChannel,
        sock: socket.socket,
        name: str | None,
        *,
        on_messages: Callable[[list[ToClient]], None],
        on_room: Callable[[], None],
        on_end: Callable[[ClientWire, str], None],
    ) -> None:
        self.channel = channel
        self.sock = sock
        self._name = name
        self._on_messages = on_messages
        self._on_room = on_room
        self._on_end = on_end
        self.congested = False
        self.ended = asyncio.Event()
        self.welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._reason: str | None = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        # uvloop's transports are not subclasses of asyncio's, though they are transports
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        try:
            transport.set_write_buffer_limits(high=_WRITE_BUFFER)
            self.write()
            if self.sock.family != socket.AF_UNIX:
                self._look()
        except BaseException:
            transport.abort()
            raise

    def check_made(self, transport: asyncio.BaseTransport) -> None:
        """Make sure that `connection_made` was not interrupted before it began.

        Raises:
            ConnectionAbortedError: If it was; the transport is closed then.
        """
        if self._transport is None:
            cast("asyncio.Transport", transport).abort()
            raise ConnectionAbortedError("the event loop's call of connection_made was interrupted")

    def _look(self) -> None:
        """Check once a second whether the actor's node still answers."""
        if self.sock.fileno() < 0:
            return  # TLS tells of the end a tick after the socket was closed
        if unanswered(self.sock):
            self._reason = "the actor's node does not answer any more"
            self.end()
        else:
            self._watch = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def write(self) -> None:
        """Hand what the channel holds to the transport."""
        if self._transport is not None and self.channel.pending:
            for piece in self.channel.take():
                try:
                    self._transport.write(piece)
                except RuntimeError:  # uvloop's, of a closed transport; asyncio's does nothing
                    if not self.is_closing():
                        raise

    def data_received(self, data: bytes) -> None:
        """Decode messages and hand them on."""
        try:
            for messages in self.channel.receive(data):
                if not self.welcomed.done() and messages:
                    welcome = messages[0]
                    if isinstance(welcome, Welcome):
                        check_name(welcome.name, self._name)
                        self.welcomed.set_result(welcome)
                        del messages[0]
                if messages:
                    self._on_messages(messages)
            if self.channel.pending:
                self.write()
        except WireError as error:
            self._reason = str(error)
            if not self.welcomed.done():
                self.welcomed.set_exception(error)
            self.end()
        except BaseException:
            # A signal's handler raised: what was read is half dealt with. It is asked for again.
            self.end()
            raise

    def pause_writing(self) -> None:
        """Stop sending requests: the actor reads slower than we write."""
        self.congested = True

    def resume_writing(self) -> None:
        """Send the requests that were held back."""
        try:
            self.congested = False
            self._on_room()
        except BaseException:
            self.end()
            raise

    def is_closing(self) -> bool:
        """Whether the connection has ended, or is about to."""
        return self._transport is not None and self._transport.is_closing()

    def end(self) -> None:
        """Close the socket at once."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self.sock.close()

    async def close(self) -> None:
        """Close the socket at once, and wait for that, a second at most."""
        self.end()
        if not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.ended.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection that its socket is closed."""
        try:
            self._tell_end(exc)
        except BaseException:
            asyncio.get_running_loop().call_soon(self._tell_end, exc)
            raise

    def _tell_end(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.ended.set()
        reason = self._reason or str(exc or "the actor closed the connection")
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(reason))
            self.welcomed.exception()  # the caller that dialled may be gone by now
        self._on_end(self, reason)


async def close_with_loop(wire: ClientWire) -> AsyncGenerator[None, None]:
    """A generator that closes the connection when the loop, at its end, closes generators.

    `asyncio.run` does not announce that its loop ends, but it closes every asynchronous generator
    that was left open. So a connection made in it ends with it, and no socket is leaked.
    """
    try:
        yield
    finally:
        await wire.close()
