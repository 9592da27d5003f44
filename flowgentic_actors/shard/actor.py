"""The memory actor: one shard, its journal, and the writes that it remembers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.actor import ActorContext, Call, Postponed
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
from flowgentic_actors.shard.background import begin
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.cold_reads import ColdReads
from flowgentic_actors.shard.commits import JournalCommits
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
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted, WaitingCalls
from flowgentic_actors.shard.memory_tier import MemoryTier, TierMaker, tier_maker
from flowgentic_actors.shard.migration.migrator import SlotMigrator
from flowgentic_actors.shard.peer_protocol import PullSlots, decode_peer_request
from flowgentic_actors.shard.progress import Progress, encode_progress
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.settings import ActorArguments, ActorSettings
from flowgentic_actors.shard.slow_requests import SlowRequests
from flowgentic_actors.shard.writer import ShardWriter
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.group_commit import entries_size
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import make_folders
from flowgentic_actors.storage.segment import ENTRY_OVERHEAD
from flowgentic_actors.storage.worker import Worker

LOCK_NAME = "journal.lock"

_LAST_WORK = 5.0  # of the journal's thread, when the actor closes

_decode_command = msgspec.msgpack.Decoder(Command).decode
_encode = msgspec.msgpack.Encoder().encode
_DONE = _encode(DONE)
_STORING = (ItemStored, CheckpointStored, WritesStored, BlobsKept)


def make_shard_actor(arguments: Raw) -> ShardActor:
    """Make the actor of a shard; see `actors.spec.ChildSpec.factory`."""
    given = msgspec.json.decode(arguments, type=ActorArguments)
    return ShardActor(given.folder, given.settings, tier_maker(given))


class ShardActor:
    """Serves a shard whose every acknowledged write is in its journal.

    Args:
        folder: The shard's private folder; what its journal holds is replayed first.
        settings: What it has in common with the actors of other shards.
        make_tier: Makes the tier that values come from when memory has let them go; None for none.

    Raises:
        JournalError: If the journal cannot be used.
    """

    def __init__(
        self,
        folder: str,
        settings: ActorSettings = ActorSettings(),  # noqa: B008 - immutable
        make_tier: TierMaker | None = None,
    ) -> None:
        path = Path(folder)
        make_folders(path)
        self._lock = FileLock(path / LOCK_NAME)
        if not self._lock.acquire():
            raise JournalLockedError(
                f"the journal in {folder} is open in another process; a shard has one actor"
            )
        journal, limits = settings.journal, settings.limits
        self._shard = limits.make_shard(settings.hot_bytes)
        self._clock = Clock()
        self._sessions = Sessions()
        self._journal = Journal(
            RealDisk(), path, durable=journal.ack.durable, segment_bytes=journal.segment_bytes
        )
        self._worker = Worker("journal")
        self._compactor = Compactor(self._journal, path, self._worker)
        try:
            self._replayed = self._replay()
            self._journal.prepare()
        except BaseException:
            self._close_files()
            raise
        self._maintenance = JournalMaintenance(
            self._journal,
            self._shard,
            self._compactor,
            self._worker,
            garbage_allowed=journal.segment_bytes,
            waits=journal.appends != "thread",
            hold=self._holds_log,
        )
        self._commits = JournalCommits(self._shard, self._journal, self._maintenance, settings)
        self._writer = ShardWriter(self._shard, limits, self._commits.keep)
        self.room = WaitingCalls(
            self._journal, self._worker, handle=self.handle, refusal=self._maintenance.refusal
        )
        """The requests that wait for room in the journal."""
        self._line = self.room.waiting
        self.cold_reads = ColdReads(
            self._shard, self._journal, self._worker, self.room, self._answer
        )
        """The queries that wait for values that memory has let go."""
        self.migrator = SlotMigrator(self, self._shard, self._journal, self._worker)
        """The migrations of slots, and which of them it owns."""
        self._leader: ReplicationLeader | None = None
        self._claimed = settings.claimed
        self._hot_keys = HotKeys(time.monotonic())
        self._sampling = sampling()
        self._sweep_seconds = limits.sweep_seconds
        self._hot_limit, self._make_tier = settings.hot_bytes, make_tier
        # There from the start on
        self._context: ActorContext | None = None
        self._slow: SlowRequests | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._memory_tier: MemoryTier | None = None

    def start(self, context: ActorContext) -> None:
        """Begin what goes on beside the requests; see `Actor.start`."""
        self._context, self._slow = context, SlowRequests(context.tell)
        self._sweeping = begin(self._sweep(context.wake))
        if self._make_tier is not None and self._hot_limit is not None:
            self._start_tier(self._make_tier, self._hot_limit, context)

    def _start_tier(self, make: TierMaker, hot_limit: int, context: ActorContext) -> None:
        def happened(kind: EventKind, detail: str) -> None:
            context.tell(kind, detail)
            memory_tier.notice()

        if (tier := make(happened)) is not None:
            memory_tier = MemoryTier(
                self._shard, tier, self._scan, lambda: self._journal.end, hot_limit // 2
            )
            self._memory_tier = memory_tier
            self.cold_reads.memory_tier = self._commits.memory_tier = memory_tier
            memory_tier.start()

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
        return self._commits.next_lsn

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
        self._leader = self._commits.leader = ReplicationLeader(
            self._journal, self._worker, waits=waits, on_change=on_change
        )
        return self._leader

    def _holds_log(self) -> bool:
        """Whether compaction has to wait: a follower or a migration reads the log."""
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
        size = entries_size(payloads)
        self._maintenance.check_room(size, urgent=True)
        self._journal.append(payloads)
        lsn = first
        for payload in payloads:
            self._take_in(lsn, decode_entry(payload))
            lsn += len(payload) + ENTRY_OVERHEAD
        self._commits.next_lsn = lsn
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
        return self._commits.commit()

    def stats(self) -> dict[str, int]:
        """What the shard holds."""
        return {
            **msgspec.structs.asdict(self._shard.size()),
            "hot_bytes": self._shard.hot_bytes,
            "cold_reads": self.cold_reads.values,
            **(self._memory_tier.stats() if self._memory_tier else {}),
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
        """End the memory tier, in order if that works; see `Actor.drained`."""
        if self._memory_tier is not None:
            await self._memory_tier.drained()

    def close(self) -> None:
        """Seal and close the journal."""
        self.cold_reads.close()
        self.room.close()
        self.migrator.close()
        if self._leader is not None:
            self._leader.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._memory_tier is not None:
            self._memory_tier.close()
        self._commits.close(_LAST_WORK)
        self._close_files()

    def _close_files(self) -> None:
        self._compactor.close()
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
                self._commits.keep(entry, urgent=not isinstance(record, _STORING))
            except RoomWanted as wanted:
                await self.room.make(wanted)
            else:
                return

    def stored(self) -> asyncio.Future[None]:
        """Have a commit soon; done when what was kept before is stored."""
        future = self._commits.stored()
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
