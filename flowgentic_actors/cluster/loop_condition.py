"""A condition variable of one event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import anyio


class LoopCondition:
    """Wakes waiting tasks, which then check what they wait for again; needs no lock."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all waiting tasks."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float = math.inf) -> None:
        """Wait for the next `notify`, within a timeout."""
        with anyio.move_on_after(seconds):
            await self._event.wait()

    async def wait_for(self, condition: Callable[[], object], seconds: float = math.inf) -> None:
        """Wait until a condition holds, within a timeout."""
        with anyio.move_on_after(seconds):
            while not condition():
                await self._event.wait()
