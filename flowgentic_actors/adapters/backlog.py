"""Bounds on the bytes of a thread's writes in flight, and the queue of waiting writes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Final

from msgspec import Struct

from flowgentic_actors.deadlines import Patience, timeout
from flowgentic_actors.errors import BackpressureError

_LOOK_AGAIN: Final = 0.002  # seconds


class WriteInFlight(Struct, eq=False):
    """A write of a thread: known by itself, while it waits for its turn and while it is counted.

    Attributes:
        thread_id: The thread; "" before the write waits or begins.
        given: Done when its turn has come; None for one that did not wait.
        loop: The event loop that waits, None for a thread.
        caller: The thread that waits.
    """

    thread_id: str = ""
    given: Future[None] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    caller: int = 0


class _Line:
    """The queue of a thread's waiting writes, first come, first served."""

    __slots__ = ("holder", "waiting")

    def __init__(self) -> None:
        self.holder: WriteInFlight | None = None  # has its turn, and has not begun yet
        self.waiting: deque[WriteInFlight] = deque()


class InFlightBytes:
    """Bounds the bytes of each thread's writes that are in flight from this process.

    While a thread has the limit or more under way, its next write waits for its turn, before its
    values are serialized: so it holds nothing but what its caller holds anyway. One write of any
    size is let through, so what is under way never exceeds the limit by more than that.

    Of each write: `wait` if its thread is among the `crowded`, `begin`, and in any case `end`.

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
        self._under_way: dict[str, dict[WriteInFlight, int]] = {}
        self.crowded: dict[str, _Line] = {}
        self._lock = threading.Lock()

    async def wait(self, write: WriteInFlight, thread_id: str) -> None:
        """Wait for the turn of a write.

        Raises:
            BackpressureError: If the deadline passed. The write was not sent.
        """
        write.loop = asyncio.get_running_loop()
        given = self._line_up(write, thread_id)
        deadline = timeout(self._patience)
        try:
            async with deadline:
                await asyncio.wrap_future(given)
        except TimeoutError as error:
            if not deadline.expired():
                raise  # a signal handler's, for example
            raise self._in_vain(thread_id) from error

    def wait_sync(self, write: WriteInFlight, thread_id: str) -> None:
        """Wait for the turn of a write, blocking; see `wait`.

        It does not wait on a thread that runs an event loop: earlier writes may need that loop.
        """
        if _has_loop():
            return
        write.caller = threading.get_ident()
        patience = Patience(self._patience)
        given = self._line_up(write, thread_id)
        while not given.done():  # an interrupted `result` may leave the future locked
            if patience.left <= 0:
                raise self._in_vain(thread_id)
            patience.sleep(_LOOK_AGAIN)

    def _line_up(self, write: WriteInFlight, thread_id: str) -> Future[None]:
        write.thread_id = thread_id
        given: Future[None] = Future()
        write.given = given
        with self._lock:
            line = self.crowded.setdefault(thread_id, _Line())
            if write.caller:  # an earlier wait of this thread was interrupted
                if line.holder is not None and line.holder.caller == write.caller:
                    line.holder = None
                line.waiting = deque(one for one in line.waiting if one.caller != write.caller)
            line.waiting.append(write)
            self._go_on(thread_id)
        return given

    def begin(self, write: WriteInFlight, thread_id: str, size: int) -> None:
        """Count a write of some bytes, which is sent next; the turn that it had is over."""
        write.thread_id = thread_id
        with self._lock:
            under_way = self._under_way.get(thread_id)
            if under_way is None:
                self._under_way[thread_id] = {write: size}
            else:
                under_way[write] = size
                size = sum(under_way.values())
            if size >= self._limit:
                self.crowded.setdefault(thread_id, _Line())
            if write.given is not None:
                self._give_back(write)

    def end(self, write: WriteInFlight) -> None:
        """Stop counting a write that was acknowledged or given up. May be called twice."""
        with self._lock:
            under_way = self._under_way.get(write.thread_id)
            if under_way is not None:
                under_way.pop(write, None)
                if not under_way:
                    del self._under_way[write.thread_id]
            if self.crowded:
                self._give_back(write)

    def _give_back(self, write: WriteInFlight) -> None:
        """Take a write out of its thread's queue, and let the next one begin."""
        line = self.crowded.get(write.thread_id)
        if line is None:
            return
        if line.holder is write:
            line.holder = None
        elif write.given is not None:
            write.given.cancel()
        self._go_on(write.thread_id)

    def _bytes_of(self, thread_id: str) -> int:
        return sum(self._under_way.get(thread_id, {}).values())

    def _go_on(self, thread_id: str) -> None:
        """Let the next write of a thread begin, if there is room."""
        line = self.crowded.get(thread_id)
        if line is None or self._bytes_of(thread_id) >= self._limit or _lives(line.holder):
            return
        while line.waiting:
            write = line.waiting.popleft()
            if _lives(write) and write.given and write.given.set_running_or_notify_cancel():
                line.holder = write
                write.given.set_result(None)
                return
        del self.crowded[thread_id]

    def _in_vain(self, thread_id: str) -> BackpressureError:
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


def _lives(write: WriteInFlight | None) -> bool:
    """Whether a write can still take its turn: its event loop is not closed."""
    return write is not None and (write.loop is None or not write.loop.is_closed())
