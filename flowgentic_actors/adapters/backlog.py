"""What was sent for a thread and is not acknowledged yet, and how much of it there may be."""

from __future__ import annotations

import threading

from flowgentic_actors.errors import BackpressureError


class Backlog:
    """Counts the bytes of each thread's writes that are under way in this process.

    Args:
        limit: Bytes of one thread. A single larger write is let through when it is the only one.
    """

    __slots__ = ("_limit", "_lock", "_under_way")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Bytes of each write, by thread and write: an exception, at whichever instruction it comes,
        # finds a write counted as a whole or not at all.
        self._under_way: dict[str, dict[object, int]] = {}
        self._lock = threading.Lock()

    def begin(self, thread_id: str, size: int, write: object) -> None:
        """Count a write that is sent; `end` must follow, whatever comes from here on.

        Args:
            thread_id: Its thread.
            size: Its bytes.
            write: What it is known by.

        Raises:
            BackpressureError: If there would be too much. It is not counted then.
        """
        with self._lock:
            under_way = self._under_way.get(thread_id)
            if under_way is None:
                self._under_way[thread_id] = {write: size}
                return
            waiting = sum(under_way.values())
            if waiting and waiting + size > self._limit:
                raise BackpressureError(
                    f"{waiting} bytes of thread {thread_id!r} wait to be acknowledged, and "
                    f"{size} more are too many (setting: thread_backlog). The graph is faster than "
                    "its memory: use durability='sync', which waits for each step"
                )
            under_way[write] = size

    def end(self, thread_id: str, write: object) -> None:
        """The write was acknowledged, or given up; may be told twice."""
        with self._lock:
            under_way = self._under_way.get(thread_id)
            if under_way is None or write not in under_way:
                return
            if len(under_way) == 1:
                del self._under_way[thread_id]
            else:
                del under_way[write]
