"""What happens when: events in the order of time, and a clock that jumps from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Agenda:
    """Events to come."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._entries: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0  # of two events at one time, the one that was planned first

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Plan an event; what would be in the past happens next."""
        self._number += 1
        heappush(self._entries, (max(when, self.now), self._number, what, arguments))

    def after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Plan an event."""
        self.at(self.now + seconds, what, *arguments)

    def run(self, until: float) -> None:
        """Let everything happen up to a time."""
        while self._entries and self._entries[0][0] <= until:
            self.now, _, what, arguments = heappop(self._entries)
            self.happened += 1
            what(*arguments)
        self.now = until
