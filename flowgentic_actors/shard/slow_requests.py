"""Reports of slow requests to a shard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flowgentic_actors.engine.commands import Command
from flowgentic_actors.event_kinds import EventKind

_QUIET: Final = 10.0  # seconds after one was told of


class SlowRequests:
    """Reports slow requests as events, at most one in ten seconds.

    Args:
        tell: Reports an event (kind, detail).
    """

    def __init__(self, tell: Callable[[EventKind, str], None]) -> None:
        self._tell = tell
        self._quiet_until = 0.0
        self._untold = 0

    def note(self, command: Command, seconds: float) -> None:
        """Report a slow request.

        Args:
            command: What was asked.
            seconds: How long others waited for it.
        """
        now = time.monotonic()
        if now < self._quiet_until:
            self._untold += 1
            return
        since = f"; {self._untold} others since the last event" if self._untold else ""
        self._quiet_until, self._untold = now + _QUIET, 0
        what = f"{type(command).__name__} took {seconds:.2f} s"
        self._tell(EventKind.SLOW_REQUEST, f"{what}, in which others waited{since}")
