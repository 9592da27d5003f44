"""The counter of a peer's silence."""

from __future__ import annotations


class SilenceCounter:
    """The time without a sign of life of a peer, counted in ticks and not read from a clock.

    A tick is a wait that ended in vain, of a length that was known before. It counts with that
    length, however long it took. So what a clock would count is left out: a scheduler suspends the
    whole job, a debugger stops this process, the machine sleeps. No process listened then, and the
    peer may have been stopped as well: it was not silent.

    Attributes:
        seconds: How long the peer has been silent.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def tick(self, seconds: float) -> float:
        """Count a wait that ended in vain; returns how long the peer has been silent."""
        self.seconds += seconds
        return self.seconds

    def heard(self) -> None:
        """Note a sign of life."""
        self.seconds = 0.0
