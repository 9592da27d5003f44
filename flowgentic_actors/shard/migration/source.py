"""The source of slot migrations: hands out its journal's entries of the slots.

It remembers nothing about who asks: the position is in the question, so neither its restart nor the
other's costs more than a question that is asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.slots import SlotSet, part_of
from flowgentic_actors.errors import RejectedError
from flowgentic_actors.shard.journaling.entries import (
    LogEntry,
    SessionTable,
    decode_entry,
    encode_entry,
    internal_entry,
)
from flowgentic_actors.shard.peer_protocol import PullSlots, SlotEntries, encode_peer
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker

PIECE: Final = 64 << 10
"""Bytes of journal that are looked through for one answer, about: clients wait meanwhile."""

_HOLD: Final = 30.0  # seconds after a question for which the log stays as it is

logger = logging.getLogger(__name__)


class MigrationSource:
    """Answers the targets of migrations from this shard.

    Args:
        shard: What the journal has made.
        journal: The journal.
        worker: The thread that reads it.
        depth: Leading labels of a namespace that decide its slot.
        stored: Has a commit soon; its future is done when that is.
    """

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        worker: Worker,
        depth: int,
        stored: Callable[[], asyncio.Future[None]],
    ) -> None:
        self._shard = shard
        self._journal = journal
        self._worker = worker
        self._depth = depth
        self._stored = stored
        self._until = 0.0
        self.frozen_for = 0
        """Number of the move for which nothing is answered about its slots any more, 0 for none."""
        self.held_from = 0
        """LSN from which on the journal says nothing more about those."""

    @property
    def holds_log(self) -> bool:
        """Whether compaction has to wait: a target reads the log."""
        return time.monotonic() < self._until

    def on_peer_request(self, question: PullSlots, answer: Callable[[bytes], None]) -> None:
        """Answer a target's request.

        Raises:
            RejectedError: If the log that it needs is not there any more.
        """
        position, log_from = question.position, question.log_from
        end = self._journal.end
        if not position:
            log_from = end
        if position > end or (position and self._journal.compacted_to > log_from):
            raise RejectedError("the journal was compacted meanwhile: begin anew")
        self._until = time.monotonic() + _HOLD
        if position >= end:
            last = self._is_all(question.move, position)
            answer(encode_peer(SlotEntries(position, log_from, [], 0, last)))
            return
        reading = self._worker.submit(self._read, position, SlotSet(question.slots))
        reading.add_done_callback(lambda done: self._answer(done, question.move, log_from, answer))

    def _is_all(self, move: int, position: int) -> bool:
        """Whether no entry of a migration's slots comes after a position."""
        return move == self.frozen_for and position >= self.held_from

    def _read(self, position: int, slots: SlotSet) -> tuple[list[tuple[int, LogEntry]], int]:
        """Read the entries of slots in a piece of the journal, and its end. Blocks."""
        found: list[tuple[int, LogEntry]] = []
        entries, position = self._journal.scan(position, PIECE)
        for lsn, payload in entries:
            entry = decode_entry(payload)
            if isinstance(entry, SessionTable):
                continue
            part = part_of(entry.record, slots.__contains__, self._depth)
            if part is not None:
                found.append((lsn, internal_entry(part, entry.time_us)))
        return found, position

    def _answer(
        self,
        done: asyncio.Future[tuple[list[tuple[int, LogEntry]], int]],
        move: int,
        log_from: int,
        answer: Callable[[bytes], None],
    ) -> None:
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            logger.error("the journal cannot be read for another shard", exc_info=error)
            return  # it asks again, with the same answer, until the host gives the migration up
        entries, position = done.result()
        payloads = []
        for lsn, entry in entries:
            # What was deleted since then is told by the log, which is given as it is.
            remains = entry.record if lsn >= log_from else self._shard.live_part(lsn, entry.record)
            if remains is not None:
                payloads.append(encode_entry(internal_entry(remains, entry.time_us)))
        left = max(0, self._journal.end - position)
        last = self._is_all(move, position)
        given = encode_peer(SlotEntries(position, log_from, payloads, left, last))

        def tell(stored: asyncio.Future[None]) -> None:
            if not stored.cancelled() and stored.exception() is None:
                answer(given)

        # What replaced something has to be there for good, or both copies could be lost if a disk
        # that fails took it back.
        self._stored().add_done_callback(tell)
