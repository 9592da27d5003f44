"""The memory actor: one shard, its journal, and the writes that it remembers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Literal

import msgspec

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.errors import InvalidRequestError, JournalLockedError
from flowgentic_actors.shard.compactor import Compactor
from flowgentic_actors.shard.entries import Entry, KeptSessions, decode_entry, encode_entry
from flowgentic_actors.shard.sessions import Sessions
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.log import SEGMENT_BYTES
from flowgentic_actors.storage.syncer import Syncer

LOCK_NAME = "journal.lock"

_PER_RECORD = 256  # bytes around a value in the journal, about

_decode_command = msgspec.msgpack.Decoder(Command).decode
_encode = msgspec.msgpack.Encoder().encode


class ShardActor:
    """Serves a shard whose every acknowledged write is in its journal.

    Args:
        folder: The shard's private folder; what its journal holds is replayed first.
        ack: `"node"`: a write is acknowledged when it survives the death of any process.
            `"disk"`: when it survives the loss of power.
        segment_bytes: Size of a journal segment; compaction is considered from this much garbage.

    Raises:
        JournalError: If the journal cannot be used.
    """

    def __init__(
        self,
        folder: str,
        ack: Literal["node", "disk"] = "node",
        segment_bytes: str = str(SEGMENT_BYTES),
    ) -> None:
        path = Path(folder)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(path / LOCK_NAME)
        if not self._lock.acquire():
            raise JournalLockedError(
                f"the journal in {folder} is open in another process; a shard has one actor"
            )
        self._shard = Shard()
        self._sessions = Sessions()
        self._durable = ack == "disk"
        self._syncer: Syncer | None = None
        self._garbage_allowed = int(segment_bytes)
        self._journal = Journal(
            RealDisk(), path, durable=self._durable, segment_bytes=int(segment_bytes)
        )
        self._compactor = Compactor(self._journal, path)
        self._uncommitted: list[bytes] = []
        self._now_us = 0
        try:
            self._replayed = self._replay()
        except BaseException:
            self.close()
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
            self._uncommitted.append(encode_entry(entry))
        return reply

    def commit(self) -> asyncio.Future[None] | None:
        """Append what was written to the journal, in one go; see `Actor.commit`."""
        appended = bool(self._uncommitted)
        if appended:
            entries, self._uncommitted = self._uncommitted, []
            self._journal.append(entries)
            self._consider_compaction()
        if not self._durable:
            return None
        if self._syncer is None:
            self._syncer = Syncer(self._journal)
        # Reads wait as well while a sync is due: they may have seen what is not on the medium yet.
        return self._syncer.wait() if appended or self._syncer.behind else None

    def stats(self) -> dict[str, int]:
        """What the shard holds."""
        return {
            **msgspec.structs.asdict(self._shard.size()),
            "journal_bytes": self._journal.size,
            "compactions": self._compactor.done,
            "replayed_writes": self._replayed,
            "sessions": len(self._sessions),
        }

    def close(self) -> None:
        """Seal and close the journal."""
        self._compactor.close()
        if self._syncer is not None:
            self._syncer.close()
        self._journal.close()
        self._lock.release()

    def _consider_compaction(self) -> None:
        """Compact when more than half of the journal, and more than a segment, is garbage."""
        if self._compactor.running or self._journal.sealed_to <= self._journal.compacted_to:
            return
        size = self._shard.size()
        live = size.blob_bytes + _PER_RECORD * (size.items + size.checkpoints)
        if self._journal.size > 2 * live + self._garbage_allowed:
            self._compactor.start()

    def _replay(self) -> int:
        count = 0
        for payload, compacted in self._journal.replay():
            entry = decode_entry(payload)
            self._now_us = max(self._now_us, entry.time_us)
            if isinstance(entry, KeptSessions):
                self._sessions.restore(entry.sessions)
                continue
            self._shard.replay(entry.record)
            if not compacted:  # the set has its sessions in one piece
                self._sessions.remember(
                    entry.session, entry.seq, entry.low, entry.reply, entry.time_us
                )
            count += 1
        return count
