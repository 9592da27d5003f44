"""Group commit for many threads and loops: one append and one sync for all callers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from flowgentic_actors.errors import JournalError, OutcomeUnknownError, StorageError
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD

T = TypeVar("T")

REOPEN: Final = "Close this cluster and open it again: what was acknowledged is kept"


class Blocking(Generic[T]):
    """A result that a thread waits for.

    Made of one lock: a thread that is interrupted while it waits for a `concurrent.futures.Future`
    may leave that locked, and setting its result would block for ever.
    """

    def __init__(self) -> None:
        self._settled = threading.Lock()
        self._settled.acquire()
        self._value: T | None = None
        self._error: Exception | None = None

    def set_result(self, value: T) -> None:
        """Set the result, once."""
        self._value = value
        self._settled.release()

    def set_exception(self, error: Exception) -> None:
        """Set an error in place of the result, once."""
        self._error = error
        self._settled.release()

    def wait(self, timeout: float) -> bool:
        """Wait, once, within a timeout; False when nothing was set by then."""
        return self._settled.acquire(timeout=timeout)

    def result(self) -> T:
        """The result, or the error raised.

        Raises:
            Exception: The error that was set in its place.
        """
        if self._error is not None:
            raise self._error
        return cast("T", self._value)


Promise: TypeAlias = Blocking[T] | asyncio.Future[T]
"""What a caller waits for: on an event loop, or blocking a thread."""


class Waiter(NamedTuple, Generic[T]):
    """A caller that waits for a value.

    Attributes:
        value: The value.
        promise: What it waits on.
        loop: Its event loop, None for a thread.
    """

    value: T
    promise: Promise[T]
    loop: asyncio.AbstractEventLoop | None

    def settle(self, error: Exception | None) -> None:
        """Set the promise to the value, or to an error; called on its loop, if any."""
        if isinstance(self.promise, asyncio.Future) and self.promise.done():
            return  # who does not wait any more changes nothing
        if error is not None:
            self.promise.set_exception(error)
        else:
            self.promise.set_result(self.value)


class ThreadGroupCommit(Generic[T]):
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
        # A plain lock is let go of whatever interrupts the caller; a condition's may be left held.
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._payloads: list[bytes] = []
        self._payload_bytes = 0
        self._waiters: list[Waiter[T]] = []
        self._under_way_bytes = 0
        self._under_way = False
        self._refused: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal-commit", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of entries that are not committed yet, overhead included."""
        return self._payload_bytes + self._under_way_bytes

    def commit(
        self, value: T, payloads: Sequence[bytes], loop: asyncio.AbstractEventLoop | None
    ) -> Promise[T]:
        """Commit payloads; a future that gives a value once they and all before are committed.

        Args:
            value: What the caller is told then.
            payloads: Entries to append, none for a read.
            loop: The running event loop that waits, None for a thread that does.

        Raises:
            RequestError: From the future, when it cannot be committed.
        """
        promise: Promise[T] = Blocking() if loop is None else loop.create_future()
        waiter = Waiter(value, promise, loop)
        with self._lock:
            if self._refused is not None:
                waiter.settle(self._refused)
            elif not (payloads or self._under_way or self._waiters):
                waiter.settle(None)
            else:
                self._payloads += payloads
                self._payload_bytes += _size(payloads)  # exact again with the next commit
                self._waiters.append(waiter)
        self._wake.put(None)
        return promise

    def refuse(self, error: Exception) -> None:
        """Refuse further commits, and fail those that have not begun with an error."""
        with self._lock:
            self._refused = self._refused or error
            waiters, self._waiters = self._waiters, []
            self._payloads = []
            self._payload_bytes = 0
        settle_all(waiters, error)

    def close(self, timeout: float) -> bool:
        """Commit what is pending and end the thread; False when it did not end in time."""
        self._closed = True
        self._wake.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._wake.get()
            with self._lock:
                payloads, self._payloads = self._payloads, []
                waiters, self._waiters = self._waiters, []
                self._under_way = bool(payloads or waiters)
                self._under_way_bytes, self._payload_bytes = _size(payloads), 0
            if not payloads and not waiters:
                if self._closed:
                    return
                continue
            error = self._commit(payloads) if payloads else None
            with self._lock:
                self._under_way = False
                self._under_way_bytes = 0
            settle_all(waiters, error)

    def _commit(self, payloads: list[bytes]) -> Exception | None:
        """Commit payloads; returns the error for their callers, if that failed."""
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


def _size(payloads: Sequence[bytes]) -> int:
    return sum([len(payload) + ENTRY_OVERHEAD for payload in payloads])


def settle_all(waiters: Sequence[Waiter[T]], error: Exception | None) -> None:
    """Settle all waiters; each event loop is woken once, as waking costs a switch."""
    of_loop: dict[asyncio.AbstractEventLoop, list[Waiter[T]]] = {}
    for waiter in waiters:
        if waiter.loop is None:
            waiter.settle(error)
        else:
            of_loop.setdefault(waiter.loop, []).append(waiter)
    for loop, waiting in of_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, with its waiters
            loop.call_soon_threadsafe(_settle_here, waiting, error)


def _settle_here(waiters: Sequence[Waiter[T]], error: Exception | None) -> None:
    for waiter in waiters:
        waiter.settle(error)
