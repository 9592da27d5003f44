"""Deadlines that exclude time in which the event loop was blocked or the process was stopped.

An event loop that a node blocks, a process that a debugger or SIGSTOP holds, a suspended laptop:
none of them reads an answer that has arrived, and a deadline on the wall clock takes that for
silence. So time is counted in slices here. A slice that ended late counts as a short one, and
answers that arrived meanwhile are read before a deadline is checked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias, TypeVar

from flowgentic_actors.foreign import is_foreign

T = TypeVar("T")

logger = logging.getLogger(__name__)

SLICE: Final = 0.05
"""Seconds between two checks of an event loop's deadlines."""

THREAD_SLICE: Final = 0.25
"""Seconds of one wait of a thread, at most."""

_LATE: Final = 0.2  # seconds by which a slice may be longer and still counts in full
_COUNTED: Final = 2 * SLICE  # of a late slice, so that deadlines pass on a loop that is always late
_LOST: Final = 5.0  # seconds without a tick: an exception ended it
_TOLD_FROM: Final = 1.0  # seconds
_TOLD_EVERY: Final = 10.0  # seconds, at most

Look: TypeAlias = Callable[[float], bool]
"""Checks a deadline against the time of a `LoopClock`; returns whether to call it again."""


class Listener(Protocol):
    """Receiver of reports that an event loop was blocked."""

    def loop_blocked(self, seconds: float) -> None:
        """Report that the running event loop was blocked while calls were pending."""


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
_clocks: dict[asyncio.AbstractEventLoop, LoopClock] = {}


def tell_when_blocked(listener: Listener) -> None:
    """Call `listener.loop_blocked` on the loop concerned, for as long as the listener exists."""
    _listeners.add(listener)


def loop_clock(loop: asyncio.AbstractEventLoop) -> LoopClock:
    """The clock of an event loop; called on its thread."""
    clock = _clocks.get(loop)
    if clock is None:
        for closed in [other for other in list(_clocks) if other.is_closed()]:
            _clocks.pop(closed, None)
        clock = _clocks[loop] = LoopClock()
    return clock


class LoopClock:
    """Time of an event loop in seconds, without blocked time; it runs while deadlines are watched.

    Attributes:
        time: The time at the end of the current slice, so that a deadline is never early.
    """

    __slots__ = ("_looks", "_start", "_ticking", "_told", "_was_late", "time")

    def __init__(self) -> None:
        self.time = SLICE
        self._looks: list[Look] = []
        self._ticking = False
        self._start = 0.0
        self._was_late = False
        self._told = -math.inf

    def watch(self, look: Look) -> None:
        """Call `look` once per slice as long as it returns True."""
        self._looks.append(look)
        if not self._ticking:
            self._schedule()
            self._ticking = True
        elif monotonic() - self._start > _LOST:
            asyncio.get_running_loop().call_later(SLICE, self._revive)

    def _revive(self) -> None:
        """Tick again if an exception ended that; after a block, the late tick has come before."""
        if monotonic() - self._start > _LOST:
            self._schedule()

    def _schedule(self) -> None:
        self._start = monotonic()
        asyncio.get_running_loop().call_later(SLICE, self._tick)

    def _tick(self) -> None:
        took = monotonic() - self._start
        if not self._looks:
            self._ticking = self._was_late = False
            return
        self._schedule()  # first: an exception in one check must not end all deadlines
        late = took > SLICE + _LATE
        self.time += _COUNTED if late else took
        # After a block, the loop gets one slice to read answers before a deadline can pass.
        now = -math.inf if late and not self._was_late else self.time - SLICE
        self._was_late = late
        self._looks = [look for look in self._looks if look(now)]
        if took - SLICE >= _TOLD_FROM:
            self._tell(took - SLICE)

    def _tell(self, seconds: float) -> None:
        if monotonic() - self._told < _TOLD_EVERY:
            return
        self._told = monotonic()
        logger.warning(
            "the event loop was blocked for %.1f s, and with it all calls on the memory (by a node "
            "that computes or blocks, very large values, a debugger, or a process that was "
            "stopped). That time does not count towards request_timeout. Blocking work belongs on "
            "a thread: asyncio.to_thread",
            seconds,
        )
        for listener in list(_listeners):
            listener.loop_blocked(seconds)


class Deadline:
    """A deadline on the running event loop's `LoopClock`, which runs within `with`.

    Args:
        seconds: How many.
    """

    def __init__(self, seconds: float) -> None:
        self._clock = loop_clock(asyncio.get_running_loop())
        self._until = self._clock.time + seconds
        self._left = False

    def __enter__(self) -> Self:
        self._clock.watch(lambda _now: not self._left)
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True

    @property
    def left(self) -> float:
        """Seconds left, 0 or less when it has passed."""
        return self._until - self._clock.time


class timeout:  # noqa: N801 - in the place of asyncio.timeout
    """`asyncio.timeout` on the event loop's `LoopClock`: blocked time does not count.

    Args:
        seconds: How many; `math.inf` for no deadline.

    Raises:
        TimeoutError: On leaving it, if they were over before.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = math.inf
        self._scope = asyncio.timeout(None)
        self._left = False

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        if self._seconds < math.inf:
            clock = loop_clock(asyncio.get_running_loop())
            self._until = clock.time + self._seconds
            clock.watch(self._look)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        await self._scope.__aexit__(kind, error, traceback)

    def expired(self) -> bool:
        """Whether the deadline passed before the context was left."""
        return self._scope.expired()

    def _look(self, now: float) -> bool:
        if self._left or self._scope.expired():
            return False
        if now < self._until:
            return True
        self._scope.reschedule(asyncio.get_running_loop().time())
        return False


class _ThreadClock(threading.local):
    """The seconds of this thread's waits that timed out."""

    waited = 0.0


_thread = _ThreadClock()


class Patience:
    """A deadline of a thread, which waits in slices and counts those that timed out.

    An answer that comes at once costs no read of a clock. Usable only on the thread that made it.

    Args:
        seconds: Until the deadline.
    """

    __slots__ = ("_looked", "_until", "_waited")

    def __init__(self, seconds: float) -> None:
        self._until = _thread.waited + seconds
        self._looked = 0.0  # on the clock
        self._waited = 0.0  # until then

    @property
    def left(self) -> float:
        """Seconds left, 0 or less when the deadline has passed."""
        return self._until - _thread.waited

    def slice(self, most: float = THREAD_SLICE) -> float:
        """Seconds to wait now; call `lapse` when the wait timed out.

        Raises:
            TimeoutError: If the deadline has passed.
        """
        left = self._until - _thread.waited
        if left <= 0:
            raise TimeoutError("the deadline passed")
        return min(most, left)

    def lapse(self, seconds: float) -> None:
        """Count a wait that timed out."""
        _thread.waited += seconds

    def look(self) -> None:
        """Count the time since the last call, for work that progresses in parts."""
        now = monotonic()
        if self._looked:
            took = _counted(now - self._looked, THREAD_SLICE)
            _thread.waited = max(_thread.waited, self._waited + took)
        self._looked, self._waited = now, _thread.waited

    def attempt(self, most: float, work: Callable[[float], T]) -> T:
        """Call a function that waits by itself, and count its time if it fails.

        Args:
            most: Longest wait, seconds.
            work: Called with the seconds that it may wait.

        Raises:
            TimeoutError: If the deadline has passed.
        """
        limit, begun = self.slice(most), monotonic()
        try:
            return work(limit)
        except OSError:
            self.lapse(_counted(monotonic() - begun, limit))
            raise

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the deadline."""
        pause = max(0.0, min(self.left, seconds))
        time.sleep(pause)
        self.lapse(pause)

    def result(self, future: Future[T]) -> T:
        """Wait for a future.

        Raises:
            TimeoutError: If the deadline passed before it was done.
        """
        while not future.done():
            left = self.slice()
            try:
                return future.result(left)
            except TimeoutError as error:
                if is_foreign(error):
                    raise
                self.lapse(left)
        return future.result()


def _counted(seconds: float, most: float) -> float:
    """The counted part of a wait: one slice if the process must have been stopped meanwhile."""
    return seconds if seconds <= most + _LATE else min(most, THREAD_SLICE)
