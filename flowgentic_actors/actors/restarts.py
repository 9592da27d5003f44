"""When to restart an actor, and when to stop trying."""

from __future__ import annotations

import random
from collections import deque


class RestartPolicy:
    """Jittered exponential backoff, and at most `intensity` restarts in any `period`.

    The first restart after a quiet period is immediate: one crash should not cost a caller
    anything but the restart itself.

    Args:
        intensity: Restarts allowed within a period.
        period: Seconds.
        rng: Source of jitter.
    """

    FIRST, LONGEST = 0.05, 5.0

    def __init__(self, intensity: int, period: float, rng: random.Random | None = None) -> None:
        self._intensity = intensity
        self._period = period
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._restarts: deque[float] = deque()

    def next_delay(self, now: float) -> float | None:
        """Account for a restart at `now` (seconds on any clock that does not go back).

        Returns:
            Seconds to wait before it, or None when the intensity is exceeded.
        """
        while self._restarts and self._restarts[0] <= now - self._period:
            self._restarts.popleft()
        if len(self._restarts) >= self._intensity:
            return None
        recent = len(self._restarts)
        self._restarts.append(now)
        if recent == 0:
            return 0.0
        ceiling: float = min(self.LONGEST, self.FIRST * 2.0 ** min(recent - 1, 32))
        return ceiling * self._rng.uniform(0.5, 1.0)
