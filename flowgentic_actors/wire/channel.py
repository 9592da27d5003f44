"""One end of a connection without its I/O: handshake, frames, typed messages.

The asynchronous, the blocking and the accepting side all drive this object, so there is one state
machine to test.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Generic, TypeVar

import msgspec

from flowgentic_actors.errors import ProtocolError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.frames import FRAME_TARGET, FrameReader, FrameWriter
from flowgentic_actors.wire.handshake import ClientHandshake, ServerHandshake
from flowgentic_actors.wire.messages import MAX_MESSAGES, ToClient, ToServer

In = TypeVar("In")
Out = TypeVar("Out")

_ARRAY = struct.Struct("!BI")  # msgpack array of 32-bit length
_ARRAY_TAG = 0xDD

_LARGE = 64 << 10  # bytes from which on another system call costs less than another copy

_few = msgspec.Meta(max_length=MAX_MESSAGES)
_to_server = msgspec.msgpack.Decoder(Annotated[list[ToServer], _few])
_to_client = msgspec.msgpack.Decoder(Annotated[list[ToClient], _few])
_encode = msgspec.msgpack.Encoder().encode


class Channel(Generic[In, Out]):
    """One end of a connection: a handshake, then messages in both directions.

    Outgoing messages are collected by `send` in as few frames as their target size allows, and
    taken as bytes by `take`.
    """

    def __init__(
        self,
        handshake: ClientHandshake | ServerHandshake,
        decoder: msgspec.msgpack.Decoder[list[In]],
        max_bytes: int,
    ) -> None:
        self._handshake = handshake
        self._decoder = decoder
        self._reader = FrameReader(max_bytes + FRAME_TARGET)
        self._writer = FrameWriter()
        self._chunks: list[bytes] = []  # of the frame that is being collected
        self._count = 0
        self._size = 0
        self._any_large = False
        self._whole: list[bytes] = []  # frames that are full
        self._raw: list[bytes] = []
        if isinstance(handshake, ClientHandshake):
            self._raw.append(handshake.greeting)

    @property
    def established(self) -> bool:
        """Whether the peer is authenticated."""
        return self._handshake.done

    @property
    def buffered(self) -> int:
        """The held bytes of an incomplete frame."""
        return self._reader.buffered

    def receive(self, data: bytes) -> Iterator[list[In]]:
        """Feed bytes, and yield the messages of each complete frame.

        Raises:
            WireError: If the bytes are not acceptable; the connection must be ended.
        """
        if not self._handshake.done:
            answer, data = self._handshake.feed(data)
            if answer:
                self._raw.append(answer)
            if not data:
                return
        for payload in self._reader.feed(data):
            try:
                messages = self._decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"a frame does not hold messages: {error}") from error
            yield messages

    def send(self, message: Out, body: bytes = b"") -> int:
        """Collect a message for the next `take`.

        Args:
            message: The message.
            body: Its last field, encoded, where that is `NO_BODY`: so it is not copied once more.

        Returns:
            Its size in bytes.
        """
        encoded = _encode(message)
        size = len(encoded) + len(body)
        total = self._size + size
        if self._count and (total > FRAME_TARGET or self._count == MAX_MESSAGES):
            self._close_frame()
            total = size
        self._chunks += (encoded, body)
        self._count += 1
        self._size = total
        if size >= _LARGE:
            self._any_large = True
        return size

    @property
    def pending(self) -> bool:
        """Whether `take` would return anything."""
        return (self._count > 0 and self._handshake.done) or bool(self._raw)

    def take_joined(self) -> list[bytes]:
        """Take the bytes to write, in as few pieces as possible without copying large ones."""
        if not self._any_large:
            return [b"".join(self.take())]
        chunks = self.take()
        self._any_large = False
        pieces: list[bytes] = []
        small: list[bytes] = []
        for chunk in chunks:
            if len(chunk) < _LARGE:
                small.append(chunk)
            else:
                pieces += (b"".join(small), chunk)
                small = []
        return [*pieces, b"".join(small)] if small else pieces

    def take(self) -> list[bytes]:
        """Take the bytes to write now; messages wait until the handshake is done."""
        chunks, self._raw = self._raw, []
        if not self._handshake.done or not self._count:
            return chunks
        self._close_frame()
        frames, self._whole = self._whole, []
        return chunks + frames if chunks else frames

    def _close_frame(self) -> None:
        """Put the collected messages into a frame."""
        self._whole.append(
            self._writer.header(_ARRAY.size + self._size) + _ARRAY.pack(_ARRAY_TAG, self._count)
        )
        self._whole += self._chunks
        self._chunks = []
        self._count = self._size = 0


ClientChannel = Channel[ToClient, ToServer]
ServerChannel = Channel[ToServer, ToClient]


def client_channel(secret: Secret[bytes], max_bytes: int) -> ClientChannel:
    """Make the channel of the dialling side."""
    return Channel(ClientHandshake(secret), _to_client, max_bytes)


def server_channel(secret: Secret[bytes], max_bytes: int) -> ServerChannel:
    """Make the channel of the accepting side."""
    return Channel(ServerHandshake(secret), _to_server, max_bytes)
