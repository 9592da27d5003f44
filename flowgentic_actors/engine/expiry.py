"""When items expire. Those that never do cost nothing here."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple, TypeAlias

ItemPlace: TypeAlias = tuple[tuple[str, ...], str]
"""Where an item is: (namespace, key)."""


_NEGLIGIBLE: Final = 1000


class Life(NamedTuple):
    """How long an item lives.

    Attributes:
        expires_us: When its time is over.
        ttl_us: How long it lives from a refresh on.
    """

    expires_us: int
    ttl_us: int


class Expiry:
    """The lives of items that have a limited one.

    Attributes:
        lives: By place; empty where nothing expires, so that nobody need ask.
    """

    def __init__(self) -> None:
        self.lives: dict[ItemPlace, Life] = {}
        # One entry or more for each, at its time or an earlier one: a refresh changes only the
        # life, and the entry is put right when its turn comes.
        self._queue: list[tuple[int, ItemPlace]] = []

    def begin(self, place: ItemPlace, expires_us: int, ttl_us: int) -> None:
        """An item begins a life, 0 for one without an end."""
        if not expires_us:
            self.lives.pop(place, None)
            return
        old = self.lives.get(place)
        self.lives[place] = Life(expires_us, ttl_us)
        if old is None or expires_us < old.expires_us:  # otherwise its entry is early enough
            heappush(self._queue, (expires_us, place))
            self._tidy()

    def forget(self, place: ItemPlace) -> None:
        """An item is gone."""
        self.lives.pop(place, None)

    def life(self, place: ItemPlace) -> Life | None:
        """An item's life, None for one without an end."""
        return self.lives.get(place)

    def is_over(self, place: ItemPlace, now_us: int) -> bool:
        """Whether an item's time is over."""
        life = self.lives.get(place)
        return life is not None and life.expires_us <= now_us

    def gains(self, place: ItemPlace, now_us: int) -> bool:
        """Whether a read is worth a record: it makes an item's life longer by a hundredth."""
        life = self.lives.get(place)
        return life is not None and now_us + life.ttl_us - life.expires_us > life.ttl_us // 100

    def refresh(self, places: Iterable[ItemPlace], time_us: int) -> None:
        """Let the lives of items begin anew, at the time at which they were read."""
        for place in places:
            life = self.lives.get(place)
            if life is not None:
                later = max(life.expires_us, time_us + life.ttl_us)
                self.lives[place] = life._replace(expires_us=later)

    def over(self, now_us: int, most: int) -> list[ItemPlace]:
        """The items whose time is over, at most so many; they are still to be forgotten."""
        found: dict[ItemPlace, None] = {}
        while self._queue and self._queue[0][0] <= now_us and len(found) < most:
            _, place = heappop(self._queue)
            life = self.lives.get(place)
            if life is None:
                continue
            if life.expires_us <= now_us:
                found[place] = None
            else:
                heappush(self._queue, (life.expires_us, place))
        for place in found:  # if nobody forgets them, their turn comes again
            heappush(self._queue, (self.lives[place].expires_us, place))
        return list(found)

    def _tidy(self) -> None:
        """Make the queue anew when most of it is about items that are gone."""
        if len(self._queue) > 2 * len(self.lives) + _NEGLIGIBLE:
            self.restore()

    def restore(self) -> None:
        """Rebuild the queue from `lives`."""
        queue = [(life.expires_us, place) for place, life in self.lives.items()]
        heapify(queue)
        self._queue = queue

    def next_us(self) -> int | None:
        """When there may be something over, None while nothing expires."""
        while self._queue and self._queue[0][1] not in self.lives:
            heappop(self._queue)
        return self._queue[0][0] if self._queue else None
