"""The entries of a shard's journal."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from flowgentic_actors.engine.limits import plain
from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import JournalDamagedError

NO_SESSION: Final = b""
"""The session of entries without a caller, whose reply is never repeated."""


class LogEntry(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """A write that took effect, and the reply for its caller."""

    session: bytes
    seq: int
    low: int
    time_us: int
    reply: bytes
    record: Record


class SessionState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The replies of one session that may still be asked for, by sequence number."""

    session: bytes
    low: int
    used_us: int
    replies: dict[int, bytes]


class SessionTable(msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False):
    """The sessions at the end of a compacted set."""

    time_us: int
    sessions: tuple[SessionState, ...]


JournalEntry: TypeAlias = LogEntry | SessionTable

_decoder: msgspec.msgpack.Decoder[JournalEntry] = msgspec.msgpack.Decoder(JournalEntry)
_encoder = msgspec.msgpack.Encoder(enc_hook=plain)
encode_entry = _encoder.encode
"""Encode a `JournalEntry`."""


def internal_entry(record: Record, time_us: int) -> LogEntry:
    """The entry of a record that the shard decided by itself, without a caller or reply."""
    return LogEntry(NO_SESSION, 0, 0, time_us, b"", record)


class Unwritten:
    """Entries that wait to be appended, encoded into one buffer.

    Each in a piece of its own, they would lie between the values that are kept, and leave holes in
    the process's memory when they go: measured, a quarter of what was stored.
    """

    __slots__ = ("_bytes", "_ends")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends: list[int] = []

    def add(self, entry: LogEntry) -> int:
        """Encode an entry behind the others; returns its size."""
        start = len(self._bytes)
        _encoder.encode_into(entry, self._bytes, start)
        end = len(self._bytes)
        self._ends.append(end)
        return end - start

    def take_back(self) -> None:
        """Remove the last entry."""
        self._ends.pop()
        del self._bytes[self._ends[-1] if self._ends else 0 :]

    def take(self) -> list[memoryview]:
        """Take all entries out."""
        if not self._ends:
            return []
        whole, ends = memoryview(self._bytes), self._ends
        self._bytes, self._ends = bytearray(), []
        starts = [0, *ends[:-1]]
        return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def decode_entry(payload: bytes) -> JournalEntry:
    """Decode an entry made by `encode_entry`.

    Raises:
        JournalDamagedError: If it is no entry of this version.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalDamagedError(
            f"a journal entry passes its checksum and is no entry: {error}. It was written by "
            "another version of flowgentic_actors"
        ) from error
