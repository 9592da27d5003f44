"""Group commit: one sync for all that wait, and a failed sync is final."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from flowgentic_actors.errors import JournalError
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.group_commit_loop import LoopGroupCommit
from flowgentic_actors.storage.journal import Journal

pytestmark = pytest.mark.anyio


class SlowDisk(RealDisk):
    """Counts syncs, holds them back until told, and fails them when told."""

    def __init__(self) -> None:
        self.syncs = 0
        self.release = threading.Event()
        self.release.set()
        self.fail = False

    def sync(self, fd: int) -> None:
        self.release.wait(10)
        self.syncs += 1
        if self.fail:
            raise OSError(5, "Input/output error")
        super().sync(fd)


def opened(disk: RealDisk, folder: Path) -> tuple[Journal, list[bytes]]:
    journal = Journal(disk, folder, durable=True)
    return journal, [payload for _, payload, _ in journal.replay()]


@pytest.fixture
async def disk() -> SlowDisk:
    return SlowDisk()


async def off_loop(journal: Journal) -> None:
    await asyncio.get_running_loop().run_in_executor(None, journal.close)


async def open_off_loop(disk: RealDisk, folder: Path) -> tuple[Journal, list[bytes]]:
    return await asyncio.get_running_loop().run_in_executor(None, opened, disk, folder)


async def test_everybody_who_waits_shares_the_next_sync(disk: SlowDisk, tmp_path: Path) -> None:
    journal, _ = await open_off_loop(disk, tmp_path)
    group_commit = LoopGroupCommit(journal, durable=True, appends=False)
    journal.append([b"the first segment is made, with a sync of its own"])
    disk.release.clear()
    journal.append([b"first"])
    first = group_commit.commit()
    await asyncio.sleep(0.05)  # its sync is under way
    before = disk.syncs
    others = []
    for number in range(50):
        journal.append([b"%d" % number])
        others.append(group_commit.commit())
    assert not first.done()
    disk.release.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, *others)
    assert disk.syncs - before <= 3  # the one under way, one for all others, a spare segment's
    await asyncio.to_thread(group_commit.close, 10)
    await off_loop(journal)


async def test_a_wait_covers_what_was_appended_before_it(disk: SlowDisk, tmp_path: Path) -> None:
    journal, _ = await open_off_loop(disk, tmp_path)
    group_commit = LoopGroupCommit(journal, durable=True, appends=False)
    for number in range(5):
        journal.append([b"entry %d" % number])
        async with asyncio.timeout(10):
            await group_commit.commit()
        assert not group_commit.behind
    await asyncio.to_thread(group_commit.close, 10)
    await off_loop(journal)
    again, found = await open_off_loop(disk, tmp_path)
    assert found == [b"entry %d" % number for number in range(5)]
    await off_loop(again)


async def test_a_failed_sync_fails_all_who_wait_and_leaves_only_what_was_synced(
    disk: SlowDisk, tmp_path: Path
) -> None:
    journal, _ = await open_off_loop(disk, tmp_path)
    group_commit = LoopGroupCommit(journal, durable=True, appends=False)
    journal.append([b"kept"])
    async with asyncio.timeout(10):
        await group_commit.commit()
    disk.fail = True
    journal.append([b"lost"])
    waiting = [group_commit.commit(), group_commit.commit()]
    for future in waiting:
        async with asyncio.timeout(10):
            with pytest.raises(JournalError, match="Input/output error"):
                await future
    disk.fail = False
    with pytest.raises(JournalError):
        await group_commit.commit()  # for ever: the actor ends and is started anew
    await asyncio.to_thread(group_commit.close, 10)
    again, found = await open_off_loop(RealDisk(), tmp_path)
    assert found == [b"kept"]
    await off_loop(again)


@pytest.mark.parametrize("appends", [False, True])
async def test_reads_wait_for_what_is_being_committed_and_sync_nothing_themselves(
    disk: SlowDisk, tmp_path: Path, appends: bool
) -> None:
    journal, _ = await open_off_loop(disk, tmp_path)
    group_commit = LoopGroupCommit(journal, durable=True, appends=appends)
    assert group_commit.pending() is None
    if not appends:
        journal.append([b"entry"])
    disk.release.clear()
    written = group_commit.commit([b"entry"] if appends else ())
    read = group_commit.pending()
    assert read is not None
    await asyncio.sleep(0.05)
    assert not written.done()
    assert not read.done()
    before = disk.syncs
    disk.release.set()
    async with asyncio.timeout(10):
        await asyncio.gather(written, read)
    assert disk.syncs - before <= 2  # the entry's, and a new segment's or a spare's
    assert group_commit.pending() is None
    await asyncio.to_thread(group_commit.close, 10)
    await off_loop(journal)
    again, found = await open_off_loop(disk, tmp_path)
    assert found == [b"entry"]
    await off_loop(again)
