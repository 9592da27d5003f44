"""The memory actor: one shard, its journal, and the writes that it remembers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.actor import ActorContext, Call, Postponed
from flowgentic_actors.dragon.ddict.tier import DDictShard, why_no_ddict
from flowgentic_actors.engine.commands import (
    MAKES_ROOM,
    WRITES,
    CacheGet,
    CacheSet,
    Command,
    Query,
    WriteCommand,
)
from flowgentic_actors.engine.records import (
    BlobsKept,
    CheckpointStored,
    ItemStored,
    Record,
    WritesStored,
)
from flowgentic_actors.engine.shard import DONE
from flowgentic_actors.errors import (
    ColdValuesError,
    InvalidRequestError,
    JournalError,
    JournalLockedError,
    RejectedError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.cold_reads import ColdReads
from flowgentic_actors.shard.hot_keys import HotKeys, key_of, sampling
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.journaling.entries import (
    JournalEntry,
    LogEntry,
    SessionTable,
    decode_entry,
    internal_entry,
)
from flowgentic_actors.shard.journaling.maintenance import JournalMaintenance
from flowgentic_actors.shard.journaling.sessions import Sessions
from flowgentic_actors.shard.journaling.unwritten import Unwritten
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted, WaitingCalls
from flowgentic_actors.shard.memory_tier import CHUNK, MemoryTier
from flowgentic_actors.shard.migration.migrator import SlotMigrator
from flowgentic_actors.shard.peer_protocol import PullSlots, decode_peer_request
from flowgentic_actors.shard.progress import Progress, encode_progress
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.shard.slow_requests import SlowRequests
from flowgentic_actors.shard.writer import ShardWriter
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.group_commit_loop import LoopGroupCommit
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.log import SEGMENT_BYTES
from flowgentic_actors.storage.private_files import make_folders
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD
from flowgentic_actors.storage.worker import Worker

LOCK_NAME = "journal.lock"

logger = logging.getLogger(__name__)

_TIER_END, _TIER_KILL = 6.0, 2.0  # below close_timeout, in which the actor must have ended
_LAST_WORK = 5.0  # of the journal's thread, when the actor closes

_decode_command = msgspec.msgpack.Decoder(Command).decode
_encode = msgspec.msgpack.Encoder().encode
_DONE = _encode(DONE)
_STORING = (ItemStored, CheckpointStored, WritesStored, BlobsKept)


class ShardActor:
    """Serves a shard whose every acknowledged write is in its journal.

    Args:
        folder: The shard's private folder; what its journal holds is replayed first.
        ack: `"node"`: a write is acknowledged when it survives the death of any process.
            `"disk"`: when it survives the loss of power.
        appends: `"direct"`: the event loop appends to the journal, for files of this node.
            `"thread"`: a thread does, for file systems that may take their time.
        claimed: Not empty: it has no clients before it is told which slots are its own.
        segment_bytes: Size of a journal segment; compaction is considered from this much garbage.
        hot_bytes: Bytes of values to keep in memory; empty for all.
        settings: How much it keeps: `ShardSettings.encode`; empty for the defaults.
        tier_bytes: Size of the DDict that values come from when memory has let them go; empty for
            none, and always so outside a Dragon runtime.
        tier_managers: Processes of that DDict.
        tier_folder: Private folder, on this node, for its files.

    Raises:
        JournalError: If the journal cannot be used.
    """

    def __init__(
        self,
        folder: str,
        *,
        ack: Literal["node", "disk"] = "node",
        appends: Literal["direct", "thread"] = "direct",
        claimed: str = "",
        segment_bytes: str = str(SEGMENT_BYTES),
        hot_bytes: str = "",
        settings: str = "",
        tier_bytes: str = "",
        tier_managers: str = "1",
        tier_folder: str = "",
    ) -> None:
        path = Path(folder)
        make_folders(path)
        self._lock = FileLock(path / LOCK_NAME)
        if not self._lock.acquire():
            raise JournalLockedError(
                f"the journal in {folder} is open in another process; a shard has one actor"
            )
        keeps = ShardSettings.decode(settings)
        hot_limit = _number(hot_bytes)
        self._shard = keeps.make_shard(hot_limit)
        self._sweep_seconds = keeps.sweep_seconds
        self._sweeping: asyncio.Task[None] | None = None
        self._clock = Clock()
        self._sessions = Sessions()
        self._hot_keys = HotKeys(time.monotonic())
        self._sampling = sampling()
        self._durable, self._appends = ack == "disk", appends == "thread"
        self._group_commit: LoopGroupCommit | None = None
        self._journal = Journal(
            RealDisk(), path, durable=self._durable, segment_bytes=int(segment_bytes)
        )
        self._worker = Worker("journal")
        self._compactor = Compactor(self._journal, path, self._worker)
        self._maintenance = JournalMaintenance(
            self._journal,
            self._shard,
            self._compactor,
            self._worker,
            garbage_allowed=int(segment_bytes),
            waits=not self._appends,
            hold=self._holds_log,
        )
        self.room = WaitingCalls(
            self._journal, self._worker, handle=self.handle, refusal=self._maintenance.refusal
        )
        """Who waits for room in the journal."""
        self.cold_reads = ColdReads(
            self._shard, self._journal, self._worker, self.room, self._answer
        )
        """Who waits for values that memory has let go."""
        self._leader: ReplicationLeader | None = None
        self._context: ActorContext | None = None
        self._slow: SlowRequests | None = None
        self._claimed = bool(claimed)
        self._storing: list[asyncio.Future[None]] = []  # who waits for the next commit
        self.migrator = SlotMigrator(self, self._shard, self._journal, self._worker)
        """What it has to do with slots that move."""
        self._line = self.room.waiting
        # Without a limit, nothing is ever let go.
        tier = hot_limit is not None and why_no_ddict() is None
        self._tier_bytes = _number(tier_bytes) if tier else None
        self._tier_from = (hot_limit or 0) // 2
        self._tier_wanted = False
        self._tier_made_of = int(tier_managers), Path(tier_folder)
        self._tier: DDictShard | None = None
        self._memory_tier: MemoryTier | None = None
        self._tier_task: asyncio.Task[None] | None = None
        try:
            self._replayed = self._replay()
            self._journal.prepare()
        except BaseException:
            self.close()
            raise
        self._unwritten = Unwritten(self._shard, self._maintenance, self._journal.end)
        self._writer = ShardWriter(self._shard, keeps, self._unwritten.keep)

    def start(self, context: ActorContext) -> None:
        """Begin what goes on beside the requests; see `Actor.start`."""
        self._context, self._slow = context, SlowRequests(context.tell)
        self._sweeping = asyncio.ensure_future(self._sweep(context.wake))
        self._sweeping.add_done_callback(_log_defect)
        if self._tier_bytes is None:
            return

        def happened(kind: EventKind, detail: str) -> None:
            context.tell(kind, detail)
            memory_tier.notice()

        managers, folder = self._tier_made_of
        self._tier = DDictShard(
            total_bytes=self._tier_bytes,
            managers=managers,
            folder=folder,
            on_event=happened,
        )
        memory_tier = MemoryTier(self._shard, self._tier, self._scan, lambda: self._journal.end)
        self._memory_tier = self.cold_reads.memory_tier = memory_tier
        self._tier_task = asyncio.ensure_future(memory_tier.run())
        self._tier_task.add_done_callback(_log_defect)
        self._mirror_on()

    @property
    def takes_clients(self) -> bool:
        """Whether it knows its slots, if it has to; see `Actor.takes_clients`."""
        return not self._claimed or self.migrator.owned_slots is not None

    def on_message(self, body: Raw) -> None:
        """Answer for some slots from now on; see `Actor.on_message`."""
        assignment = msgspec.msgpack.decode(body, type=Assignment)
        if assignment.ownership is not None:
            self.migrator.set_ownership(assignment.ownership)

    def on_peer_request(self, body: msgspec.Raw, answer: Callable[[bytes], None]) -> None:
        """Answer another shard, which takes slots over; see `Actor.on_peer_request`."""
        question = decode_peer_request(body)
        if not isinstance(question, PullSlots):
            raise RejectedError("this shard has one copy: nobody follows it")
        self.migrator.on_peer_request(question, answer)

    # ------------------------------------------------------------------ two copies

    @property
    def position(self) -> int:
        """LSN after the last entry in the journal."""
        return self._journal.end

    @property
    def next_lsn(self) -> int:
        """LSN after the last entry, those included that wait to be appended."""
        return self._unwritten.end

    @property
    def lag(self) -> int:
        """Bytes of the journal that the follower does not have yet."""
        return self._leader.lag if self._leader is not None else 0

    @property
    def context(self) -> ActorContext:
        """What it may use of its process, from `start` on."""
        assert self._context is not None
        return self._context

    def lead(self, *, waits: bool, on_change: Callable[[], None]) -> ReplicationLeader:
        """Hand on what is written from now on; called once, on the loop, instead of `follow`.

        Args:
            waits: Whether what is acknowledged has to be with the follower too.
            on_change: Called when the follower has caught up, or has to start over.
        """
        self._leader = ReplicationLeader(
            self._journal, self._worker, waits=waits, on_change=on_change
        )
        return self._leader

    def _holds_log(self) -> bool:
        """Whether the log must stay as it is: somebody who has no copy of it reads on in it."""
        return self.migrator.holds_log or (self._leader is not None and self._leader.holds_log)

    def follow(self, first: int, payloads: Sequence[bytes]) -> None:
        """Take entries of the leader's journal into this one.

        Args:
            first: LSN of the first of them: this journal's end.
            payloads: The entries.

        Raises:
            RoomWanted: If a segment has to be allocated first; nothing has changed then.
            JournalError: If they do not follow what is there, or cannot be written.
        """
        if first != self._journal.end:
            raise JournalError(f"entries from {first} on do not follow {self._journal.end}")
        size = sum(len(payload) + ENTRY_OVERHEAD for payload in payloads)
        self._maintenance.check_room(size, urgent=True)
        self._journal.append(payloads)
        lsn = first
        for payload in payloads:
            self._take_in(lsn, decode_entry(payload))
            lsn += len(payload) + ENTRY_OVERHEAD
        self._unwritten.end = lsn
        self._maintenance.after_append(size)
        self._shard.cool(lsn)

    def handle(self, call: Call) -> bytes | asyncio.Future[bytes] | Postponed:
        """Carry out a command; see `Actor.handle`."""
        if self._line and not self.room.serving:
            return self.room.wait(call, None)
        try:
            try:
                command = _decode_command(call.body)
                if next(self._sampling):
                    self._hot_keys.saw(key_of(command), time.monotonic())
                if not isinstance(command, WRITES):
                    try:
                        return self._answer(command)
                    except ColdValuesError as cold:
                        return self.cold_reads.begin(command, cold.lsns)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InvalidRequestError(f"not a command: {error}") from error
            if self._leader is not None and not self._leader.may_write:
                if (owned_slots := self.migrator.owned_slots) is not None:
                    # What is not this shard's has nothing to wait for here
                    owned_slots.check(command)
                return self._leader.postpone()
            remembered = self._sessions.recall(call.session, call.seq)
            return self._write(command, call) if remembered is None else remembered
        except RoomWanted as wanted:
            if self.room.serving:
                raise
            return self.room.wait(call, wanted)

    def was_slow(self, call: Call, seconds: float) -> None:
        """Tell of a slow request; see `Actor.was_slow`."""
        assert self._slow is not None  # no request comes before the start
        self._slow.note(_decode_command(call.body), seconds)

    def commit(self) -> asyncio.Future[None] | None:
        """Append what was written to the journal, in one go; see `Actor.commit`."""
        if self._storing:
            return self._commit_and_tell()
        entries = self._unwritten.take()
        if self._durable or self._appends:
            return self._commit_later(entries)
        if self._leader is not None:
            return self._commit_leading(self._leader, entries)
        if entries:
            self._journal.append(entries)
            self._appended(self._unwritten.bytes)
        self._shard.cool(self._unwritten.end)
        return None

    def _commit_and_tell(self) -> asyncio.Future[None] | None:
        """Commit, and let those know who wait for it beside the requests."""
        storing, self._storing = self._storing, []
        committed = self.commit()
        if committed is None:
            _settle(storing)
        else:
            committed.add_done_callback(partial(_settle, storing))
        return committed

    def _commit_leading(
        self, leading: ReplicationLeader, entries: list[memoryview]
    ) -> asyncio.Future[None] | None:
        if entries:
            first = self._journal.end
            self._journal.append(entries)
            self._appended(self._unwritten.bytes)
            leading.appended(first, entries, self._unwritten.end)
        self._shard.cool(self._unwritten.end)
        return leading.wait(self._unwritten.end, wrote=bool(entries))

    def stats(self) -> dict[str, int]:
        """What the shard holds."""
        return {
            **msgspec.structs.asdict(self._shard.size()),
            "hot_bytes": self._shard.hot_bytes,
            "cold_reads": self.cold_reads.values,
            **(self._memory_tier.stats() if self._memory_tier else {}),
            **(self._tier.stats() if self._tier else {}),
            "journal_bytes": self._journal.size,
            "compactions": self._compactor.done,
            "replayed_writes": self._replayed,
            "sessions": len(self._sessions),
            **self._hot_keys.stats(time.monotonic()),
        }

    def report(self) -> Raw:
        """How far it is with slots that it takes over; see `Actor.report`."""
        return encode_progress(Progress(migration=self.migrator.status))

    async def drained(self) -> None:
        """Have Dragon end the DDict, in the hope that it does; see `Actor.drained`."""
        if self._tier is not None:
            await self._tier.end(_TIER_END)
            self._tier.close()
            await self._tier.wait_closed(_TIER_KILL)

    def close(self) -> None:
        """Seal and close the journal."""
        self.cold_reads.close()
        for future in self._storing:
            future.cancel()
        self.room.close()
        self.migrator.close()
        if self._leader is not None:
            self._leader.close()
        for task in (self._tier_task, self._sweeping):
            if task is not None:
                task.cancel()
        if self._tier is not None:
            self._tier.close()
        self._compactor.close()
        if self._group_commit is not None:
            self._group_commit.close()
        self._worker.close(_LAST_WORK)
        self._journal.close()
        self._lock.release()

    # ------------------------------------------------------------------ writes

    def _write(self, command: WriteCommand, call: Call) -> bytes:
        if (owned_slots := self.migrator.owned_slots) is not None:
            owned_slots.check(command)
        self._sessions.admit(call.session, call.low)
        now_us = self._clock.tick()
        answer, record = self._shard.decide(command, now_us)
        reply = _DONE if answer is DONE else _encode(answer)
        if record is not None:
            entry = LogEntry(call.session, call.seq, call.low, now_us, reply, record)
            self._writer.write(entry, urgent=type(command) in MAKES_ROOM)
        self._sessions.remember(call.session, call.seq, call.low, reply, now_us)
        return reply

    async def keep_moved(self, record: Record, time_us: int) -> None:
        """Carry out what another shard had, or has now.

        Raises:
            StorageError: If there is no room for it.
        """
        self._clock.saw(time_us)
        entry = internal_entry(record, time_us or self._clock.now())
        while True:
            try:
                # What is kept for deletions has to be there when it is to be forgotten again.
                self._unwritten.keep(entry, urgent=not isinstance(record, _STORING))
            except RoomWanted as wanted:
                await self.room.make(wanted)
            else:
                return

    def stored(self) -> asyncio.Future[None]:
        """Have a commit soon; done when what was kept before is stored."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._storing.append(future)
        self.context.wake()
        return future

    async def _sweep(self, wake: Callable[[], None]) -> None:
        """Forget what is over, for as long as the actor lives."""
        while True:
            await asyncio.sleep(self._sweep_seconds)
            if self.migrator.is_target:
                continue  # what is not shown may have been refreshed where it is
            now_us = self._clock.now()
            while self._writer.expire(now_us):
                wake()
                await asyncio.sleep(0)  # others get their turn in between

    def _commit_later(self, entries: list[memoryview]) -> asyncio.Future[None] | None:
        if self._group_commit is None:
            self._group_commit = LoopGroupCommit(
                self._journal, durable=self._durable, appends=self._appends
            )
        self._shard.cool(self._journal.end)
        # Reads wait as well while a commit is due: they may have seen what is not in it yet.
        if not entries:
            return self._group_commit.wait() if self._group_commit.behind else None
        if self._appends:
            size = sum(len(payload) + ENTRY_OVERHEAD for payload in entries)
            committed = self._group_commit.wait(entries)
            committed.add_done_callback(lambda _: self._appended(size))
        else:
            self._journal.append(entries)
            committed = self._group_commit.wait()
            self._appended(self._unwritten.bytes)
        return committed

    def _appended(self, size: int) -> None:
        self._unwritten.bytes -= size
        self._maintenance.after_append(size)
        if self._memory_tier is not None:
            self._mirror_on()

    def _mirror_on(self) -> None:
        """Have the mirror go on; a DDict is made for it once it may soon be needed."""
        if self._memory_tier is None or self._tier is None:
            return
        if not self._tier_wanted:
            # Until values are let go, nobody asks it for any, and it would hold all a second time.
            self._tier_wanted = self._shard.hot_bytes >= self._tier_from
        if self._tier_wanted and self._unwritten.end - self._memory_tier.position >= CHUNK:
            if not self._tier.generation:
                self._tier.start()
            self._memory_tier.notice()

    # ------------------------------------------------------------------ reads

    def _answer(self, query: Query) -> bytes:
        if (owned_slots := self.migrator.owned_slots) is not None:
            # Here, and not when it arrived: what is fetched first may not be its own any more.
            owned_slots.check(query)
            if isinstance(query, CacheGet | CacheSet):
                query = owned_slots.cached(query)
        return _encode(self._writer.query(query, self._clock.now()))

    def _scan(self, lsn: int, most: int) -> asyncio.Future[tuple[list[tuple[int, bytes]], int]]:
        return self._worker.submit(self._journal.scan, lsn, most)

    # ------------------------------------------------------------------ recovery

    def _replay(self) -> int:
        count = 0
        for lsn, payload, compacted in self._journal.replay():
            self._take_in(lsn, decode_entry(payload), compacted=compacted)
            count += 1
            if count % 64 == 0:
                self._shard.cool(lsn)
        self._shard.cool(self._journal.end)
        return count

    def _take_in(self, lsn: int, entry: JournalEntry, *, compacted: bool = False) -> None:
        """Carry out an entry that is in the journal."""
        self._clock.saw(entry.time_us)
        if isinstance(entry, SessionTable):
            self._sessions.restore(entry.sessions)
            return
        self._shard.apply(entry.record, lsn)
        if not compacted:  # the set has its sessions in one piece
            self._sessions.remember(entry.session, entry.seq, entry.low, entry.reply, entry.time_us)


def _settle(
    storing: Sequence[asyncio.Future[None]], committed: asyncio.Future[None] | None = None
) -> None:
    """Tell those who wait for a commit what became of it."""
    error = None
    if committed is not None:
        error = asyncio.CancelledError() if committed.cancelled() else committed.exception()
    for future in storing:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)


def _log_defect(task: asyncio.Task[None]) -> None:
    """Tell of a defect in what goes on beside the requests; the shard is whole without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s ended for good", task.get_coro(), exc_info=error)


def _number(text: str) -> int | None:
    return int(text) if text else None
