"""A shard with a journal in the process that uses it, callable from any thread and loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from flowgentic_actors.engine.commands import (
    WRITES,
    Command,
)
from flowgentic_actors.engine.records import RECORDS, Record
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.engine.shard import DONE
from flowgentic_actors.errors import (
    ClusterClosedError,
    JournalError,
    JournalLockedError,
    OutcomeUnknownError,
    StorageError,
    UntrustedPathError,
)
from flowgentic_actors.foreign import is_foreign
from flowgentic_actors.shard.actor import LOCK_NAME
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.journaling.entries import (
    LogEntry,
    SessionTable,
    decode_entry,
    encode_entry,
    internal_entry,
)
from flowgentic_actors.shard.journaling.maintenance import JournalMaintenance
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted, WaitingLine
from flowgentic_actors.shard.settings import JournalSettings, ShardSettings
from flowgentic_actors.shard.sweeper import Sweeper
from flowgentic_actors.shard.writer import ShardWriter
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.group_commit_threads import (
    REOPEN,
    Blocking,
    Promise,
    ThreadGroupCommit,
    Waiter,
    settle_all,
)
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD
from flowgentic_actors.storage.worker import Worker

_LAST_WORK: Final = 5.0  # of the journal's thread, when the shard closes
_CLOSED: Final = "the cluster was closed before there was room in its journal: nothing was written"


class _WaitingCommand(NamedTuple):
    command: Command
    promise: Promise[Reply]
    loop: asyncio.AbstractEventLoop | None

    def answer(self, reply: Reply | None, error: Exception | None = None) -> None:
        settle_all([Waiter(reply, self.promise, self.loop)], error)


class JournaledShard:
    """A shard with every acknowledged write in its journal, and all values in memory.

    A write is appended before it is carried out and answered. Where that may take time (a sync for
    `ack="disk"`, a file system over a network) a thread commits for all who wait, and reads wait
    for the commit that they depend on. A commit that fails is final: all later calls say so.

    Args:
        folder: The shard's folder; what its journal holds is replayed first.
        journal: How its journal is written.
        settings: How much it keeps.
        disk: File operations.

    Raises:
        JournalError: If the journal cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        journal: JournalSettings = JournalSettings(),  # noqa: B008 - immutable
        settings: ShardSettings = ShardSettings(),  # noqa: B008 - immutable
        disk: Disk | None = None,
    ) -> None:
        self._file_lock = FileLock(folder / LOCK_NAME)
        if not self._acquire():
            raise JournalLockedError(f"the journal in {folder} is open in another process")
        self._mutex = threading.RLock()
        self._shard = settings.make_shard()
        self._writer = ShardWriter(self._shard, settings, self._keep)
        self._payloads: list[bytes] = []  # of the operation under way, for the group's next commit
        self._clock = Clock()
        self._sweeper = Sweeper(self._sweep, settings.sweep_seconds)
        # What is under way: an exception in its middle leaves it here, as in a `VolatileShard`.
        self._begun: Command | Record | None = None
        self._error: Exception | None = None
        self._foreign = False  # whether the files are another cluster's by now
        self._closed = False
        durable, segment_bytes = journal.ack.durable, journal.segment_bytes
        self._journal = Journal(
            disk or RealDisk(), folder, durable=durable, segment_bytes=segment_bytes
        )
        self._worker = Worker("journal")
        self._worker.start()  # here, where no caller's call can be interrupted in it
        self._compactor = Compactor(self._journal, folder, self._worker, self._as_owner)
        self._group: ThreadGroupCommit[Reply] | None = None
        grouped = durable or journal.appends == "thread"
        self._maintenance = JournalMaintenance(
            self._journal,
            self._shard,
            self._compactor,
            self._worker,
            garbage_allowed=segment_bytes,
            waits=not grouped,
        )
        self._line: WaitingLine[_WaitingCommand] = WaitingLine(
            self._journal,
            self._worker,
            carry_out=self._carry_out,
            refuse=lambda waiting, error: waiting.answer(None, self._maintenance.refusal(error)),
            call=self._as_owner,
        )
        try:
            self._replay()
            self._journal.prepare()
        except BaseException:
            self.close()
            raise
        if grouped:
            self._group = ThreadGroupCommit(
                self._journal,
                durable=durable,
                on_committed=self._committed,
                on_failed=self.fail,
            )

    def ask(
        self, command: Command, loop: asyncio.AbstractEventLoop | None
    ) -> Reply | Promise[Reply]:
        """Have the shard carry out a command.

        It blocks no longer than a write to a file that is open and allocated. All other work on
        files is the journal's thread's, and what depends on it waits for it.

        Args:
            command: The command.
            loop: The running event loop that asks, None for a thread that may block.

        Returns:
            The reply, or a future of it when it has to wait for a commit, or for room.

        Raises:
            RequestError: If it was not, or may not have been, carried out.
        """
        with self._mutex:
            if self._error is not None:
                raise self._error
            if self._begun is not None:
                self._complete()
            if self._line.waiting:
                return self._wait_for_room(command, loop, None)
            try:
                return self._execute(command, loop)
            except RoomWanted as wanted:
                self._begun = None
                return self._wait_for_room(command, loop, wanted)

    def stats(self) -> dict[str, int]:
        """Counters of what the shard holds."""
        with self._mutex:
            if self._begun is not None and self._error is None:
                self._complete()
            return {
                **msgspec.structs.asdict(self._shard.size()),
                "journal_bytes": self._journal.size,
                "compactions": self._compactor.done,
            }

    def fail(self, error: Exception) -> None:
        """Fail all further calls with an error."""
        with self._mutex:
            self._error = self._error or error
        self._compactor.close()

    def lose(self, error: Exception) -> None:
        """Fail, and leave the files alone: they belong to another process now."""
        self._foreign = True
        self.fail(error)
        if self._group is not None:
            self._group.refuse(error)

    def close(self) -> bool:
        """Commit pending entries, seal the journal and close it. Blocks.

        Returns:
            Whether all of that succeeded.
        """
        with self._mutex:
            if self._closed:
                return True
            self._closed = True
        self._sweeper.close()
        self._compactor.close()
        ended = self._group.close(_LAST_WORK) if self._group is not None else True
        self._worker.close(_LAST_WORK)
        with self._mutex:
            while self._line.waiting:
                self._line.waiting.popleft().answer(None, ClusterClosedError(_CLOSED))
            try:
                if not ended:
                    return False  # its thread hangs in the file system, with the files in use
                if self._foreign:
                    self._journal.detach()
                else:
                    self._journal.close()
            except OSError:  # not sealed: the next opening recovers what was acknowledged
                self._journal.detach()
                return False
            finally:
                self._file_lock.release()
        return self._error is None

    def after_fork(self) -> None:
        """Release the files that a forked child has inherited."""
        self._file_lock.forget()

    def _wait_for_room(
        self,
        command: Command,
        loop: asyncio.AbstractEventLoop | None,
        wanted: RoomWanted | None,
    ) -> Promise[Reply]:
        promise: Promise[Reply] = Blocking() if loop is None else loop.create_future()
        self._line.join(_WaitingCommand(command, promise, loop), wanted)
        return promise

    def _carry_out(self, waiting: _WaitingCommand) -> None:
        try:
            if self._error is not None:
                raise self._error
            if self._begun is not None:
                self._complete()
            answer = self._execute(waiting.command, waiting.loop)
        except RoomWanted:
            self._begun = None
            raise
        except Exception as error:  # noqa: BLE001 - raised where the answer is expected
            waiting.answer(None, error)
        else:
            assert not isinstance(answer, asyncio.Future | Blocking)  # only what is direct waits
            waiting.answer(answer)

    # ------------------------------------------------------------------ reads and writes

    def _execute(
        self, command: Command, loop: asyncio.AbstractEventLoop | None
    ) -> Reply | Promise[Reply]:
        if isinstance(command, WRITES):
            reply = self._writer.execute(command, self._clock.tick())
            if self._shard.any_expires:
                self._sweeper.start()
        else:
            if self._group is None and (read := self._shard.reads.get(type(command))) is not None:
                found = read(command)
                if found is not None:
                    return found
            self._begun = command
            reply = self._writer.query(command, self._clock.now())
        answer = reply if self._group is None else self._commit(self._group, reply, loop)
        self._begun = None
        return answer

    def _commit(
        self,
        group: ThreadGroupCommit[Reply],
        reply: Reply,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Promise[Reply]:
        payloads, self._payloads = self._payloads, []
        return group.commit(reply, payloads, loop)

    def _keep(self, entry: LogEntry, *, urgent: bool) -> None:
        """Append an entry, or have the group append it, and apply it; see `Keep`."""
        payload = encode_entry(entry)
        size = len(payload) + ENTRY_OVERHEAD
        group = self._group
        wanted = size if group is None else size + group.waiting_bytes
        self._maintenance.check_room(wanted, urgent=urgent)
        if self._begun is None or not isinstance(self._begun, RECORDS):
            self._begun = entry.record  # otherwise this is a part of what is under way
        if group is not None:
            self._payloads.append(payload)
            self._shard.apply(entry.record)
            return
        self._append(payload)
        self._shard.apply(entry.record)
        self._maintenance.after_append(size)

    def _complete(self) -> None:
        """Complete an interrupted operation, in memory and in the journal.

        Its entry may be in the journal twice then, which is the same as once.
        """
        begun, now_us = self._begun, self._clock.now()
        if begun is None:
            return
        if isinstance(begun, RECORDS):
            payload = encode_entry(internal_entry(begun, now_us))
            self._maintenance.restore()
            if self._group is None:
                self._mend()
                self._append(payload)
            else:
                self._payloads.append(payload)
        self._writer.redo(begun, now_us)
        if self._shard.any_expires:
            self._sweeper.start()
        if self._group is not None:
            self._commit(self._group, DONE)
        self._begun = None

    def _sweep(self) -> None:
        """Remove expired items and threads."""
        more = True
        while more:
            with self._mutex:  # others get their turn in between
                if self._closed or self._error is not None:
                    return
                self._complete()
                more = self._writer.expire(self._clock.now())
                if more and self._group is not None:
                    self._commit(self._group, DONE)
                self._begun = None

    def _append(self, payload: bytes) -> None:
        try:
            self._journal.append([payload])
        except JournalError as error:
            told = StorageError(f"{error}. {REOPEN}")
            self.fail(told)
            raise told from error
        except OSError as error:
            if is_foreign(error):
                raise
            self.fail(StorageError(f"the journal could not be written earlier: {error}. {REOPEN}"))
            raise OutcomeUnknownError(
                f"the journal could not be written, nor the attempt be undone: {error}. {REOPEN}"
            ) from error

    def _committed(self, size: int) -> None:
        with self._mutex:
            if not self._closed:
                self._maintenance.after_append(size)

    def _mend(self) -> None:
        try:
            self._journal.mend()
        except OSError as error:
            if not is_foreign(error):
                self.fail(StorageError(f"the journal cannot be put in order: {error}. {REOPEN}"))
            raise

    def _as_owner(self, function: Callable[[], None]) -> None:
        with self._mutex:
            function()

    # ------------------------------------------------------------------ opening

    def _acquire(self) -> bool:
        try:
            return self._file_lock.acquire()
        except UntrustedPathError:
            raise
        except OSError:  # a file system without locks: who holds the memory was settled before
            return True

    def _replay(self) -> None:
        for _, payload, _ in self._journal.replay():
            entry = decode_entry(payload)
            self._clock.saw(entry.time_us)
            if not isinstance(entry, SessionTable):  # the journal keeps them for the next actors
                self._shard.apply(entry.record)
