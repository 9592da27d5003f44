"""Group commit for callers on many threads and loops: one append and one sync for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from flowgentic_actors.errors import JournalError, OutcomeUnknownError, StorageError
from flowgentic_actors.storage.journal import Journal

T = TypeVar("T")

REOPEN: Final = "Close this cluster and open it again: what was acknowledged is kept"


Promise: TypeAlias = Future[T] | asyncio.Future[T]
"""What a caller waits for: on an event loop, or blocking a thread."""


class Waiter(NamedTuple, Generic[T]):
    """Somebody who waits for a value.

    Attributes:
        value: What they are told.
        promise: Where they wait for it.
        loop: The event loop that they wait on, None for a thread.
    """

    value: T
    promise: Promise[T]
    loop: asyncio.AbstractEventLoop | None

    def settle(self, error: Exception | None) -> None:
        """Tell them the value, or raise an error where they wait; on their loop, if any."""
        if self.promise.done():
            return  # who does not wait any more changes nothing
        if error is not None:
            self.promise.set_exception(error)
        else:
            self.promise.set_result(self.value)


class GroupCommit(Generic[T]):
    """Commits to a journal on a daemon thread that alone appends to it.

    A commit that failed is final: nothing is committed any more.

    Args:
        journal: What to commit to.
        durable: Whether a commit ends with a sync.
        on_committed: Called on the thread with the payloads that are in the journal now.
        on_failed: Called on the thread with the error of all later calls, before anybody who
            waits is answered.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        durable: bool,
        on_committed: Callable[[list[bytes]], None],
        on_failed: Callable[[StorageError], None],
    ) -> None:
        self._journal = journal
        self._durable = durable
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._synced = journal.end
        self._wake = threading.Condition()
        self._payloads: list[bytes] = []
        self._waiters: list[Waiter[T]] = []
        self._under_way = False
        self._refused: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal-commit", daemon=True)
        self._thread.start()

    def commit(
        self, value: T, payloads: Sequence[bytes], loop: asyncio.AbstractEventLoop | None
    ) -> Promise[T]:
        """A future that gives a value when all that came before, and payloads, are committed.

        Args:
            value: What the caller is told then.
            payloads: Entries to append, none for a read.
            loop: The running event loop that waits, None for a thread that does.

        Raises:
            RequestError: From the future, when it cannot be committed.
        """
        promise: Promise[T] = Future() if loop is None else loop.create_future()
        waiter = Waiter(value, promise, loop)
        with self._wake:
            if self._refused is not None:
                waiter.settle(self._refused)
            elif not (payloads or self._under_way or self._waiters):
                waiter.settle(None)
            else:
                self._payloads += payloads
                self._waiters.append(waiter)
                self._wake.notify()
        return promise

    def refuse(self, error: Exception) -> None:
        """Commit nothing more; whoever waits for a commit that has not begun gets the error."""
        with self._wake:
            self._refused = self._refused or error
            waiters, self._waiters = self._waiters, []
            self._payloads = []
        settle_all(waiters, error)

    def close(self, timeout: float) -> bool:
        """Commit what waits and end the thread; False when it did not end in time."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiters and not self._closed:
                    self._wake.wait()
                if not self._waiters:
                    return
                payloads, self._payloads = self._payloads, []
                waiters, self._waiters = self._waiters, []
                self._under_way = True
            error = self._commit(payloads) if payloads else None
            with self._wake:
                self._under_way = False
            settle_all(waiters, error)

    def _commit(self, payloads: list[bytes]) -> Exception | None:
        """Commit payloads; what their callers are to be told when that failed."""
        error: Exception
        try:
            self._journal.append(payloads)
            if self._durable:
                self._sync()
        except JournalError as failure:
            error = StorageError(f"{failure}. {REOPEN}")
        except OSError as failure:
            error = OutcomeUnknownError(
                f"the journal could not be written, nor the attempt be undone: {failure}. {REOPEN}"
            )
        except Exception as failure:  # noqa: BLE001 - a defect: nobody may wait for ever
            error = OutcomeUnknownError(f"a commit broke: {failure!r}. {REOPEN}")
        else:
            self._on_committed(payloads)
            return None
        final = StorageError(f"the journal could not be written earlier: {error}")
        self._on_failed(final)
        self.refuse(final)
        return error

    def _sync(self) -> None:
        plan = self._journal.plan_sync()
        try:
            self._journal.sync(plan)
        except OSError as error:
            self._journal.give_up(self._synced, error)
        self._synced = plan.position


def settle_all(waiters: Sequence[Waiter[T]], error: Exception | None) -> None:
    """Tell all who wait; each event loop once, since waking it lets it have the interpreter."""
    of_loop: dict[asyncio.AbstractEventLoop, list[Waiter[T]]] = {}
    for waiter in waiters:
        if waiter.loop is None:
            waiter.settle(error)
        else:
            of_loop.setdefault(waiter.loop, []).append(waiter)
    for loop, waiting in of_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_here, waiting, error)


def _settle_here(waiters: Sequence[Waiter[T]], error: Exception | None) -> None:
    for waiter in waiters:
        waiter.settle(error)
