"""What happens when: events in the order of time, and a clock that jumps from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
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


class SimulatedTask:
    """Work that is written as a coroutine and waits for nothing but time and news.

    Args:
        agenda: What happens when.
        moment: Seconds after which it looks again when there is no news.
    """

    def __init__(self, agenda: Agenda, moment: float) -> None:
        self.done = False
        self._agenda = agenda
        self._moment = moment
        self._work: Coroutine[float, None, None] | None = None
        self._number = 0  # of the waits: what a shorter one has ended must not go on again
        self._hears = False

    def begin(self, work: Coroutine[float, None, None]) -> None:
        """Do it, up to where it waits first."""
        self._work = work
        self._go_on(self._number)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await _Wait(seconds)

    async def changed(self) -> None:
        """Wait for news, or a moment."""
        self._hears = True
        await _Wait(self._moment)

    def news(self) -> None:
        """Something may have changed."""
        if self._hears:
            self._go_on(self._number)

    def _go_on(self, number: int) -> None:
        if number != self._number or self._work is None:
            return
        self._number += 1
        self._hears = False
        try:
            seconds = self._work.send(None)
        except StopIteration:
            self.done = True
        else:
            self._agenda.after(seconds, self._go_on, self._number)


class _Wait:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self._seconds
