"""Maintenance of a journal that is written to: room ahead of the need, and compaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flowgentic_actors.engine import Shard
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker

_PER_RECORD: Final = 256  # bytes around a value in the journal, about
_MAKE_ROOM_EVERY: Final = 1.0
_LOOKS: Final = 64  # at the journal, while as much is appended as is allowed of garbage


class JournalMaintenance:
    """Allocates and compacts one journal; called by the journal's owner only.

    Args:
        journal: The journal.
        shard: The shard whose records it holds.
        compactor: Its compactor.
        worker: Its thread.
        garbage_allowed: Bytes of garbage beyond which compaction is considered.
        waits: Whether writes wait until a segment is allocated; otherwise the appending thread
            allocates it.
        hold: Whether the log must stay as it is for now: no compaction begins then.
    """

    def __init__(
        self,
        journal: Journal,
        shard: Shard,
        compactor: Compactor,
        worker: Worker,
        *,
        garbage_allowed: int,
        waits: bool,
        hold: Callable[[], bool] = lambda: False,
    ) -> None:
        self._journal = journal
        self._shard = shard
        self._compactor = compactor
        self._worker = worker
        self._garbage_allowed = garbage_allowed
        self._waits = waits
        self._preparing = False
        self._room_made = 0.0
        self._room = 0  # that there is at least since the last append
        self._appended = 0  # bytes since everything was last looked at
        self._look_after = garbage_allowed // _LOOKS
        self._hold = hold
        journal.on_begin(self._prepare)

    def check_room(self, size: int, *, urgent: bool) -> None:
        """Refuse a write that the journal has no room for.

        Args:
            size: Bytes that wait to be appended, the write's own included.
            urgent: Whether it wins space back.

        Raises:
            RoomWanted: If there is none before a segment is allocated.
            StorageError: If there is none.
        """
        if size <= self._room or self._journal.has_room(size, urgent=urgent):
            return
        shortage = self._journal.no_space
        if self._waits and (urgent or shortage is None):
            self._prepare()
            raise RoomWanted(size, urgent=urgent)
        if shortage is not None:
            raise self.refusal(shortage)

    def refusal(self, error: OSError) -> StorageError:
        """The error of a write without room for it; tries to free some."""
        if time.monotonic() >= self._room_made + _MAKE_ROOM_EVERY:
            self._room_made = time.monotonic()
            self._make_room()
        return StorageError(
            f"no room for this write in the journal: {error}. Free space there, delete what is "
            "not needed, or open the cluster with scratch= (or persist_path=) elsewhere. Reads go "
            "on, and what was acknowledged is kept"
        )

    def after_append(self, size: int) -> None:
        """Allocate ahead, and compact when half of the journal is garbage.

        Args:
            size: Bytes that were appended.
        """
        self._room -= size
        self._appended += size
        if self._appended < self._look_after and self._room > 0:
            return
        self._appended = 0
        self._room = self._journal.room
        if self._journal.wants_space:
            self._prepare()
        if (
            self._compactor.ready
            and not self._hold()
            and self._journal.size > 2 * self._live_bytes() + self._garbage_allowed
        ):
            self._compactor.start()

    def restore(self) -> None:
        """Recompute all state after an interrupted call."""
        self._room = 0
        self._preparing = False

    def _make_room(self) -> None:
        """Free what can be freed on a full disk, and try to allocate again."""
        if not self._hold() and (obsolete := self._journal.drop_older_set()):
            self._compactor.remove(obsolete)
        if self._compactor.ready and self._journal.size > self._live_bytes():
            self._compactor.start()
        self._prepare()

    def _prepare(self) -> None:
        if not self._preparing:
            self._preparing = True
            self._worker.put(self._prepare_now)

    def _prepare_now(self) -> None:
        self._preparing = False  # what is wanted from now on is another job
        self._journal.prepare()

    def _live_bytes(self) -> int:
        size = self._shard.size()
        return size.blob_bytes + _PER_RECORD * (size.items + size.checkpoints)
