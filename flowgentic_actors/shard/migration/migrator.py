"""Slot migration at one shard's actor: as source, as target, and afterwards.

The target asks the source for what is stored of the slots: first for what was written before a
moment and is live, then for what has been written since. It stores all of it in its journal, and
hides it from requests. When it is nearly done, the source is told to freeze the slots: it refuses
requests for them, so there is an end. Once all is stored, the host tells both that the target
owns the slots; then the target shows them, and the source removes them.

Records are absolute, so what is told twice, or is overtaken by what is told later, does no harm: no
copy of one moment is needed. An attempt that ends anywhere has cost nothing but room, until what is
not shown is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import CacheClear
from flowgentic_actors.errors import RejectedError, StorageError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.background import begin
from flowgentic_actors.shard.migration.host import MigrationHost
from flowgentic_actors.shard.migration.ownership import OwnedSlots, SlotOwnership
from flowgentic_actors.shard.migration.source import MigrationSource
from flowgentic_actors.shard.migration.target import MigrationTarget
from flowgentic_actors.shard.peer_protocol import PullSlots
from flowgentic_actors.shard.progress import MigrationStatus
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker

_FULL: Final = 1.0  # seconds before what there is no room for is tried again


class SlotMigrator:
    """Carries out what one shard is told about slots; see the module.

    Args:
        host: The shard's actor.
        shard: The shard.
        journal: Its journal.
        worker: The thread that reads the journal.
    """

    def __init__(self, host: MigrationHost, shard: Shard, journal: Journal, worker: Worker) -> None:
        self._host = host
        self._shard = shard
        self._journal = journal
        self._worker = worker
        self.owned_slots: OwnedSlots | None = None
        """What this shard answers for, None for everything."""
        self._source: MigrationSource | None = None
        self._target: MigrationTarget | None = None
        self._task: asyncio.Task[None] | None = None  # that takes, or forgets
        self._stale = 0  # a move that an earlier incarnation began

    def set_ownership(self, ownership: SlotOwnership) -> None:
        """Own the given slots from now on, and migrate others."""
        before = self.owned_slots
        self.owned_slots = OwnedSlots(ownership)
        if before is None:
            self._source = MigrationSource(
                self._shard, self._journal, self._worker, ownership.depth, self._host.stored
            )
            self._stale = ownership.pull.move if ownership.pull is not None else 0
        assert self._source is not None
        if ownership.frozen_for != self._source.frozen_for:
            self._source.frozen_for = ownership.frozen_for
            self._source.held_from = self._host.next_lsn
        if before is None or before.ownership.owned != ownership.owned:
            # Whatever is cached for slots that come back some day would be out of date by then.
            self._shard.query(CacheClear(), 0)
        if (
            before is None
            or before.ownership.owned != ownership.owned
            or ownership.pull is not None
        ):
            self._shard.set_visible(self.owned_slots.shows_thread, self.owned_slots.shows_namespace)
        self._arrange(ownership, before)
        self._host.context.report()

    def _arrange(self, ownership: SlotOwnership, before: OwnedSlots | None) -> None:
        """Start the migration that was ordered; without one, remove slots that are not owned."""
        pull, taking = ownership.pull, self._target
        if pull is None:
            if (
                before is None
                or before.ownership.owned != ownership.owned
                or before.ownership.pull is not None
            ):
                self._begin(self._forget)
            return
        if pull.move == self._stale or pull.source is None:
            return  # the host hears that it is not done, or gives another order
        if taking is not None and taking.move == pull.move:
            taking.set_source(pull.source)
            return
        self._target = MigrationTarget(pull, self._host)
        self._begin(partial(self._take, self._target))

    @property
    def is_target(self) -> bool:
        """Whether entries of slots that another shard owns may be stored here."""
        return self.owned_slots is not None and self.owned_slots.ownership.pull is not None

    @property
    def holds_log(self) -> bool:
        """Whether compaction has to wait: a migration reads the log."""
        return self._source is not None and self._source.holds_log

    def on_peer_request(self, question: PullSlots, answer: Callable[[bytes], None]) -> None:
        """Answer the target of a migration from this shard.

        Raises:
            RejectedError: If it has to begin anew, or nothing is given away here.
        """
        if self._source is None:
            raise RejectedError("this shard gives nothing away")
        self._source.on_peer_request(question, answer)

    @property
    def status(self) -> MigrationStatus | None:
        """The status of the current or last migration to this shard; callable from any thread."""
        taking = self._target
        if taking is None:
            return None
        return MigrationStatus(
            taking.move, taking.steps, taking.near, taking.done, bool(taking.failed)
        )

    def close(self) -> None:
        """Cancel the running task."""
        if self._task is not None:
            self._task.cancel()

    # ------------------------------------------------------------------ beside the requests

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Replace the running task."""
        self._task = begin(self._after(self._task, work))

    @staticmethod
    async def _after(
        before: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        await work()

    async def _take(self, taking: MigrationTarget) -> None:
        await self._forget()  # an earlier attempt's
        await taking.run()
        if taking.failed:
            self._host.context.tell(EventKind.SLOTS_NOT_TAKEN, taking.failed)

    async def _forget(self) -> None:
        """Remove the entries of slots that are not owned, in small steps between requests."""
        for record in self._shard.purge_invisible():
            while record is not None:
                try:
                    await self._host.keep_moved(record, 0)
                    break
                except StorageError:
                    await asyncio.sleep(_FULL)
            if record is not None:
                await self._host.stored()
            await asyncio.sleep(0)
        if not self.is_target:
            self._shard.set_visible(None, None)
