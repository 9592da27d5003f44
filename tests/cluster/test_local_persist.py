"""`persist_path` in local mode: the same memory, written by the program's own process."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.acknowledgement import ACKS
from flowgentic_actors.cluster.persistence import memory_lock
from flowgentic_actors.engine.commands import Command, DeleteItem, GetItem, PutItem, SearchItems
from flowgentic_actors.engine.replies import Done, ItemPage, ItemReply, Reply
from flowgentic_actors.errors import (
    JournalLockedError,
    LocalClusterError,
    MemoryFailedError,
    OutcomeUnknownError,
    PersistHeldError,
    StorageError,
)
from flowgentic_actors.shard.embedded.journaled import JournaledShard
from flowgentic_actors.shard.journaling import maintenance
from flowgentic_actors.shard.settings import JournalSettings
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.group_commit_threads import Blocking
from flowgentic_actors.storage.mounts import is_in_memory, is_node_local
from tests.support.persisted_memory import check, fill, settings
from tests.support.processes import in_fork, python, wait_until

pytestmark = pytest.mark.anyio

WRITERS = """
    import asyncio, sys, threading
    from flowgentic_actors import MemoryCluster

    def write(memory, name):
        for n in range(10**6):
            memory.store.put((name, "deep"), f"key-{n % 50}", {"n": n})
            sys.stdout.write(f"{name} {n}\\n")
            sys.stdout.flush()

    async def main():
        path, ack = sys.argv[1:]
        settings = dict(mode="local", persist_path=path, ack=ack, segment_bytes=65536)
        async with MemoryCluster(**settings) as memory:
            names = [f"writer-{n}" for n in range(3)]
            await asyncio.gather(*(asyncio.to_thread(write, memory, name) for name in names))

    asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("persist")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def local(folder: Path, **more: Any) -> dict[str, Any]:
    return {"mode": "local", "persist_path": folder, **more}


def segments(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.seg")}


async def kinds(memory: MemoryCluster) -> set[str]:
    return {event.kind for event in await memory.recent_events()}


async def test_a_memory_goes_from_actors_to_a_program_and_back(folder: Path) -> None:
    async with MemoryCluster(**settings(persist_path=folder, actors_per_node=3)) as memory:
        await fill(memory, "actors")
    async with MemoryCluster(**local(folder)) as memory:
        assert {"persist_reopened", "resharded"} <= await kinds(memory)
        await check(memory, "actors")
        await fill(memory, "program")
        status = await memory.status()
        assert (status.mode, status.folder) == ("local", str(folder))
        assert status.actors[0].journal_bytes > 0
    async with MemoryCluster(**settings(persist_path=folder, actors_per_node=2)) as memory:
        await check(memory, "actors")
        await check(memory, "program")


@pytest.mark.parametrize("ack", ["node", "disk"])
async def test_a_killed_program_loses_nothing_that_was_acknowledged(folder: Path, ack: str) -> None:
    acknowledged: dict[str, int] = {}

    def kill() -> None:
        with python(WRITERS, str(folder), ack) as process:
            assert process.stdout is not None
            for _ in range(3000 if ack == "node" else 100):
                writer, n = process.stdout.readline().split()
                acknowledged[writer] = int(n)
            os.kill(process.pid, signal.SIGKILL)
            for line in process.stdout:
                if line.endswith("\n"):
                    acknowledged[line.split()[0]] = int(line.split()[1])

    await asyncio.to_thread(kill)
    async with MemoryCluster(**local(folder)) as memory:
        assert len(acknowledged) == 3
        for writer, last in acknowledged.items():
            found = {i.key: i.value["n"] for i in await memory.store.asearch((writer,), limit=100)}
            for n in range(max(0, last - 49), last):  # one more may have been written unseen
                assert found[f"key-{n % 50}"] in (n, n + 50)
            assert found[f"key-{last % 50}"] == last


async def test_garbage_is_compacted_beside_the_program(folder: Path) -> None:
    async with MemoryCluster(**local(folder, segment_bytes=65536)) as memory:
        for n in range(2000):
            await memory.store.aput(("a",), f"key-{n % 10}", {"n": n, "pad": "x" * 200})
        deadline = time.monotonic() + 90  # niced, beside whatever else runs
        while not (await memory.status()).actors[0].compactions:
            assert time.monotonic() < deadline
            await memory.store.aput(("a",), "more", {"n": 0})
            await asyncio.sleep(0.02)
    async with MemoryCluster(**local(folder)) as memory:
        found = await memory.store.asearch(("a",), limit=20)
        assert {i.value["n"] for i in found} - {0} == {*range(1990, 2000)}  # 0: if it was needed


async def test_one_cluster_at_a_time(folder: Path) -> None:
    async with MemoryCluster(**local(folder, name="first")):
        for second in (local(folder), settings(persist_path=folder)):
            with pytest.raises(PersistHeldError, match="'first'"):
                await MemoryCluster(**second).__aenter__()
    async with MemoryCluster(**settings(persist_path=folder, name="actors")):
        with pytest.raises(PersistHeldError, match="'actors'"):
            await MemoryCluster(**local(folder)).__aenter__()


async def test_a_fork_neither_writes_nor_keeps_the_memory_from_others(folder: Path) -> None:
    async with MemoryCluster(**local(folder)) as memory:
        await memory.store.aput(("a",), "key", {"n": 1})
        error = in_fork(lambda: memory.store.put(("a",), "key", {"n": 2}))
        assert isinstance(error, LocalClusterError)
        await memory.store.aput(("a",), "key", {"n": 3})
    async with MemoryCluster(**local(folder)) as memory:
        item = await memory.store.aget(("a",), "key")
        assert item is not None
        assert item.value == {"n": 3}


async def test_a_program_whose_memory_was_taken_stops_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_lock, "HEARTBEAT", 0.05)
    memory = MemoryCluster(**local(folder))
    await memory.__aenter__()
    await memory.store.aput(("a",), "key", {"n": 1})
    before = segments(folder)
    other = (folder / memory_lock.HOLDER_FILE).read_text().replace('"token":"', '"token":"0')
    (folder / memory_lock.HOLDER_FILE).write_text(other)

    async def lost() -> bool:
        return "memory_lost" in await kinds(memory)

    for _ in range(100):
        if await lost():
            break
        await asyncio.sleep(0.05)
    with pytest.raises(MemoryFailedError, match="another cluster took the memory"):
        await memory.store.aput(("a",), "key", {"n": 2})
    await memory.__aexit__(None, None, None)
    assert segments(folder) == before
    assert (folder / memory_lock.HOLDER_FILE).read_text() == other


# ---------------------------------------------------------------------- the shard itself


class Disk(RealDisk):
    """Full when told, slow to sync, and broken in two ways."""

    def __init__(self) -> None:
        self.full = self.failing = self.stuck = False
        self.syncs = 0
        self.release = threading.Event()
        self.release.set()

    def create(self, path: Path, size: int) -> int:
        if self.full and path.suffix == ".spare":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.failing:
            super().write(fd, data[: len(data) // 2], offset)
            raise OSError(errno.EIO, "Input/output error")
        super().write(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        if self.stuck:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self.release.wait(10)
        self.syncs += 1
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def blob(n: int) -> tuple[str, bytes]:
    return ("msgpack", b"%4d" % n * 50)


def ask(shard: JournaledShard, command: Command) -> Reply:
    answer = shard.ask(command, None)
    if isinstance(answer, Blocking):
        assert answer.wait(10)
        return answer.result()
    assert not isinstance(answer, asyncio.Future)
    return answer


def put(shard: JournaledShard, n: int) -> None:
    ask(shard, PutItem(("a",), f"key-{n}", blob(n)))


def stored(shard: JournaledShard) -> list[int]:
    page = ask(shard, SearchItems((), b"", 1000, 0))
    assert isinstance(page, ItemPage)
    return sorted(int(row.key.removeprefix("key-")) for row in page.rows)


def fill_up(shard: JournaledShard) -> int:
    """How many puts fit."""
    for done in range(1000):
        try:
            put(shard, done)
        except StorageError as error:
            assert "No space left" in str(error)  # noqa: PT017 - which of them is the question
            return done
    raise AssertionError("the disk was not full")


def test_a_full_disk_refuses_writes_and_is_freed_by_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_MAKE_ROOM_EVERY", 0.01)
    disk = Disk()
    shard = JournaledShard(tmp_path, journal=JournalSettings(segment_bytes=65536), disk=disk)
    disk.full = True
    done = fill_up(shard)
    assert stored(shard) == [*range(done)]
    assert shard.ask(DeleteItem(("a",), "key-0"), None) == Done()
    disk.full = False
    time.sleep(0.02)

    def fits() -> bool:
        try:
            put(shard, done)
        except StorageError:
            return False
        return True

    wait_until(fits)
    assert shard.close()
    again = JournaledShard(tmp_path)
    assert stored(again) == [*range(1, done + 1)]
    again.close()


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("appends", ["direct", "thread"])
def test_a_failed_append_is_final_and_nothing_of_it_is_kept(
    tmp_path: Path, appends: Any, stuck: bool
) -> None:
    disk = Disk()
    shard = JournaledShard(tmp_path, journal=JournalSettings(appends=appends), disk=disk)
    put(shard, 1)
    disk.failing, disk.stuck = True, stuck
    with pytest.raises(OutcomeUnknownError if stuck else StorageError, match="open it again"):
        put(shard, 2)
    disk.failing = disk.stuck = False
    with pytest.raises(StorageError, match="open it again"):
        stored(shard)
    assert not shard.close()
    again = JournaledShard(tmp_path)
    assert stored(again) == [1]
    again.close()


def test_a_failed_sync_is_final(tmp_path: Path) -> None:
    disk = Disk()
    shard = JournaledShard(tmp_path, journal=JournalSettings(ack=ACKS["disk"]), disk=disk)
    put(shard, 1)
    disk.failing = True
    disk.write = RealDisk().write  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="open it again"):
        put(shard, 2)
    disk.failing = False
    shard.close()
    again = JournaledShard(tmp_path)
    assert stored(again) == [1]
    again.close()


def test_threads_and_loops_share_a_sync_and_reads_wait_for_it(tmp_path: Path) -> None:
    disk = Disk()
    shard = JournaledShard(tmp_path, journal=JournalSettings(ack=ACKS["disk"]), disk=disk)
    put(shard, 0)
    disk.release.clear()
    before = disk.syncs
    done: list[int] = []

    async def on_loop(first: int) -> None:
        async def one(n: int) -> None:
            answer = shard.ask(PutItem(("a",), f"key-{n}", blob(n)), asyncio.get_running_loop())
            assert isinstance(answer, asyncio.Future)
            await answer
            done.append(n)

        await asyncio.gather(*(one(n) for n in range(first, first + 50)))

    def on_thread(n: int) -> None:
        put(shard, n)
        done.append(n)

    threads = [
        *(threading.Thread(target=asyncio.run, args=(on_loop(n),)) for n in (100, 200)),
        *(threading.Thread(target=on_thread, args=(n,)) for n in range(1, 11)),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: shard.stats()["items"] == 111)
    read = shard.ask(GetItem(("a",), "key-1"), None)
    assert not done
    assert isinstance(read, Blocking)
    disk.release.set()
    for thread in threads:
        thread.join(10)
    assert read.wait(10)
    assert isinstance(read.result(), ItemReply)
    assert len(done) == 110
    assert disk.syncs - before <= 3
    assert shard.close()


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    shard = JournaledShard(tmp_path)
    with pytest.raises(JournalLockedError):
        JournaledShard(tmp_path)
    shard.close()


def test_file_systems_over_a_network_are_told_from_local_ones(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "22 21 0:30 / /home rw shared:1 - nfs4 server:/home rw\n"
        "23 22 0:31 / /home/my\\040disk rw - xfs /dev/sdb rw\n"
        "24 21 0:32 / /odd rw - fuse.sshfs host: rw\n"
        "25 24 0:33 / /odd rw - ext4 /dev/sdc rw\n"
    )
    local = {"/": True, "/home/me": False, "/home/my disk/x": True, "/homes": True, "/odd/x": True}
    assert {path: is_node_local(Path(path), mounts) for path in local} == local
    assert not is_node_local(Path("/"), tmp_path / "missing")


def test_files_in_memory_are_told_from_those_on_a_disk(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:30 / /tmp rw - tmpfs tmpfs rw\n"
    )
    assert is_in_memory(Path("/tmp/flowgentic-0"), mounts)
    assert not is_in_memory(Path("/home"), mounts)
