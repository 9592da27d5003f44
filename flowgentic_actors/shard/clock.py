"""A shard's time."""

from __future__ import annotations

import time


class Clock:
    """Microseconds since the Unix epoch that never go back, whatever the machine's clock does.

    No two writes of a shard have the same time, so the time of an item's last write is its version,
    and the order of threads by their last write has no ties.
    """

    def __init__(self) -> None:
        self._latest = 0

    def now(self) -> int:
        """The time."""
        return max(self._latest, time.time_ns() // 1000)

    def tick(self) -> int:
        """The time of a write, later than all before."""
        self._latest = max(self._latest + 1, time.time_ns() // 1000)
        return self._latest

    def saw(self, time_us: int) -> None:
        """Take note of a time that was given out earlier, by this clock or another one."""
        self._latest = max(self._latest, time_us)
