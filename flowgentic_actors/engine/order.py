"""All threads' checkpoints in one order, so that a page of a listing costs its answer.

Made from the first listing over all threads on, bit by bit: a shard that is never listed so does
not pay for it. What is deleted stays in it until it is half of all, for it is cheaper to pass over
than to take out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from sortedcontainers import SortedList

from flowgentic_actors.engine.pace import Pace
from flowgentic_actors.engine.thread import Thread

Place: TypeAlias = tuple[str, str, str]
"""Where a checkpoint is: (its id, its thread's id, its namespace)."""

_NEGLIGIBLE: Final = 1000
_MANY: Final = 512  # checkpoints of a branch that are sorted in at once


class CheckpointOrder:
    """The places of checkpoints, ordered by their ids.

    Args:
        thread_ids: The threads that there are; those that come later tell of themselves.
    """

    def __init__(self, thread_ids: Iterator[str]) -> None:
        self._places: SortedList[Place] = SortedList()
        self._left = [*thread_ids]
        self._dropped = 0

    def grow(self, threads: Mapping[str, Thread], pace: Pace) -> bool:
        """Add more threads while there is time; whether all are added.

        To be thrown away if it is interrupted.
        """
        left, taken = self._left, 0
        while left:
            thread_id = left.pop()
            thread = threads.get(thread_id)
            if thread is not None and thread.order is not self:
                taken += self._take_in(thread_id, thread)
            if taken >= pace.step:
                taken = 0
                if pace.is_over():
                    break
        return not left

    def _take_in(self, thread_id: str, thread: Thread) -> int:
        thread.order = self
        count = 1
        for ns, branch in thread.branches.items():
            places = [(checkpoint_id, thread_id, ns) for checkpoint_id in branch.order]
            count += len(places)
            if len(places) > _MANY:
                self._places.update(places)
            else:
                for place in places:
                    self._places.add(place)
        return count

    def add(self, place: Place) -> None:
        """Add a checkpoint that was stored, if its thread is added."""
        self._places.add(place)

    def drop(self, count: int) -> bool:
        """Note deletions; whether the order is still of use."""
        self._dropped += count
        return 2 * self._dropped <= len(self._places) + _NEGLIGIBLE

    def newest_first(self, below: Place | None) -> Iterator[Place]:
        """The places before one, newest first; not all of them have a checkpoint."""
        last: Place | None = None
        for place in self._places.irange(maximum=below, inclusive=(True, False), reverse=True):
            if place != last:  # or it was stored anew after it was deleted
                yield place
            last = place
