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
from flowgentic_actors.wire.frames import FRAME_TARGET, HEADER_SIZE, FrameReader, FrameWriter
from flowgentic_actors.wire.handshake import ClientHandshake, ServerHandshake
from flowgentic_actors.wire.messages import MAX_MESSAGES, ToClient, ToServer

In = TypeVar("In")
Out = TypeVar("Out")

_ARRAY = struct.Struct("!BI")  # msgpack array of 32-bit length
_ARRAY_TAG = 0xDD
_HEAD = bytes(HEADER_SIZE + _ARRAY.size)  # written when the frame is closed
_FULL = FRAME_TARGET + len(_HEAD)

_LARGE = 64 << 10  # bytes of a body from which on a system call costs less than a copy

_few = msgspec.Meta(max_length=MAX_MESSAGES)
_to_server = msgspec.msgpack.Decoder(Annotated[list[ToServer], _few])
_to_client = msgspec.msgpack.Decoder(Annotated[list[ToClient], _few])
_encode_into = msgspec.msgpack.Encoder().encode_into


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
        self._frame = bytearray(_HEAD)  # being collected
        self._count = 0  # of its messages
        self._whole: list[bytes | bytearray] = []  # frames that are full
        self._raw: list[bytes | bytearray] = []
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
        """Feed bytes, and give the messages of each complete frame.

        Raises:
            WireError: If the bytes are not acceptable; the connection must be ended.
        """
        if self._handshake.done and (payload := self._reader.whole(data)) is not None:
            return iter((self._decode(payload),))
        return self._receive(data)

    def _receive(self, data: bytes) -> Iterator[list[In]]:
        if not self._handshake.done:
            answer, data = self._handshake.feed(data)
            if answer:
                self._raw.append(answer)
            if not data:
                return
        for payload in self._reader.feed(data):
            yield self._decode(payload)

    def _decode(self, payload: memoryview) -> list[In]:
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a frame does not hold messages: {error}") from error

    def send(self, message: Out, body: bytes = b"") -> int:
        """Collect a message for the next `take`.

        Args:
            message: The message.
            body: Its last field, encoded, where that is `NO_BODY`: so it is not copied once more.

        Returns:
            Its size in bytes.
        """
        frame = self._frame
        before = len(frame)
        _encode_into(message, frame, -1)
        size = len(frame) - before + len(body)
        if self._count and (before + size > _FULL or self._count == MAX_MESSAGES):
            alone = frame[before:]
            del frame[before:]
            self._close_frame(b"")
            frame = self._frame
            frame += alone
        self._count += 1
        if len(body) < _LARGE:
            frame += body
        else:
            self._close_frame(body)
        return size

    @property
    def pending(self) -> bool:
        """Whether `take` would return anything."""
        if self._raw:
            return True
        return self._handshake.done and (self._count > 0 or bool(self._whole))

    def take(self) -> list[bytes | bytearray]:
        """Take the bytes to write now; messages wait until the handshake is done."""
        if self._handshake.done:
            if self._count:
                self._close_frame(b"")
            self._raw += self._whole
            self._whole = []
        pieces, self._raw = self._raw, []
        return pieces

    def _close_frame(self, body: bytes) -> None:
        """Complete the collected frame.

        Args:
            body: The end of its last message, so large that it is not copied; empty for none.
        """
        frame, self._frame = self._frame, bytearray(_HEAD)
        frame[:HEADER_SIZE] = self._writer.header(len(frame) - HEADER_SIZE + len(body))
        _ARRAY.pack_into(frame, HEADER_SIZE, _ARRAY_TAG, self._count)
        self._count = 0
        self._whole.append(frame)
        if body:
            self._whole.append(body)


ClientChannel = Channel[ToClient, ToServer]
ServerChannel = Channel[ToServer, ToClient]


def client_channel(secret: Secret[bytes], max_bytes: int) -> ClientChannel:
    """Make the channel of the dialling side."""
    return Channel(ClientHandshake(secret), _to_client, max_bytes)


def server_channel(secret: Secret[bytes], max_bytes: int) -> ServerChannel:
    """Make the channel of the accepting side."""
    return Channel(ServerHandshake(secret), _to_server, max_bytes)
