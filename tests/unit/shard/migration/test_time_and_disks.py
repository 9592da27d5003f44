"""Moves of slots that take long, and those on disks that fail."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from pathlib import Path

import anyio
import pytest

from flowgentic_actors.engine.commands import Command, GetItem, PutCheckpoint, PutItem
from flowgentic_actors.engine.replies import ItemReply
from flowgentic_actors.engine.slots import slot_of_thread
from flowgentic_actors.errors import StorageError
from flowgentic_actors.shard import actor as actor_module
from flowgentic_actors.shard.journaling import maintenance
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.migration import source as source_module
from flowgentic_actors.shard.migration import target as target_module
from flowgentic_actors.shard.peer_protocol import PullSlots, SlotEntries
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.storage.disk import RealDisk
from tests.support.counter import PATIENCE, until
from tests.support.limited_disk import SmallDisk
from tests.support.migrating_shards import BLOB, Two, namespace_in, owned, raw, two

pytestmark = pytest.mark.anyio

compaction = Compactor.start


# ---------------------------------------------------------------------- time


async def test_what_is_read_at_the_source_meanwhile_is_not_over_at_the_target(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target hears late of what makes it live on."""
    limits = ShardSettings(sweep_seconds=0.02)
    async with two(place, limits=limits) as both:
        namespace = namespace_in(set(both.slots))
        own = namespace_in(owned(both, both.target))
        first, second = both.clients
        ttl = 400_000
        await first.ask(PutItem(namespace, "k", BLOB, ttl))
        both.start_move()
        await until(lambda: both.target.hides)
        asked = source_module.MigrationSource.on_peer_request
        monkeypatch.setattr(source_module.MigrationSource, "on_peer_request", lambda *_: None)
        await second.ask(PutItem(own, "k", BLOB, ttl))
        deadline = time.monotonic() + 3 * ttl / 1e6
        while time.monotonic() < deadline:
            reply = await first.ask(GetItem(namespace, "k", refresh=True))
            assert isinstance(reply, ItemReply)
            assert reply.row is not None
            await asyncio.sleep(0.05)
        reply = await second.ask(GetItem(own, "k"))
        assert reply == ItemReply(None)
        monkeypatch.setattr(source_module.MigrationSource, "on_peer_request", asked)
        monkeypatch.setattr(target_module, "_PATIENCE", 0.2)
        both.target.core.migrator._target.set_source(both.source.address)  # type: ignore[union-attr]
        both.hold()
        await both.done()
        both.commit()
        both.order()
        reply = await second.ask(GetItem(namespace, "k"))
        assert isinstance(reply, ItemReply)
        assert reply.row is not None
        await until(lambda: both.target.shard.size().items == 0)  # its time is over as well


# ---------------------------------------------------------------------- disks


class FailingDisk(RealDisk):
    """A disk whose syncs, once they are held, wait and then fail."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.fails = threading.Event()

    def sync(self, fd: int) -> None:
        if threading.current_thread().name == "journal-commit" and self.held.is_set():
            self.fails.wait(PATIENCE)
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


async def test_what_a_failing_disk_takes_back_at_the_source_is_not_lost_on_the_way(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given must not rest on a write that never came to be."""
    disk = FailingDisk()
    disks: list[RealDisk] = [disk]
    monkeypatch.setattr(actor_module, "RealDisk", lambda: disks.pop() if disks else RealDisk())
    monkeypatch.setattr(target_module, "_PATIENCE", 0.3)
    real, go_on = target_module.MigrationTarget._ask, asyncio.Event()

    async def ask(self: target_module.MigrationTarget, question: PullSlots) -> SlotEntries:
        if question.position:
            await go_on.wait()
        return await real(self, question)

    monkeypatch.setattr(target_module.MigrationTarget, "_ask", ask)
    async with two(place, ack="disk") as both:
        namespace = namespace_in(set(both.slots))
        first, second = PutItem(namespace, "k", ("", b"1")), PutItem(namespace, "k", ("", b"2"))
        await both.do(first)
        await both.do(PutItem(namespace, "large", ("", bytes(4000))))
        disk.held.set()
        position = both.source.core.position
        writing = asyncio.create_task(both.clients[0].ask(second))
        await until(lambda: both.source.core.position > position)
        both.start_move()
        with anyio.move_on_after(0.5):
            await until(lambda: both.target.take("position"))
        disk.fails.set()
        with pytest.raises(StorageError):
            await writing
        await until(lambda: both.source.broken)
        both.source.broken.clear()
        await both.source.crash()
        await both.source.begin(both.ownership(both.source))
        assert both.source.core.position == position
        both.order()
        go_on.set()
        await both.do(PutItem(namespace, "small", ("", bytes(300))))
        await both.finish()
        await both.check()
        assert await raw(both.target, GetItem(namespace, "k")) != ItemReply(None)


class TinyDisk(SmallDisk):
    segment = 32 << 10
    room = 4 * segment + 4096  # and the note of the log's end


async def test_a_target_whose_disk_is_full_fails_and_forgets_what_it_has_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for deletions is not used up by what is taken over."""
    monkeypatch.setattr(Compactor, "start", compaction)
    monkeypatch.setattr(maintenance, "_MAKE_ROOM_EVERY", 0.05)
    async with two(place, segment_bytes=TinyDisk.segment) as both:
        await both.target.end()
        with monkeypatch.context() as patched:
            patched.setattr(actor_module, "RealDisk", TinyDisk)
            await both.target.begin(both.ownership(both.target))
        own = PutItem(namespace_in(owned(both, both.target)), "k", ("", bytes(1000)))
        await both.do(own)
        threads = [f"{n}" * 33 for n in range(100, 999)]
        threads = [name for name in threads if slot_of_thread(name) in both.slots][:15]
        for thread in threads:
            for number in range(36):
                blob = ("", bytes(60))
                await both.do(PutCheckpoint(thread, "", f"{number}", None, blob, blob, {}, {}, {}))
        both.start_move()
        await until(lambda: both.target.take("failed"))
        assert not both.target.take("done")
        await both.do(PutItem(namespace_in(set(both.slots)), "k", BLOB))
        await both.check_union()
        both.give_up()
        await both.forgotten()
        await both.check_union()
        monkeypatch.setattr(TinyDisk, "room", TinyDisk.room + TinyDisk.segment)
        full = both.target.stats()["journal_bytes"]
        while both.target.stats()["journal_bytes"] > full / 2:
            await patiently(both, own)
        await both.check_union()


async def patiently(both: Two, command: Command) -> None:
    """Do what a full disk may refuse until space was won back."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await both.do(command)
            except StorageError:
                await anyio.sleep(0.05)
            else:
                return
