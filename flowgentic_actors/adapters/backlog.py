"""Bounds on the bytes of a thread's writes in flight, and the queue of waiting writes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import Final

from flowgentic_actors.deadlines import Patience, timeout
from flowgentic_actors.errors import BackpressureError

_LOOK_AGAIN: Final = 0.002  # seconds


class Turn:
    """A write's place in its thread's queue.

    Within `with`, `wait` and then begin the write.

    Args:
        backlog: Whose line it is.
        thread_id: The thread.
        patience: Seconds to wait.
    """

    __slots__ = ("_backlog", "_patience", "caller", "given", "loop", "thread_id")

    def __init__(self, backlog: InFlightBytes, thread_id: str, patience: float) -> None:
        self._backlog = backlog
        self._patience = patience
        self.thread_id = thread_id
        self.loop: asyncio.AbstractEventLoop | None = None  # that waits, None for a thread
        self.caller = 0  # the thread that waits
        self.given: Future[None] = Future()

    async def wait(self) -> None:
        """Wait until the write may begin.

        Raises:
            BackpressureError: If the deadline passed. The write was not sent.
        """
        self.loop = asyncio.get_running_loop()
        self._backlog.line_up(self)
        deadline = timeout(self._patience)
        try:
            async with deadline:
                await asyncio.wrap_future(self.given)
        except TimeoutError as error:
            if not deadline.expired():
                raise  # a signal handler's, for example
            raise self._backlog.in_vain(self.thread_id) from error

    def wait_sync(self) -> None:
        """Wait until the write may begin, blocking; see `wait`.

        It does not wait on a thread that runs an event loop: earlier writes may need that loop.
        """
        if _has_loop():
            return
        self.caller = threading.get_ident()
        patience = Patience(self._patience)
        self._backlog.line_up(self)
        while not self.given.done():  # an interrupted `result` may leave the future locked
            if patience.left <= 0:
                raise self._backlog.in_vain(self.thread_id)
            patience.sleep(_LOOK_AGAIN)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._backlog.give_back(self)


class _Line:
    """The queue of a thread's waiting writes, first come, first served."""

    __slots__ = ("holder", "waiting")

    def __init__(self) -> None:
        self.holder: Turn | None = None  # has its turn, and has not begun yet
        self.waiting: deque[Turn] = deque()


class InFlightBytes:
    """Bounds the bytes of each thread's writes that are in flight from this process.

    While a thread has the limit or more under way, its next write waits for its turn, before its
    values are serialized: so it holds nothing but what its caller holds anyway. One write of any
    size is let through, so what is under way never exceeds the limit by more than that.

    Args:
        limit: Bytes of one thread.
        patience: Seconds that a write waits for its turn.

    Attributes:
        crowded: The threads whose next write has to wait; most of the time there is none.
    """

    __slots__ = ("_limit", "_lock", "_patience", "_under_way", "crowded")

    def __init__(self, limit: int, patience: float) -> None:
        self._limit = limit
        self._patience = patience
        # Bytes of each write, by thread and write: an exception, at whichever instruction it comes,
        # finds a write counted as a whole or not at all.
        self._under_way: dict[str, dict[object, int]] = {}
        self.crowded: dict[str, _Line] = {}
        self._lock = threading.Lock()

    def turn(self, thread_id: str) -> Turn:
        """Make the turn of a write, to wait for."""
        return Turn(self, thread_id, self._patience)

    def line_up(self, turn: Turn) -> None:
        """Append a turn to the queue; `give_back` must follow."""
        with self._lock:
            line = self.crowded.setdefault(turn.thread_id, _Line())
            if turn.caller:  # an earlier wait of this thread was interrupted
                if line.holder is not None and line.holder.caller == turn.caller:
                    line.holder = None
                line.waiting = deque(one for one in line.waiting if one.caller != turn.caller)
            line.waiting.append(turn)
            self._go_on(turn.thread_id)

    def give_back(self, turn: Turn) -> None:
        """End a turn: its write has begun, or was given up."""
        with self._lock:
            line = self.crowded.get(turn.thread_id)
            if line is None:
                return
            if line.holder is turn:
                line.holder = None
            elif not turn.given.done():
                turn.given.cancel()
            self._go_on(turn.thread_id)

    def begin(self, thread_id: str, size: int, write: object) -> None:
        """Count a write that is sent; `end` must follow in any case.

        Args:
            thread_id: Its thread.
            size: Its bytes.
            write: What it is known by.
        """
        with self._lock:
            under_way = self._under_way.get(thread_id)
            if under_way is None:
                self._under_way[thread_id] = {write: size}
            else:
                under_way[write] = size
                size = sum(under_way.values())
            if size >= self._limit:
                self.crowded.setdefault(thread_id, _Line())

    def end(self, thread_id: str, write: object) -> None:
        """Stop counting a write that was acknowledged or given up. May be called twice."""
        with self._lock:
            under_way = self._under_way.get(thread_id)
            if under_way is not None:
                under_way.pop(write, None)
                if not under_way:
                    del self._under_way[thread_id]
            if self.crowded:
                self._go_on(thread_id)

    def _bytes_of(self, thread_id: str) -> int:
        return sum(self._under_way.get(thread_id, {}).values())

    def _go_on(self, thread_id: str) -> None:
        """Let the next write of a thread begin, if there is room."""
        line = self.crowded.get(thread_id)
        if line is None or self._bytes_of(thread_id) >= self._limit or _lives(line.holder):
            return
        while line.waiting:
            turn = line.waiting.popleft()
            if _lives(turn) and turn.given.set_running_or_notify_cancel():
                line.holder = turn
                turn.given.set_result(None)
                return
        del self.crowded[thread_id]

    def in_vain(self, thread_id: str) -> BackpressureError:
        """The error of a write that waited until its deadline."""
        return BackpressureError(
            f"{self._bytes_of(thread_id)} bytes of writes to thread {thread_id!r} are under "
            f"way (setting: thread_backlog={self._limit}), and the memory acknowledged too few of "
            f"them within {self._patience:.3g} s (setting: request_timeout). This write was not "
            "sent: nothing happened. See memory.status() for what its shard is at, and raise "
            "request_timeout if it is only slow"
        )


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _lives(turn: Turn | None) -> bool:
    """Whether a turn can still be taken: its event loop is not closed."""
    return turn is not None and (turn.loop is None or not turn.loop.is_closed())
