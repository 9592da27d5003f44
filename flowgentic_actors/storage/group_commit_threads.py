"""Group commit for many threads and loops: one append and one sync for all callers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from flowgentic_actors.errors import JournalError, OutcomeUnknownError, StorageError
from flowgentic_actors.storage.group_commit import GroupCommit, entries_size
from flowgentic_actors.storage.journal import Journal

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


class ThreadGroupCommit(GroupCommit[Waiter[T]]):
    """Commits for many threads and event loops; it alone appends; see `GroupCommit`.

    Args:
        journal: What to commit to.
        durable: Whether a round ends with a sync.
        on_committed: Called on the thread with the bytes that are in the journal now.
        on_failed: Called on the thread with the error of all later calls, before anybody who
            waits is answered.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        durable: bool,
        on_committed: Callable[[int], None],
        on_failed: Callable[[StorageError], None],
    ) -> None:
        super().__init__(journal, durable=durable)
        self._on_committed = on_committed
        self._on_failed = on_failed

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
        if not self._add(waiter, payloads):
            waiter.settle(self._refused)
        return promise

    def refuse(self, error: Exception) -> None:
        """Refuse further commits, and fail those that have not begun with an error."""
        settle_all(self._refuse(error), error)

    def _committed(self, payloads: Sequence[bytes | memoryview]) -> None:
        self._on_committed(entries_size(payloads))

    def _settle(self, waiters: list[Waiter[T]], error: Exception | None) -> None:
        if error is not None:
            error = _told(error)
            final = StorageError(f"the journal could not be written earlier: {error}")
            self._on_failed(final)
            self.refuse(final)
        settle_all(waiters, error)


def _told(failure: Exception) -> Exception:
    """The error of a failed commit's callers."""
    if isinstance(failure, JournalError):
        return StorageError(f"{failure}. {REOPEN}")
    if isinstance(failure, OSError):
        return OutcomeUnknownError(
            f"the journal could not be written, nor the attempt be undone: {failure}. {REOPEN}"
        )
    return OutcomeUnknownError(f"a commit broke: {failure!r}. {REOPEN}")


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
