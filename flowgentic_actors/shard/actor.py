"""The memory actor: one shard, its journal, and the writes that it remembers."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.engine.records import Record
from flowgentic_actors.errors import InvalidRequestError, JournalDamagedError
from flowgentic_actors.shard.sessions import Sessions
from flowgentic_actors.storage.journal import Journal


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One journal entry: a write that took effect, and the reply that its caller is due."""

    session: bytes
    seq: int
    low: int
    time_us: int
    reply: bytes
    record: Record


_decode_command = msgspec.msgpack.Decoder(Command).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_encode = msgspec.msgpack.Encoder().encode


class ShardActor:
    """Serves a shard whose every acknowledged write is in its journal.

    Args:
        folder: The shard's private folder; what its journal holds is replayed first.

    Raises:
        JournalError: If the journal cannot be used.
    """

    def __init__(self, folder: str) -> None:
        self._shard = Shard()
        self._sessions = Sessions()
        self._journal = Journal(Path(folder))
        self._uncommitted: list[bytes] = []
        self._now_us = 0
        try:
            self._replayed = self._replay()
        except BaseException:
            self._journal.close()
            raise

    def handle(self, call: Call) -> bytes:
        """Carry out a command; see `Actor.handle`."""
        try:
            command = _decode_command(call.body)
            if not isinstance(command, WRITES):
                return _encode(self._shard.apply(command, self._now_us).reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError(f"not a command: {error}") from error
        remembered = self._sessions.recall(call.session, call.seq)
        if remembered is not None:
            return remembered
        self._now_us = max(self._now_us, time.time_ns() // 1000)  # clocks may be set back
        applied = self._shard.apply(command, self._now_us)
        reply = _encode(applied.reply)
        self._sessions.remember(call.session, call.seq, call.low, reply, self._now_us)
        if applied.record is not None:
            entry = Entry(call.session, call.seq, call.low, self._now_us, reply, applied.record)
            self._uncommitted.append(_encode(entry))
        return reply

    def commit(self) -> None:
        """Append what was written to the journal, in one go."""
        if self._uncommitted:
            entries, self._uncommitted = self._uncommitted, []
            self._journal.append(entries)

    def stats(self) -> dict[str, int]:
        """What the shard holds."""
        return {
            **msgspec.structs.asdict(self._shard.size()),
            "journal_bytes": self._journal.size,
            "replayed_writes": self._replayed,
            "sessions": len(self._sessions),
        }

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _replay(self) -> int:
        count = 0
        for payload in self._journal.replay():
            try:
                entry = _decode_entry(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise JournalDamagedError(
                    f"journal entry {count} passes its checksum and is no entry: {error}. It was "
                    "written by another version of flowgentic_actors"
                ) from error
            self._shard.replay(entry.record)
            self._sessions.remember(entry.session, entry.seq, entry.low, entry.reply, entry.time_us)
            self._now_us = max(self._now_us, entry.time_us)
            count += 1
        return count
