"""What was sent for a thread and is not acknowledged yet, and how much of it there may be."""

from __future__ import annotations

import threading

from flowgentic_actors.errors import BackpressureError


class Backlog:
    """Counts the bytes of each thread's writes that are under way in this process.

    Args:
        limit: Bytes of one thread. A single larger write is let through when it is the only one.
    """

    __slots__ = ("_bytes", "_limit", "_lock")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self, thread_id: str, size: int) -> None:
        """Count a write that is sent; `end` must follow.

        Raises:
            BackpressureError: If there would be too much. It is not counted then.
        """
        with self._lock:
            waiting = self._bytes.get(thread_id, 0)
            if waiting and waiting + size > self._limit:
                raise BackpressureError(
                    f"{waiting} bytes of thread {thread_id!r} wait to be acknowledged, and "
                    f"{size} more are too many (setting: thread_backlog). The graph is faster than "
                    "its memory: use durability='sync', which waits for each step"
                )
            self._bytes[thread_id] = waiting + size

    def end(self, thread_id: str, size: int) -> None:
        """The write was acknowledged, or given up."""
        with self._lock:
            # None is stored as no bytes at all: several such writes add up to nothing.
            left = self._bytes.pop(thread_id, 0) - size
            if left:
                self._bytes[thread_id] = left
