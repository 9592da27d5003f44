"""The publisher of the plan: stores each change of it, then lets the cluster act on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.cluster.loop_condition import LoopCondition
from flowgentic_actors.cluster.nodes.heartbeats import HeartbeatDesk
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.event_kinds import EventKind

_DISK_PAUSE: Final = 1.0  # before what could not be written is written once more
_FILE_TIMEOUT: Final = 30.0

logger = logging.getLogger(__name__)


class PlanPublisher:
    """Stores each changed plan.

    Args:
        placement: What decides.
        desk: Told which version is stored.
        plan_file: Where it is stored.
        on_event: Told what the placement decided, and that a plan cannot be stored.
        note_table: Writes down how many shards there are, and which has which slots, where that
            outlasts the cluster; None where it does not. Blocks.

    Attributes:
        news: Notified when a plan was stored.
    """

    def __init__(
        self,
        placement: Placement,
        desk: HeartbeatDesk,
        plan_file: PlanFile,
        *,
        on_event: Callable[[EventKind, str, str], None],
        note_table: Callable[[int, SlotTable], None] | None,
    ) -> None:
        self._placement = placement
        self._desk = desk
        self._plan_file = plan_file
        self._on_event = on_event
        self._note_table = note_table
        self._noted = placement.plan.table
        self._requested = asyncio.Event()
        self._told_of_disk = False
        self.news = LoopCondition()

    def request(self) -> None:
        """Have `run` store what has changed."""
        self._requested.set()

    async def run(self) -> None:
        """Store the plan at each request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.publish()
            except (OSError, TimeoutError) as error:
                # No node acts on a plan that is not stored; another host would not have more room.
                logger.warning("what was decided cannot be written down: %s", error)
                if not self._told_of_disk:
                    self._on_event(EventKind.PLAN_NOT_WRITTEN, "", f"{error} (setting: scratch)")
                self._told_of_disk = True
                await anyio.sleep(_DISK_PAUSE)
                self._requested.set()
            else:
                self._told_of_disk = False
                self.news.notify()

    async def publish(self) -> None:
        """Emit what was decided, and store the plan if it has changed.

        Raises:
            OSError, TimeoutError: If it cannot be stored.
        """
        for event in self._placement.take_events():
            self._on_event(*event)
        if not self._desk.must_publish:
            return
        plan = self._placement.plan
        version, table, encoded = plan.version, plan.table, msgspec.json.encode(plan)
        if self._note_table is not None and table is not None and table != self._noted:
            await on_daemon_thread(_FILE_TIMEOUT, self._note_table, len(plan.shards), table)
            self._noted = table
        await on_daemon_thread(_FILE_TIMEOUT, self._plan_file.write, encoded)
        self._desk.published = version
