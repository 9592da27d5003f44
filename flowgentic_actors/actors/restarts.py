"""Restart policy: when to restart an actor, and when to give up."""

from __future__ import annotations

import random
import signal
from collections import deque
from typing import Final

STABLE: Final = 0.5
"""Seconds of service after which an actor's end is an accident and not a habit."""


_BY_ITSELF: Final = {
    -number
    for number in (
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    )
}
"""Exit codes of processes that a defect of their own has ended by a signal."""


def was_killed(code: int | None) -> bool:
    """Whether a process was ended by a signal from outside, judging by its exit code.

    Args:
        code: The exit code, negative for a signal; None where it is unknown, as for processes of
            a Dragon runtime.
    """
    return code is None or (code < 0 and code not in _BY_ITSELF)


class RestartPolicy:
    """Jittered exponential backoff for short lives, and a limit on all restarts.

    An actor that served for a while is restarted at once: one crash should not cost a caller more
    than the restart itself. One that keeps dying young waits longer each time, but not long if it
    was killed while it served: that says little about the next one. All count towards the
    intensity.

    Args:
        intensity: Restarts allowed within a period.
        period: Seconds.
        rng: Source of jitter.
    """

    FIRST: Final = 0.05
    LONGEST: Final = 5.0
    LONGEST_KILLED: Final = 1.0

    def __init__(self, intensity: int, period: float, rng: random.Random | None = None) -> None:
        self._intensity = intensity
        self._period = period
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._restarts: deque[float] = deque()
        self._short_lives = 0

    def next_delay(self, now: float, served: float, *, killed: bool = False) -> float | None:
        """Account for a restart.

        Args:
            now: Seconds on any clock that does not go back.
            served: Seconds for which the incarnation that ended had served.
            killed: Whether it was ended from outside after it had begun to serve.

        Returns:
            Seconds to wait before the restart, or None when the intensity is exceeded.
        """
        while self._restarts and self._restarts[0] <= now - self._period:
            self._restarts.popleft()
        if len(self._restarts) >= self._intensity:
            return None
        self._restarts.append(now)
        if served >= STABLE:
            self._short_lives = 0
            return 0.0
        longest = self.LONGEST_KILLED if killed else self.LONGEST
        ceiling: float = min(longest, self.FIRST * 2.0 ** min(self._short_lives, 32))
        self._short_lives += 1
        return ceiling * self._rng.uniform(0.5, 1.0)
