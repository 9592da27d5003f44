"""Query of actors' counters at once, instead of at the next ping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from flowgentic_actors.actors.child import Child

logger = logging.getLogger(__name__)


async def first_of(*events: asyncio.Event) -> None:
    """Wait until any of the events is set."""
    if any(event.is_set() for event in events):
        return
    async with anyio.create_task_group() as tasks:

        async def wait(event: asyncio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        for event in events:
            tasks.start_soon(wait, event)


async def query_stats(children: Iterable[Child], timeout: float) -> None:
    """Ask running actors for their counters, and wait for the answers.

    Args:
        children: The actors. One that does not answer in time keeps the counters it had, with the
            time of those.
        timeout: Seconds.
    """
    asked = []
    for child in children:
        life = child.life
        if child.hosted is not None:
            try:
                child.ask_hosted()
            except Exception:  # a defect of the actor: its supervision ends it for that
                logger.exception("%s does not tell its counters", child.spec.name)
        elif life is not None and life.ready.is_set() and not life.ended.is_set():
            asked.append((life, life.ping()))
    with anyio.move_on_after(timeout):
        for life, number in asked:
            while life.answered < number and not any(end.is_set() for end in life.ends):
                await first_of(life.pong, *life.ends)
