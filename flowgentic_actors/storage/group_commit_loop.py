"""Group commit for the writes of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from flowgentic_actors.errors import JournalError
from flowgentic_actors.storage.group_commit import GroupCommit
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.log import SyncPlan


class LoopGroupCommit(GroupCommit[asyncio.Future[None]]):
    """Commits for all that an event loop wrote; see `GroupCommit`.

    Args:
        journal: What to commit to.
        durable: Whether a round ends with a sync.
        appends: Whether the thread appends as well, for journals on file systems where that takes
            time; nothing else appends then. Otherwise the event loop appends, before it asks.
    """

    def __init__(self, journal: Journal, *, durable: bool, appends: bool) -> None:
        super().__init__(journal, durable=durable)
        self._appends = appends
        self._error: Exception | None = None

    def commit(self, payloads: Sequence[bytes | memoryview] = ()) -> asyncio.Future[None]:
        """A future that is done when all entries before it are committed.

        Args:
            payloads: Entries to append first, when the thread appends.
        """
        return self._wait(payloads, None if self._appends else self._journal.plan_sync())

    def pending(self) -> asyncio.Future[None] | None:
        """A future that is done when the commits under way are; None without any."""
        return self._wait((), None) if self.behind else None

    def _wait(
        self, payloads: Sequence[bytes | memoryview], plan: SyncPlan | None
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._add(future, payloads, plan):
            self._settle_here([future], self._refused)
        return future

    def _settle(self, waiters: list[asyncio.Future[None]], error: Exception | None) -> None:
        loop = waiters[0].get_loop()
        if error is not None:
            waiters += self._refuse(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiters
            loop.call_soon_threadsafe(self._settle_here, waiters, error)

    def _settle_here(self, waiters: list[asyncio.Future[None]], error: Exception | None) -> None:
        if error is not None and self._error is None:
            self._error = self._give_up(error)
        for future in waiters:
            if future.done():
                continue
            if self._error is not None:
                future.set_exception(self._error)
            else:
                future.set_result(None)

    def _give_up(self, error: Exception) -> Exception:
        """Cut off what failed; here, where nothing is appended meanwhile."""
        if isinstance(error, OSError):
            try:
                self._journal.give_up(self._synced, error)
            except (OSError, JournalError) as told:
                return told
        return error
