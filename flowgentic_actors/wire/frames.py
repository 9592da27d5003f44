"""Frames: framing of messages in a byte stream. No I/O.

A frame is a header (magic, protocol version, counter, length) and a payload. The counter starts
at 0 on each connection and grows by one a frame, so a lost, replayed or reordered frame is seen
at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from flowgentic_actors.errors import LimitExceededError, ProtocolError

MAGIC = b"FGA"
VERSION = 1
HEADER = struct.Struct("!3sBII")  # magic, version, counter, length

FRAME_TARGET = 1 << 20
"""Messages are put into one frame until it holds about this many bytes."""

HEADER_SIZE = HEADER.size
_unpack_header = HEADER.unpack_from
_COUNTER_MASK = 0xFFFF_FFFF


class FrameWriter:
    """Numbers outgoing frames."""

    __slots__ = ("_counter",)

    def __init__(self) -> None:
        self._counter = 0

    def header(self, length: int) -> bytes:
        """The header of the next frame, whose payload is `length` bytes."""
        header = HEADER.pack(MAGIC, VERSION, self._counter, length)
        self._counter = (self._counter + 1) & _COUNTER_MASK
        return header


class FrameReader:
    """Cuts incoming bytes into frames and checks that they are the next ones.

    Args:
        max_bytes: Largest payload accepted; a larger one ends the connection before it is read.
    """

    __slots__ = ("_buffer", "_counter", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._counter = 0
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """The held bytes of an incomplete frame."""
        return len(self._buffer)

    def whole(self, data: bytes) -> memoryview | None:
        """Feed bytes if they are exactly the next frame; its payload, or None if they are not.

        Raises:
            ProtocolError: As `feed`.
            LimitExceededError: As `feed`.
        """
        if self._buffer or len(data) < HEADER_SIZE:
            return None
        if HEADER_SIZE + self._check(data, 0) != len(data):
            return None
        self._counter = (self._counter + 1) & _COUNTER_MASK
        return memoryview(data)[HEADER_SIZE:]

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Feed bytes, and yield the complete payloads.

        Raises:
            ProtocolError: If the bytes are not the next frame of this protocol.
            LimitExceededError: If a frame announces more than `max_bytes`.
        """
        size = len(data)
        if self._buffer or size < HEADER_SIZE:
            self._buffer += data
            yield from self._from_buffer()
            return
        view, start = memoryview(data), 0
        while size - start >= HEADER_SIZE:
            payload = start + HEADER_SIZE
            end = payload + self._check(data, start)
            if end > size:
                break
            self._counter = (self._counter + 1) & _COUNTER_MASK
            yield view[payload:end]
            start = end
        if start < size:
            self._buffer += view[start:]

    def _from_buffer(self) -> Iterator[memoryview]:
        while len(self._buffer) >= HEADER_SIZE:
            end = HEADER_SIZE + self._check(self._buffer, 0)
            if len(self._buffer) < end:
                return
            # Given away whole, without a copy: what follows goes into another buffer.
            whole = self._buffer
            self._buffer = whole[end:]
            self._counter = (self._counter + 1) & _COUNTER_MASK
            yield memoryview(whole)[HEADER_SIZE:end]

    def _check(self, data: bytes | bytearray, start: int) -> int:
        """Check the next header; returns the length of its payload."""
        magic, version, counter, length = _unpack_header(data, start)
        if magic != MAGIC:
            raise ProtocolError("not a frame of this protocol: wrong magic bytes")
        if version != VERSION:
            raise ProtocolError(
                f"the peer speaks protocol version {version}, this process {VERSION}: run the same "
                "version of flowgentic_actors on both sides"
            )
        if counter != self._counter:
            raise ProtocolError(
                f"frame {counter} arrived where frame {self._counter} was due: lost, replayed or "
                "out of order"
            )
        if length > self._max_bytes:
            raise LimitExceededError(
                f"a frame of {length} bytes exceeds the limit of {self._max_bytes} "
                "(setting: max_message_bytes)"
            )
        return int(length)
