"""The journal as its actor uses it: full disks, locks, foreign files, every length of an entry."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.errors import JournalDamagedError, JournalError, JournalLockedError
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.segment import DATA, ENTRY_OVERHEAD
from tests.support.counter import REPOSITORY

SEGMENT = 1024
ENTRIES = [b"first", b"", b"third entry", bytes(range(256))]


class Disk(RealDisk):
    """A disk that is full after so many bytes of one write, and may not even truncate."""

    room: int | None = None
    broken = False

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.room is None or len(data) <= self.room:
            super().write(fd, data, offset)
            return
        super().write(fd, data[: self.room], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    def truncate(self, fd: int, size: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(fd, size)


@contextmanager
def opened(folder: Path, disk: Disk | None = None) -> Iterator[tuple[Journal, list[bytes]]]:
    """An open journal, and what it replayed."""
    journal = Journal(disk or Disk(), folder, durable=False, segment_bytes=SEGMENT)
    try:
        yield journal, [payload for _, payload, _ in journal.replay()]
    finally:
        journal.close()


def replayed(folder: Path) -> list[bytes]:
    with opened(folder) as (_, entries):
        return entries


@settings(deadline=None)
@given(st.lists(st.lists(st.binary(max_size=1500), max_size=5), max_size=5), st.data())
def test_what_was_appended_is_replayed_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    expected: list[bytes] = []
    while batches:
        with opened(folder) as (journal, entries):
            assert entries == expected
            for _ in range(data.draw(st.integers(1, len(batches)))):
                batch = batches.pop(0)
                journal.append(batch)
                expected += batch
    assert replayed(folder) == expected


@pytest.mark.parametrize("left", range(ENTRY_OVERHEAD + 3))
def test_a_segment_may_be_filled_to_any_byte_of_its_end(tmp_path: Path, left: int) -> None:
    last = bytes(SEGMENT - DATA - 2 * ENTRY_OVERHEAD - left)
    journal = Journal(RealDisk(), tmp_path, durable=False, segment_bytes=SEGMENT)
    assert list(journal.replay()) == []
    journal.append([b"", last])
    journal._log.abandon()  # its process died here
    with opened(tmp_path) as (journal, entries):
        assert entries == [b"", last]
        journal.append([b"next"])
    assert replayed(tmp_path) == [b"", last, b"next"]


def test_a_full_disk_leaves_nothing_of_an_append_however_much_was_written(tmp_path: Path) -> None:
    batch = [b"not", b"this"]
    size = sum(map(len, batch)) + len(batch) * ENTRY_OVERHEAD
    disk = Disk()
    expected = list(ENTRIES)
    with opened(tmp_path, disk) as (journal, _):
        journal.append(ENTRIES)
        for room in range(size):
            before = journal.size
            disk.room = room
            with pytest.raises(JournalError, match=r"No space left.*scratch="):
                journal.append(batch)
            assert journal.size == before
            disk.room = None  # there is space again
            if room % 2:
                journal.append([b"%d" % room])
                expected.append(b"%d" % room)
    assert replayed(tmp_path) == expected


def test_an_append_that_cannot_be_taken_back_is_an_error_of_its_own(tmp_path: Path) -> None:
    disk = Disk()
    with opened(tmp_path, disk) as (journal, _):
        journal.append(ENTRIES)
        disk.room, disk.broken = 3, True
        with pytest.raises(OSError):  # no JournalError, which says that nothing happened
            journal.append([b"not this"])
        journal._log.abandon()
        disk.broken = False
    assert replayed(tmp_path) == ENTRIES


@pytest.mark.parametrize("head", [b"FGAS\x00\x00\x00\x63", b"GIF89a..", bytes(8)])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path: Path, head: bytes) -> None:
    with opened(tmp_path) as (journal, _):
        journal.append(ENTRIES)
    file = min(tmp_path.iterdir())
    data = head + file.read_bytes()[8:]
    file.write_bytes(data)
    with pytest.raises(JournalError):
        replayed(tmp_path)
    assert file.read_bytes() == data


def test_a_changed_length_in_the_middle_loses_nothing_without_a_word(tmp_path: Path) -> None:
    """It could look like a torn tail, and be cut off with all that follows."""
    journal = Journal(RealDisk(), tmp_path, durable=False, segment_bytes=SEGMENT)
    assert list(journal.replay()) == []
    journal.append(ENTRIES)
    journal._log.abandon()
    (file,) = (path for path in tmp_path.iterdir() if path.suffix == ".seg")
    data = file.read_bytes()
    for bit in range(32):
        changed = bytearray(data)
        changed[DATA + bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(changed)
        for _ in range(2):  # its actor is tried again, and must not find it cut off by then
            with pytest.raises(JournalDamagedError):
                replayed(tmp_path)
        assert file.read_bytes() == changed


# ---------------------------------------------------------------------- the lock


def test_a_shard_has_one_actor(tmp_path: Path) -> None:
    actor = ShardActor(str(tmp_path))
    with pytest.raises(JournalLockedError, match="another process"):
        ShardActor(str(tmp_path))
    actor.close()
    ShardActor(str(tmp_path)).close()


def test_the_death_of_an_actors_process_lets_go_of_its_journal(tmp_path: Path) -> None:
    code = (
        "import sys; from flowgentic_actors.shard.actor import ShardActor;"
        "actor = ShardActor(sys.argv[1]); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(JournalLockedError):
            ShardActor(str(tmp_path))
        process.kill()
        process.wait()
    ShardActor(str(tmp_path)).close()
