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

encode_entry_into = _encoder.encode_into
"""Encode a `JournalEntry` into a buffer, from an offset on."""


def internal_entry(record: Record, time_us: int) -> LogEntry:
    """The entry of a record that the shard decided by itself, without a caller or reply."""
    return LogEntry(NO_SESSION, 0, 0, time_us, b"", record)


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
