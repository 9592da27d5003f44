"""How long one page of an answer may take.

A page ends by time, for what one candidate costs is up to whoever asks: others are served between
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

_CHEAP: Final = 16  # bytes of a filter that make a candidate as costly as no filter does
_LARGE: Final = 1 << 16  # bytes of a value that a filter takes long to look into


class Pace:
    """Tells when a page has taken its time; made when the first candidate is there.

    Args:
        filter_bytes: Size of the filter that each candidate is tried with.
    """

    __slots__ = ("_end", "_step")

    def __init__(self, filter_bytes: int = 0) -> None:
        self._step = max(1, LOOKS // (1 + filter_bytes // _CHEAP))
        self._end = perf_counter() + PAGE_SECONDS

    def is_over(self, looked: int, size: int = 0) -> bool:
        """Whether to end the page.

        Args:
            looked: Candidates so far.
            size: Bytes of the last one's value.
        """
        return (not looked % self._step or size > _LARGE) and perf_counter() >= self._end
