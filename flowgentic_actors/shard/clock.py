"""The clock of a shard."""

from __future__ import annotations

import time


class Clock:
    """A monotonic clock in microseconds since the Unix epoch, whatever the machine's clock does.

    No two writes of a shard have the same time, so the time of an item's last write is its version,
    and the order of threads by their last write has no ties.
    """

    def __init__(self) -> None:
        self._latest = 0

    def now(self) -> int:
        """The current time."""
        return max(self._latest, time.time_ns() // 1000)

    def tick(self) -> int:
        """The time of a write, later than all times before."""
        self._latest = max(self._latest + 1, time.time_ns() // 1000)
        return self._latest

    def saw(self, time_us: int) -> None:
        """Note a time that this clock or another one gave out earlier."""
        self._latest = max(self._latest, time_us)
