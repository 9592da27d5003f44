"""Group commit for event loops: one append and one sync for all waiting writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flowgentic_actors.errors import JournalError
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.log import SyncPlan

logger = logging.getLogger(__name__)


class _Round(NamedTuple):
    payloads: list[bytes | memoryview]
    plan: SyncPlan | None


class LoopGroupCommit:
    """Commits to a journal on a daemon thread, one round at a time.

    A call during a round waits for the next one, together with all others that
    asked meanwhile. A round that failed is final: all calls get its error, now and later.

    Args:
        journal: What to commit to.
        durable: Whether a round ends with a sync.
        appends: Whether the thread appends as well, for journals on file systems where that takes
            time; nothing else appends then. Otherwise the event loop appends, before it asks.
    """

    def __init__(self, journal: Journal, *, durable: bool, appends: bool) -> None:
        self._journal = journal
        self._durable = durable
        self._appends = appends
        self._loop = asyncio.get_running_loop()
        self._rounds: queue.SimpleQueue[_Round | None] = queue.SimpleQueue()
        self._payloads: list[bytes | memoryview] = []  # for the next round
        self._waiting: list[asyncio.Future[None]] = []
        self._under_way: list[asyncio.Future[None]] | None = None
        self._synced = 0
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="journal-sync", daemon=True).start()

    def wait(self, payloads: Sequence[bytes | memoryview] = ()) -> asyncio.Future[None]:
        """A future that is done when everything before it is committed.

        Args:
            payloads: Entries to append first, when the thread appends.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        if self._error is not None:
            future.set_exception(self._error)
            return future
        self._payloads.extend(payloads)
        self._waiting.append(future)
        if self._under_way is None:
            self._begin()
        return future

    @property
    def behind(self) -> bool:
        """Whether a caller waits for a round."""
        return self._under_way is not None or bool(self._waiting)

    def close(self) -> None:
        """End the thread."""
        self._rounds.put(None)

    def _begin(self) -> None:
        self._under_way, self._waiting = self._waiting, []
        payloads, self._payloads = self._payloads, []
        self._rounds.put(_Round(payloads, None if self._appends else self._journal.plan_sync()))

    def _run(self) -> None:
        while (work := self._rounds.get()) is not None:
            outcome: Callable[[], None]
            try:
                position = self._commit(work)
            except (OSError, JournalError) as error:
                outcome = self._failed_with(error)
            else:
                outcome = self._committed_to(position)
            with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiters
                self._loop.call_soon_threadsafe(outcome)

    def _commit(self, work: _Round) -> int:
        if work.payloads:
            self._journal.append(work.payloads)
        if not self._durable:
            return self._journal.end
        plan = work.plan or self._journal.plan_sync()
        try:
            self._journal.sync(plan)
        except OSError as error:
            if self._appends:  # there is no other writer: what failed can go at once
                self._journal.give_up(self._synced, error)
            raise
        return plan.position

    def _committed_to(self, position: int) -> Callable[[], None]:
        def settle() -> None:
            self._synced = position
            settled, self._under_way = self._under_way or [], None
            for future in settled:
                if not future.done():
                    future.set_result(None)
            if self._waiting:
                self._begin()

        return settle

    def _failed_with(self, error: OSError | JournalError) -> Callable[[], None]:
        def settle() -> None:
            final: Exception = error
            if isinstance(error, OSError):
                try:
                    self._journal.give_up(self._synced, error)
                except (OSError, JournalError) as told:
                    final = told
            self._error = final
            for future in [*(self._under_way or []), *self._waiting]:
                if not future.done():
                    future.set_exception(final)

        return settle
