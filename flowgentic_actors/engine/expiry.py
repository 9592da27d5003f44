"""Expiry of items. Items that never expire cost nothing here."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple, TypeAlias

ItemPlace: TypeAlias = tuple[tuple[str, ...], str]
"""Where an item is: (namespace, key)."""


_NEGLIGIBLE: Final = 1000


class Life(NamedTuple):
    """The limited life of an item.

    Attributes:
        expires_us: When its time is over.
        ttl_us: How long it lives from a refresh on.
    """

    expires_us: int
    ttl_us: int


class Expiry:
    """The lives of all items that expire.

    Attributes:
        lives: By place; empty where nothing expires, so that no caller need ask.
    """

    def __init__(self) -> None:
        self.lives: dict[ItemPlace, Life] = {}
        # One entry or more for each, at its time or an earlier one: a refresh changes only the
        # life, and the entry is put right when its turn comes.
        self._queue: list[tuple[int, ItemPlace]] = []

    def begin(self, place: ItemPlace, expires_us: int, ttl_us: int) -> None:
        """Begin an item's life, 0 for one without an end."""
        if not expires_us:
            self.lives.pop(place, None)
            return
        old = self.lives.get(place)
        self.lives[place] = Life(expires_us, ttl_us)
        if old is None or expires_us < old.expires_us:  # otherwise its entry is early enough
            heappush(self._queue, (expires_us, place))
            self._tidy()

    def forget(self, place: ItemPlace) -> None:
        """Remove an item."""
        self.lives.pop(place, None)

    def life(self, place: ItemPlace) -> Life | None:
        """An item's life, None for one without an end."""
        return self.lives.get(place)

    def is_over(self, place: ItemPlace, now_us: int) -> bool:
        """Whether an item has expired."""
        life = self.lives.get(place)
        return life is not None and life.expires_us <= now_us

    def gains(self, place: ItemPlace, now_us: int) -> bool:
        """Whether a read is worth a record: it extends an item's life by a hundredth at least."""
        life = self.lives.get(place)
        return life is not None and now_us + life.ttl_us - life.expires_us > life.ttl_us // 100

    def refresh(self, places: Iterable[ItemPlace], time_us: int) -> None:
        """Restart the lives of items, at the time at which they were read."""
        for place in places:
            life = self.lives.get(place)
            if life is not None:
                later = max(life.expires_us, time_us + life.ttl_us)
                self.lives[place] = life._replace(expires_us=later)

    def over(self, now_us: int, most: int) -> list[ItemPlace]:
        """The expired items, at most so many; the caller has to remove them."""
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
        for place in found:  # if they are not removed, their turn comes again
            heappush(self._queue, (self.lives[place].expires_us, place))
        return list(found)

    def _tidy(self) -> None:
        """Rebuild the queue when most of it is about removed items."""
        if len(self._queue) > 2 * len(self.lives) + _NEGLIGIBLE:
            self.restore()

    def restore(self) -> None:
        """Rebuild the queue from `lives`."""
        queue = [(life.expires_us, place) for place, life in self.lives.items()]
        heapify(queue)
        self._queue = queue

    def next_us(self) -> int | None:
        """The time at which an item may expire next, None while nothing expires."""
        while self._queue and self._queue[0][1] not in self.lives:
            heappop(self._queue)
        return self._queue[0][0] if self._queue else None
