"""The heartbeats of actors: when a supervisor takes one for silent, hung or stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

import anyio

from flowgentic_actors.actors.child import Child, Incarnation
from flowgentic_actors.actors.in_process import InProcessActor
from flowgentic_actors.actors.stats_query import first_of
from flowgentic_actors.event_kinds import EventKind

EventSink: TypeAlias = Callable[[EventKind, str, str], None]
"""Called with (kind, actor, detail) when something happened."""

_SILENT: Final = 3.0  # seconds without an answer after which an actor's silence is an event


class HangDetector:
    """Pings actors, and decides which of them are to be replaced.

    Args:
        interval: Seconds between two pings.
        hang_timeout: Silence, in seconds, of an actor that is stopped or hung.
        busy_timeout: Seconds of one batch of an actor that is stuck.
        on_event: Told when an actor falls silent, and when it answers again.
    """

    def __init__(
        self, interval: float, hang_timeout: float, busy_timeout: float, on_event: EventSink
    ) -> None:
        self._interval = interval
        self._hang_timeout = hang_timeout
        self._busy_timeout = busy_timeout
        self._on_event = on_event

    async def watch(self, name: str, life: Incarnation, *until: asyncio.Event) -> None:
        """Ping an actor's process until an event; one that is silent or stuck is marked as ended.

        Args:
            name: Name of the actor.
            life: Its incarnation.
            until: The events.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ping, name, life)
            await first_of(*until)
            tasks.cancel_scope.cancel()

    async def watch_hosted(
        self, child: Child, hosted: InProcessActor, stopping: asyncio.Event
    ) -> None:
        """Ask an actor in this process until it ends, is stuck or cannot tell how it is."""
        stuck = 0
        while not (hosted.ended.is_set() or stopping.is_set()):
            with anyio.move_on_after(self._interval):
                await first_of(hosted.ended, stopping)
            try:
                busy = child.ask_hosted()
            except Exception as error:  # noqa: BLE001 - an actor's defect, whatever it is
                hosted.reason = f"{type(error).__name__}: {error}"
                return
            stuck = stuck + 1 if busy > self._busy_timeout else 0
            if stuck > 1:
                hosted.reason = f"one batch took more than {busy:.1f} s: stuck"
                return

    async def _ping(self, name: str, life: Incarnation) -> None:
        """Ping an actor's process.

        A busy actor is asked twice, for the same reason for which silence is counted in ticks.
        """
        life.silence.heard()
        stuck = 0
        while not life.ended.is_set():
            life.ping()
            await anyio.sleep(self._interval)
            silence = life.silence.tick(self._interval)
            self._tell(name, life)
            stuck = stuck + 1 if life.busy > self._busy_timeout else 0
            if silence > self._hang_timeout:
                life.reason = f"no answer to pings for {silence:.1f} s: stopped or hung"
                life.ended.set()
            elif stuck > 1:
                life.reason = f"one batch took more than {life.busy:.1f} s: stuck"
                life.ended.set()

    def _tell(self, name: str, life: Incarnation) -> None:
        longest = max(_SILENT, self._interval)
        silent = life.silence.seconds > longest
        if silent and not life.silent:
            self._on_event(
                EventKind.ACTOR_SILENT,
                name,
                f"no answer for {longest:g} s; it is replaced after hang_timeout, "
                f"{self._hang_timeout:g} s",
            )
        elif life.silent and not silent:
            self._on_event(EventKind.ACTOR_ANSWERS, name, "again")
        life.silent = silent
