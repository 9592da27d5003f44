"""Copies of a shard, each with everything around it, as its process has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from flowgentic_actors.acknowledgement import AckName
from flowgentic_actors.actors.actor import ActorContext
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.journaling.compaction import compact
from flowgentic_actors.shard.progress import ReplicationStatus, decode_progress
from flowgentic_actors.shard.replication.leader import ReplicationLeader
from flowgentic_actors.shard.replication.replica_actor import (
    ReplicatedShardActor,
)
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.wire.server import Server
from tests.support.actor_settings import actor_settings
from tests.support.counter import SECRET, clear, until

LIMIT = 4 << 20
SEGMENT = 64 << 10

NAME = "shard-0"
"""The name of the actors of both copies."""

_encode = msgspec.msgpack.Encoder().encode


def context(name: str = NAME, wake: Callable[[], None] = lambda: None) -> ActorContext:
    """What an actor gets whose supervisor does not listen."""
    return ActorContext(name, SECRET, LIMIT, lambda kind, detail: None, lambda: None, wake)


class Copy:
    """One copy with everything around it, as its process has it.

    Attributes:
        folder: What stays when it ends.
        broken: Why it could not go on.
    """

    def __init__(self, folder: Path, ack: AckName = "replica", **changes: Any) -> None:
        self.folder = folder
        self.address = f"{folder}.sock"
        self.broken: list[str] = []
        self._settings = actor_settings(ack, **{"segment_bytes": SEGMENT, **changes})

    @property
    def status(self) -> ReplicationStatus:
        status = decode_progress(self.actor.report()).replication
        assert status is not None
        return status

    async def begin(self, part: Assignment | None = None) -> None:
        self.actor = ReplicatedShardActor(str(self.folder), self._settings)
        self.runtime = ActorRuntime(self.actor, Mailbox(1000, 16 << 20), self.broken.append, LIMIT)
        self.server = Server(self.runtime, SECRET, NAME, 1, LIMIT)
        self.actor.start(context(wake=self.runtime.wake))
        clear(Path(self.address))
        await self.server.listen(self.address)
        if part is not None:
            self.tell(part)

    def tell(self, part: Assignment) -> None:
        self.actor.on_message(Raw(_encode(part)))

    async def end(self) -> None:
        """An orderly end."""
        await self.server.close()
        await self.actor.drained()
        await asyncio.to_thread(self.actor.close)

    async def crash(self) -> None:
        """An end in which nothing is finished: what was not appended is not there."""
        await self.server.close()
        if self.actor._changing is not None:
            self.actor._changing.cancel()
            await asyncio.wait([self.actor._changing])
        await self.actor._stop_following()
        core = self.core_or_none
        if core is None:
            return
        if core._leader is not None:
            core._leader.close()
        if core._sweeping is not None:
            core._sweeping.cancel()
        core._compactor.close()
        await asyncio.to_thread(core._worker.close, 5.0)
        await asyncio.to_thread(core._journal.detach)
        core._lock.release()

    @property
    def core_or_none(self) -> ShardActor | None:
        follower_module = self.actor._follower
        return self.actor._core or (follower_module.core if follower_module else None)

    @property
    def core(self) -> ShardActor:
        assert self.core_or_none is not None
        return self.core_or_none

    @property
    def leading(self) -> ReplicationLeader:
        assert self.actor._leader is not None
        return self.actor._leader

    @property
    def leads(self) -> bool:
        return self.actor._leader is not None

    async def until_it_leads(self) -> None:
        await until(lambda: self.leads)

    def has_all_of(self, other: Copy) -> bool:
        core = self.core_or_none
        return core is not None and core.position == other.core.position

    async def until_it_has_all_of(self, other: Copy) -> None:
        await until(lambda: self.has_all_of(other))


def leads(
    term: int = 1,
    *,
    follower: bool = True,
    allow_single_copy: bool = False,
    follower_in_sync: bool = False,
) -> Assignment:
    return Assignment(
        0,
        "leader",
        term,
        follower="b" if follower else "",
        allow_single_copy=allow_single_copy,
        follower_in_sync=follower_in_sync,
    )


def follows(leader: Copy | str, term: int = 1) -> Assignment:
    address = leader if isinstance(leader, str) else leader.address
    return Assignment(0, "follower", term, address)


async def caught_up(leader: Copy) -> None:
    await until(lambda: leader.leads and leader.leading.caught_up)


async def compacted(core: ShardActor) -> None:
    """Compact what is sealed, now."""
    sealed = core._journal.sealed_to
    if sealed <= core._journal.compacted_to:
        return
    path = await asyncio.to_thread(compact, RealDisk(), core._journal._folder, sealed)
    assert path is not None
    core._compactor.remove(core._journal.adopt(await asyncio.to_thread(core._journal.check, path)))
