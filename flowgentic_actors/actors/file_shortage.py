"""Waiting while a process has too few open files: that passes, and is no fault of an actor."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from flowgentic_actors.actors.stats_query import first_of
from flowgentic_actors.wire.file_limits import is_out_of_files

T = TypeVar("T")

_PAUSE: Final = 0.5
_TELL_AGAIN: Final = 60.0
_DETAIL: Final = (
    "this process has no open file to spare, and waits with what opens one (limit: `ulimit -n`)"
)


class FileShortage:
    """Waits for open files, and reports once that they are short.

    Args:
        over: Set when it waits for nothing any more.
        tell: Told in words, at most once a minute.
    """

    def __init__(self, over: asyncio.Event, tell: Callable[[str], None]) -> None:
        self._over = over
        self._tell = tell
        self._told_at = -math.inf

    async def wait(self, *ends: asyncio.Event) -> None:
        """Wait a moment for files to be closed, unless one of the events is set."""
        now = time.monotonic()
        if now - self._told_at > _TELL_AGAIN:
            self._told_at = now
            self._tell(_DETAIL)
        with anyio.move_on_after(_PAUSE):
            await first_of(self._over, *ends)

    async def outlast(self, work: Callable[[], Awaitable[T]]) -> T:
        """Call a function that opens files, and repeat it while there are too few."""
        while True:
            try:
                return await work()
            except OSError as error:
                if not is_out_of_files(error) or self._over.is_set():
                    raise
            await self.wait()
