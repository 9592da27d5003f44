"""Group commit: one append and one sync for all who wait, on a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.log import SyncPlan
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD

W = TypeVar("W")


class GroupCommit(ABC, Generic[W]):
    """Commits to a journal on a daemon thread, in rounds: each for all who asked during the last.

    A round that failed is final: nothing is committed any more.

    Args:
        journal: What to commit to.
        durable: Whether a round ends with a sync.
    """

    def __init__(self, journal: Journal, *, durable: bool) -> None:
        self._journal = journal
        self._durable = durable
        self._synced = journal.end
        # A plain lock is let go of whatever interrupts the caller; a condition's may be left held.
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._payloads: list[bytes | memoryview] = []  # for the next round, as are these
        self._payload_bytes = 0
        self._plan: SyncPlan | None = None
        self._waiters: list[W] = []
        self._under_way = False
        self._under_way_bytes = 0
        self._refused: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal-commit", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of entries that are not committed yet, overhead included."""
        return self._payload_bytes + self._under_way_bytes

    @property
    def behind(self) -> bool:
        """Whether a caller waits for a round."""
        return self._under_way or bool(self._waiters)

    def close(self, timeout: float) -> bool:
        """Commit what is pending and end the thread; False when it did not end in time."""
        self._closed = True
        self._wake.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @abstractmethod
    def _settle(self, waiters: list[W], error: Exception | None) -> None:
        """Tell a round's waiters what became of it; after an error, `_refuse` all others.

        Called on the thread.
        """

    def _committed(self, payloads: Sequence[bytes | memoryview]) -> None:
        """Note that entries are in the journal; called on the thread."""

    def _add(
        self, waiter: W, payloads: Sequence[bytes | memoryview], plan: SyncPlan | None = None
    ) -> bool:
        """Have the next round commit, and settle a waiter.

        Args:
            waiter: Who waits.
            payloads: Entries that the thread appends.
            plan: The sync of entries that the caller has appended.

        Returns:
            False when there is nothing to wait for, or no round to come.
        """
        with self._lock:
            waits = self._refused is None and bool(
                payloads or plan or self._under_way or self._waiters
            )
            if waits:
                if payloads:
                    self._payloads += payloads
                    self._payload_bytes += entries_size(payloads)  # exact again with the next round
                if plan is not None:
                    before = self._plan.segments if self._plan is not None else ()
                    self._plan = SyncPlan(
                        plan.position, tuple(dict.fromkeys((*before, *plan.segments)))
                    )
                self._waiters.append(waiter)
        if waits:
            self._wake.put(None)
        return waits

    def _refuse(self, error: Exception) -> list[W]:
        """Begin no round any more; returns those who waited for the next one."""
        with self._lock:
            self._refused = self._refused or error
            waiters, self._waiters = self._waiters, []
            self._payloads, self._payload_bytes, self._plan = [], 0, None
        return waiters

    def _run(self) -> None:
        while True:
            self._wake.get()
            with self._lock:
                payloads, self._payloads = self._payloads, []
                waiters, self._waiters = self._waiters, []
                plan, self._plan = self._plan, None
                self._under_way = bool(payloads or waiters)
                self._under_way_bytes, self._payload_bytes = entries_size(payloads), 0
            if not self._under_way:
                if self._closed:
                    return
                continue
            error: Exception | None = None
            try:
                self._commit(payloads, plan)
            except Exception as failure:  # noqa: BLE001 - a defect, too: no caller may wait for ever
                error = failure
            with self._lock:
                self._under_way = False
                self._under_way_bytes = 0
            self._settle(waiters, error)

    def _commit(self, payloads: list[bytes | memoryview], plan: SyncPlan | None) -> None:
        if payloads:
            self._journal.append(payloads)
        if self._durable and (payloads or plan):
            whole = plan or self._journal.plan_sync()
            try:
                self._journal.sync(whole)
            except OSError as error:
                if plan is None:  # there is no other writer: what failed can go at once
                    self._journal.give_up(self._synced, error)
                raise
            self._synced = whole.position
        elif payloads:
            self._synced = self._journal.end
        if payloads:
            self._committed(payloads)


def entries_size(payloads: Sequence[bytes | memoryview]) -> int:
    """The bytes that entries take in a journal."""
    return sum([len(payload) + ENTRY_OVERHEAD for payload in payloads])
