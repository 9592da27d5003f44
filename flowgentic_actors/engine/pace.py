"""The time limit of one page of an answer.

A page ends by time, as the cost of a candidate depends on the request: others are served between
two pages.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

PAGE_SECONDS: Final = 0.01
"""Looking at candidates for one page, seconds: it is closed then, full or not.

With what else there is to do for a page, its shard is kept for some 20 ms at most.
"""

LOOKS: Final = 256
"""Candidates after which a page looks at the clock, if each costs little."""

LARGE: Final = 1 << 14
"""Bytes of values that a page looks into between two looks at the clock."""

_CHEAP: Final = 16  # bytes of a filter that make a candidate as costly as no filter does


class Pace:
    """Tells when a page has used up its time, counted from the first look at the clock.

    Args:
        filter_bytes: Size of the filter that each candidate is tried with.

    Attributes:
        step: Candidates between two looks at the clock.
    """

    __slots__ = ("_end", "step")

    def __init__(self, filter_bytes: int = 0) -> None:
        self.step = max(1, LOOKS // (1 + filter_bytes // _CHEAP))
        self._end: float | None = None

    def is_over(self) -> bool:
        """Whether to end the page."""
        now = perf_counter()
        if self._end is None:
            self._end = now + PAGE_SECONDS
        return now >= self._end
