"""The actor of a replica: leads or follows, as its supervisor tells it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Raw

from flowgentic_actors.actors.actor import ActorContext, Call, Postponed
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.errors import (
    FlowgenticError,
    JournalDamagedError,
    RejectedError,
)
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.memory_tier import TierMaker, tier_maker
from flowgentic_actors.shard.peer_protocol import PullSlots, decode_peer_request
from flowgentic_actors.shard.progress import Progress, ReplicationStatus, encode_progress
from flowgentic_actors.shard.replication.follower import (
    ReplicationFollower,
    is_incomplete,
    write_term,
)
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.settings import ActorArguments, ActorSettings
from flowgentic_actors.wire.addresses import Address

_RECOVERY = 7 * 86_400.0
_FILE_TIMEOUT = 60.0
_LAST_MOMENT, _QUIET = 2.0, 0.2  # for the leader's last entries, at most, and without any

logger = logging.getLogger(__name__)


def make_replica_actor(arguments: Raw) -> ReplicatedShardActor:
    """Make the actor of a replica; see `actors.spec.ChildSpec.factory`."""
    given = msgspec.json.decode(arguments, type=ActorArguments)
    return ReplicatedShardActor(given.folder, given.settings, tier_maker(given))


class ReplicatedShardActor:
    """The actor of a replica; it opens no shard before its first assignment.

    Args:
        folder: The copy's private folder.
        settings: As for a `ShardActor`. Where `ack` does not wait for the follower, a write travels
            there behind its acknowledgement.
        make_tier: As for a `ShardActor`.
    """

    def __init__(
        self, folder: str, settings: ActorSettings, make_tier: TierMaker | None = None
    ) -> None:
        self._folder = Path(folder)
        self._settings = settings
        self._make_tier = make_tier
        self._core: ShardActor | None = None
        self._leader: ReplicationLeader | None = None
        self._follower: ReplicationFollower | None = None
        self._assignment: Assignment | None = None
        self._wanted: Assignment | None = None
        self._task: asyncio.Task[None] | None = None  # that follows
        self._changing: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None
        self._context: ActorContext | None = None

    def start(self, context: ActorContext) -> None:
        """Wait for an assignment; see `Actor.start`."""
        self._context = context

    @property
    def _started(self) -> ActorContext:
        assert self._context is not None
        return self._context

    @property
    def takes_clients(self) -> bool:
        """Whether it leads; see `Actor.takes_clients`."""
        return self._leader is not None

    def on_message(self, body: Raw) -> None:
        """Lead or follow from now on; see `Actor.on_message`."""
        self._wanted = msgspec.msgpack.decode(body, type=Assignment)
        self._begin_to_change()

    def _begin_to_change(self) -> None:
        if self._changing is None:
            self._changing = asyncio.ensure_future(self._change())
            self._changing.add_done_callback(self._changed)

    def handle(self, call: Call) -> bytes | asyncio.Future[bytes] | Postponed:
        """Carry out a command; see `Actor.handle`."""
        assert self._core is not None  # no client is let in before
        return self._core.handle(call)

    def was_slow(self, call: Call, seconds: float) -> None:
        """Report a slow request; see `Actor.was_slow`."""
        if self._core is not None:
            self._core.was_slow(call, seconds)

    def commit(self) -> asyncio.Future[None] | None:
        """Commit handled requests; see `Actor.commit`."""
        if self._broken is not None:
            raise self._broken
        return self._core.commit() if self._leader is not None and self._core else None

    def on_peer_request(self, body: Raw, answer: Callable[[bytes], None]) -> None:
        """Answer a follower, or a migration target; see `Actor.on_peer_request`."""
        if self._leader is None or self._core is None:
            raise RejectedError("this copy leads nobody")
        question = decode_peer_request(body)
        if isinstance(question, PullSlots):
            self._core.migrator.on_peer_request(question, answer)
        else:
            self._leader.on_follower_request(question, answer)

    def stats(self) -> dict[str, int]:
        """Counters of what the copy holds; see `Actor.stats`."""
        leading, following = self._leader, self._follower
        core = self._core or (following.core if following else None)
        return {
            **(core.stats() if core is not None else {}),
            "replica_lag": leading.lag if leading is not None else 0,
        }

    def report(self) -> Raw:
        """The replication and migration status; see `Actor.report`."""
        leading, following, assignment = self._leader, self._follower, self._assignment
        there = leading is not None or (following is not None and following.complete)
        replication = ReplicationStatus(
            term=assignment.term if assignment is not None and there else 0,
            leads=leading is not None,
            caught_up=leading is not None and leading.caught_up,
            sent_back=leading is not None and leading.resync_required,
            unanswered=int(following.unanswered) if following is not None else 0,
        )
        core = self._core
        return encode_progress(Progress(replication, core.migrator.status if core else None))

    async def drained(self) -> None:
        """Wait for a leader that ends at the same time to hand over all; see `Actor.drained`."""
        following, until = self._follower, time.monotonic() + _LAST_MOMENT
        while following is not None and time.monotonic() < until:
            await asyncio.sleep(_QUIET / 4)
            if time.monotonic() > max(following.took_at, until - _LAST_MOMENT) + _QUIET:
                break
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing], timeout=_FILE_TIMEOUT)
        await self._stop_following()  # what the change began is known only now
        if self._leader is not None and self._core is not None:
            await self._core.drained()

    def close(self) -> None:
        """Close the files; see `Actor.close`."""
        for task in (self._changing, self._task):
            if task is not None:
                task.cancel()
        core = self._core or (self._follower.core if self._follower else None)
        if core is not None:
            core.close()

    # ------------------------------------------------------------------ changing parts

    async def _change(self) -> None:
        """Lead or follow as assigned; a copy that has led never follows, but is made anew."""
        while self._wanted is not None:
            assignment, self._wanted = self._wanted, None
            if assignment.leads:
                if self._leader is None:
                    self._leader = await self._begin_to_lead(assignment)
                self._leader.begin_term(assignment)
                if assignment.ownership is not None and self._core is not None:
                    self._core.migrator.set_ownership(assignment.ownership)
                # After it: `report` must not tell the last term's of this one
                self._assignment = assignment
                self._started.report()
                await on_daemon_thread(_FILE_TIMEOUT, write_term, self._folder, assignment.term)
            elif (
                self._follower is not None
                and self._assignment
                and self._assignment.term == assignment.term
            ):
                if assignment.leader is not None and assignment.leader != self._assignment.leader:
                    self._follower.set_leader(assignment.leader)
                    self._assignment = assignment
            elif assignment.leader is not None:
                await self._begin_to_follow(assignment, assignment.leader)

    async def _begin_to_lead(self, assignment: Assignment) -> ReplicationLeader:
        await self._stop_following()
        core = self._follower.core if self._follower else None
        self._follower = None
        if core is None:
            if await on_daemon_thread(_FILE_TIMEOUT, is_incomplete, self._folder):
                raise JournalDamagedError(
                    f"the copy in {self._folder} was never whole, so it cannot lead in term "
                    f"{assignment.term}"
                )
            making = asyncio.ensure_future(on_daemon_thread(_RECOVERY, self._make))
            try:
                await asyncio.shield(making)
            finally:  # cancelled or not: a shard that is made is `close`'s to close
                core = self._core = await making
        self._core = core
        core.start(self._started)
        waits = self._settings.journal.ack.waits_for_follower
        return core.lead(waits=waits, on_change=self._started.report)

    async def _begin_to_follow(self, assignment: Assignment, leader: Address) -> None:
        if self._leader is not None:
            raise RejectedError("a copy that leads is ended, not made to follow")
        await self._stop_following()
        if self._follower is not None and self._follower.core is not None:
            await on_daemon_thread(_FILE_TIMEOUT, self._follower.core.close)
        self._assignment = assignment
        self._follower = ReplicationFollower(
            self._folder,
            make=self._make,
            term=assignment.term,
            leader=leader,
            context=self._started,
        )
        self._task = asyncio.ensure_future(self._follower.run())
        self._task.add_done_callback(self._break_with)

    async def _stop_following(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_FILE_TIMEOUT)
            self._task = None  # after it: a caller that is cancelled here leaves it to `drained`

    def _make(self) -> ShardActor:
        return ShardActor(str(self._folder), self._settings, self._make_tier)

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._changing = None
        self._break_with(task)
        if self._wanted is not None and self._broken is None and not task.cancelled():
            self._begin_to_change()

    def _break_with(self, task: asyncio.Task[None]) -> None:
        """End the actor with its task's error; the next incarnation tries again."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.error("this copy cannot go on", exc_info=error)
        self._broken = self._broken or error
        if not isinstance(error, FlowgenticError):
            self._broken = error
        self._started.wake()
