"""The leader of a replicated shard: hands its journal to a follower, and waits for it.

The follower asks for what comes after its position, which says at the same time what it has. So one
question is under way at a time, and whatever is written meanwhile travels with the next answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from flowgentic_actors.actors.actor import Postponed
from flowgentic_actors.errors import (
    OutcomeUnknownError,
    RejectedError,
    ReplicaUnavailableError,
)
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.peer_protocol import (
    Follow,
    FollowerRequest,
    GetSnapshotChunk,
    LogEntries,
    ResyncRequired,
    SnapshotChunk,
    encode_peer,
)
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.private_files import open_private
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD
from flowgentic_actors.storage.worker import Worker

HOLD: Final = 1.0
"""Seconds after which a follower that waits for entries is answered that there are none."""

PIECE: Final = 256 << 10
"""Bytes of entries in one answer, about: the follower answers nothing else while it takes them."""

SILENCE: Final = 2.0
"""Seconds without a question after which the follower does not count as following."""

_SET_PIECE: Final = 1 << 20
_RECENT: Final = 8 << 20  # bytes of entries kept in memory for a follower that is a little behind
_COPY_SILENCE: Final = 30.0  # a copy without further requests is given up

_ONE_COPY: Final = (
    "it was written on one node, the node of the other copy was lost before it had it, and there "
    "is no other node"
)

logger = logging.getLogger(__name__)


class _Batch(NamedTuple):
    first: int
    payloads: Sequence[bytes | memoryview]
    end: int


class _Waiting(NamedTuple):
    position: int
    future: asyncio.Future[None]


class ReplicationLeader:
    """The leader of one shard, for all its followers.

    Args:
        journal: The shard's journal.
        worker: The thread that reads it.
        waits: Whether what is acknowledged has to be with the follower too.
        on_change: Called when `caught_up` has changed.
    """

    def __init__(
        self, journal: Journal, worker: Worker, *, waits: bool, on_change: Callable[[], None]
    ) -> None:
        self._on_change = on_change
        self._journal = journal
        self._worker = worker
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        self._term = 0
        self._expected = False
        self._alone = True
        self._recent: deque[_Batch] = deque()
        self._recent_bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._parked: tuple[Callable[[bytes], None], int, asyncio.TimerHandle] | None = None
        self._heard = 0.0
        self._copying_until = 0.0
        self._joint_from: int | None = None  # from here on nothing is acknowledged alone
        self._noted = False  # by the host, who promotes no follower of which it has not heard
        self._looking: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None  # that postponed writes wait for
        self.caught_up = False
        """Whether the follower has had everything that was acknowledged, in this term."""
        self.resync_required = False
        """Whether the follower of this term had to start over after that."""
        self.position = 0
        """LSN after the last entry that the follower has."""

    def begin_term(self, assignment: Assignment) -> None:
        """Begin a term with a follower or without one, or go on with it.

        That the follower is in sync may have been under an earlier incarnation of this leader.
        """
        follower, alone = bool(assignment.follower), assignment.allow_single_copy
        if assignment.term != self._term:
            self._term, self.caught_up, self._joint_from = assignment.term, False, None
            self._noted = False
            self.position = 0
            self.resync_required = False
            self._heard = 0.0
            self._unpark()
            if alone or not follower:
                # Otherwise the follower of this term will have it
                self._let_go(alone=alone)
        if assignment.follower_in_sync and not (self.caught_up or self.resync_required):
            self.caught_up, self._joint_from = True, 0
            self._heard = time.monotonic()  # it gets a moment to ask
        self._expected, self._alone = follower, alone
        self._noted = self._noted or assignment.follower_in_sync
        self._settle()
        self._tell_writers()
        if not follower:
            self._recent.clear()
            self._recent_bytes = 0

    @property
    def holds_log(self) -> bool:
        """Whether compaction has to wait: a follower copies the log."""
        return time.monotonic() < self._copying_until

    @property
    def lag(self) -> int:
        """The bytes of entries that the follower does not have yet; 0 without a follower."""
        return max(0, self._journal.end - self.position) if self._expected else 0

    @property
    def follows(self) -> bool:
        """Whether the follower has sent a request recently."""
        return time.monotonic() < self._heard + SILENCE

    # ------------------------------------------------------------------ postponed writes

    @property
    def may_write(self) -> bool:
        """Whether a write could be acknowledged now."""
        if not self._waits:
            return True
        if self.resync_required:
            return False
        return self.follows if self.caught_up else self._alone

    def postpone(self) -> Postponed:
        """Postpone a write while `may_write` is false, until there is a second copy.

        It is not carried out before: reads go on meanwhile, and must not see it.

        Raises:
            ReplicaUnavailableError: If no second copy is to come.
        """
        if not self._expected:
            raise ReplicaUnavailableError(
                "there is no other node for the second copy now, and ack='replica' acknowledges "
                "nothing that is in one copy only (settings: degrade, n_nodes). Nothing was "
                "written. Reads go on"
            )
        if self._writable is None:
            self._writable = self._loop.create_future()
        return Postponed(
            self._writable,
            ReplicaUnavailableError(
                f"there was no second copy until the deadline (setting: request_timeout): "
                f"{self._missing()}. ack='replica' acknowledges nothing that is in one copy only "
                "(setting: degrade). Nothing was written: try again later. Reads go on"
            ),
        )

    def _tell_writers(self) -> None:
        if self._writable is not None and (self.may_write or not self._expected):
            self._writable.set_result(None)
            self._writable = None

    def _missing(self) -> str:
        """The reason why there is no second copy, for messages."""
        if self.resync_required:
            return "it has to be made anew"
        if self.caught_up:
            return "its node does not answer"
        return "it is not complete yet"

    # ------------------------------------------------------------------ writes

    def appended(self, first: int, payloads: Sequence[bytes | memoryview], end: int) -> None:
        """Hand on entries that were appended to the journal."""
        if not self._expected:
            return
        self._recent.append(_Batch(first, payloads, end))
        self._recent_bytes += end - first
        while self._recent_bytes > _RECENT:
            old = self._recent.popleft()
            self._recent_bytes -= old.end - old.first
        if self._parked is not None:
            answer, position, _ = self._parked
            self._unpark(answered=True)
            self._send_from(position, answer)

    def wait(self, position: int, *, wrote: bool) -> asyncio.Future[None] | None:
        """A future for when all before a position may be acknowledged; None if it may already.

        Args:
            position: LSN after the last entry.
            wrote: Whether there is anything new; what only read waits for what it may have seen.
        """
        if not self._waits:
            return None
        if self.position >= position and (self._counts or not wrote):
            return None
        if self._waiting and (not wrote or self._waiting[-1].position == position):
            return self._waiting[-1].future
        if not self.caught_up and (not wrote or not self._alone or self._joint_from is None):
            if self._waiting and not self._alone:
                return self._waiting[-1].future  # what is seen of those is in one copy, for now
            return None  # with one copy only, what is read may be in one copy only
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(_Waiting(position, future))
        if self._looking is None and not self.caught_up:
            self._looking = self._loop.call_later(SILENCE / 4, self._look)
        return future

    @property
    def _counts(self) -> bool:
        """Whether the host counts on the follower's copy, or needs none."""
        return self._noted or self._alone

    def _settle(self) -> None:
        """Resolve the futures of positions that the follower has reached."""
        if not self._counts:
            return
        while self._waiting and self._waiting[0].position <= self.position:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)

    def _look(self) -> None:
        """Stop waiting for a follower that disconnected before catching up."""
        self._looking = None
        if self.caught_up or not self._waiting:
            return
        if self._alone and not self.follows:
            self._joint_from = None
            self._let_go(alone=True)
        else:
            self._looking = self._loop.call_later(SILENCE / 4, self._look)

    def _let_go(self, *, alone: bool) -> None:
        """Resolve or fail all futures: one copy is enough, or the other's state is unknown."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if future.done():
                continue
            if alone:
                future.set_result(None)
            else:
                future.set_exception(OutcomeUnknownError(_ONE_COPY))

    # ------------------------------------------------------------------ questions

    def on_follower_request(
        self, question: FollowerRequest, answer: Callable[[bytes], None]
    ) -> None:
        """Answer a follower's request.

        Raises:
            RejectedError: If it is not the follower of this term.
        """
        if question.term != self._term or not self._expected:
            raise RejectedError(f"no follower of term {question.term} is expected here")
        self._heard = time.monotonic()
        match question:
            case GetSnapshotChunk(_, offset):
                self._copying_until = self._heard + _COPY_SILENCE
                self._copy(offset, answer)
            case Follow(_, position):
                self._follow(position, answer)
        if self._writable is not None:
            self._tell_writers()

    def _follow(self, position: int, answer: Callable[[bytes], None]) -> None:
        end = self._journal.end
        if position > end or position < self._journal.log_from:
            self._send_back(position, answer)
            return
        self.position = position
        if self._joint_from is None and end - position <= _RECENT:
            self._joint_from = end
        if self._joint_from is not None and position >= self._joint_from and not self.caught_up:
            self.caught_up = True
            self._copying_until = 0.0
            self._on_change()
        if self.holds_log:
            self._copying_until = self._heard + _COPY_SILENCE
        self._settle()
        self._unpark()
        if position < end:
            self._send_from(position, answer)
        else:
            timer = self._loop.call_later(HOLD, self._unpark)
            self._parked = (answer, position, timer)

    def _send_from(self, position: int, answer: Callable[[bytes], None]) -> None:
        payloads: list[bytes | memoryview] = []
        size = 0
        lsn = position
        for batch in self._recent:
            if batch.end <= position:
                continue
            if not payloads and batch.first > position:
                break  # it is further behind than what is in memory
            here = batch.first
            for payload in batch.payloads:
                if here >= position and size < PIECE:
                    payloads.append(payload)
                    size += len(payload)
                here += len(payload) + ENTRY_OVERHEAD
            if size >= PIECE:
                break
        if payloads:
            answer(encode_peer(LogEntries(lsn, payloads)))  # type: ignore[arg-type]
            return
        reading = self._worker.submit(self._journal.scan, position, PIECE)
        reading.add_done_callback(lambda done: self._read(position, done, answer))

    def _read(
        self,
        position: int,
        done: asyncio.Future[tuple[list[tuple[int, bytes]], int]],
        answer: Callable[[bytes], None],
    ) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            logger.error("the journal cannot be read for the follower", exc_info=error)
            return  # it asks again, and is told so again; the host hears of its silence
        entries, _ = done.result()
        if entries and entries[0][0] != position:  # it was compacted meanwhile
            self._send_back(position, answer)
            return
        answer(encode_peer(LogEntries(position, [payload for _, payload in entries])))

    def _send_back(self, position: int, answer: Callable[[bytes], None]) -> None:
        """Have a follower resync: at once, or in another term where it counts as in sync.

        Until then it keeps what it has, and nothing is acknowledged without it.
        """
        if self.caught_up:
            if not self.resync_required:
                self.resync_required = True
                self._on_change()
            later = encode_peer(LogEntries(position, []))
            self._loop.call_later(HOLD / 4, answer, later)
            return
        self._joint_from = None
        answer(encode_peer(ResyncRequired()))

    def _unpark(self, *, answered: bool = False) -> None:
        if self._parked is None:
            return
        answer, position, timer = self._parked
        self._parked = None
        timer.cancel()
        if not answered:
            answer(encode_peer(LogEntries(position, [])))

    def _copy(self, offset: int, answer: Callable[[bytes], None]) -> None:
        reading = self._worker.submit(self._read_set, offset)

        def done(result: asyncio.Future[SnapshotChunk]) -> None:
            if result.cancelled():
                return
            if (error := result.exception()) is not None:
                logger.error("the set cannot be read for the follower", exc_info=error)
                return
            answer(encode_peer(result.result()))

        reading.add_done_callback(done)

    def _read_set(self, offset: int) -> SnapshotChunk:
        path = self._journal.newest_set
        if path is None:
            return SnapshotChunk("", 0, b"")
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(offset)
            return SnapshotChunk(path.name, size, file.read(_SET_PIECE))

    def close(self) -> None:
        """Refuse further requests, and fail all that wait."""
        if self._parked is not None:
            self._parked[2].cancel()
            self._parked = None
        if self._looking is not None:
            self._looking.cancel()
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        if self._writable is not None:
            self._writable.cancel()
