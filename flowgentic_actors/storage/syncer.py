"""Group commit: one sync of the medium for everybody who waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.log import SyncPlan

logger = logging.getLogger(__name__)


class Syncer:
    """Syncs a journal on a daemon thread, one sync at a time.

    Whoever asks while a sync is under way waits for the next one, together with all others who
    asked meanwhile. A sync that failed is final: everybody gets its error, now and later.

    Args:
        journal: What to sync.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._plans: queue.SimpleQueue[SyncPlan | None] = queue.SimpleQueue()
        self._waiting: list[asyncio.Future[None]] = []  # for the next sync
        self._under_way: list[asyncio.Future[None]] | None = None
        self._synced = 0
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="journal-sync", daemon=True).start()

    def wait(self) -> asyncio.Future[None]:
        """A future that is done when everything appended so far is on the medium."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._error is not None:
            future.set_exception(self._error)
            return future
        self._waiting.append(future)
        if self._under_way is None:
            self._begin()
        return future

    @property
    def behind(self) -> bool:
        """Whether anybody waits for a sync."""
        return self._under_way is not None or bool(self._waiting)

    def close(self) -> None:
        """End the thread."""
        self._plans.put(None)

    def _begin(self) -> None:
        self._under_way, self._waiting = self._waiting, []
        self._plans.put(self._journal.plan_sync())

    def _run(self) -> None:
        while (plan := self._plans.get()) is not None:
            outcome: Callable[[], None]
            try:
                self._journal.sync(plan)
            except OSError as error:
                outcome = self._failed_with(error)
            else:
                outcome = self._synced_to(plan.position)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(outcome)
            with contextlib.suppress(OSError):  # then it is made, or fails, when it is needed
                self._journal.prepare()

    def _synced_to(self, position: int) -> Callable[[], None]:
        def settle() -> None:
            self._synced = position
            settled, self._under_way = self._under_way or [], None
            for future in settled:
                if not future.done():
                    future.set_result(None)
            if self._waiting:
                self._begin()

        return settle

    def _failed_with(self, error: OSError) -> Callable[[], None]:
        def settle() -> None:
            try:
                self._journal.give_up(self._synced, error)
            except Exception as final:  # noqa: BLE001 - handed to everybody who waits
                self._error = final
            for future in [*(self._under_way or []), *self._waiting]:
                if not future.done() and self._error is not None:
                    future.set_exception(self._error)

        return settle
