"""Small files on a full disk: what is noted goes in the place of what was noted before."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from flowgentic_actors.actors.record import RECORD_FILE, ProcessRecord
from flowgentic_actors.cluster import history
from flowgentic_actors.cluster import holder as holders
from flowgentic_actors.cluster.history import HISTORY_FILE, History
from flowgentic_actors.cluster.holder import HOLDER_FILE, Hold, is_held, read_holder
from flowgentic_actors.cluster.persist import MANIFEST, StoredMemory
from flowgentic_actors.shard.following import TERM_FILE, read_term, write_term
from flowgentic_actors.storage.private import overwrite


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which no file gets larger, and no new one has room for anything."""
    write, pwrite = os.write, os.pwrite

    def refuse(descriptor: int, end: int) -> None:
        if end > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_write(descriptor: int, data: bytes) -> int:
        refuse(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) + len(data))
        return write(descriptor, data)

    def full_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        refuse(descriptor, offset + len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "write", full_write)
    monkeypatch.setattr(os, "pwrite", full_pwrite)


def test_what_is_overwritten_has_its_room_already(tmp_path: Path) -> None:
    path = tmp_path / "file"
    overwrite(path, b"one")
    size, inode = path.stat().st_size, path.stat().st_ino
    assert (size, path.stat().st_mode & 0o777) == (4096, 0o600)
    for data in (b"x" * 4096, b"", b"two"):
        overwrite(path, data)
        assert path.read_bytes().rstrip() == data
        assert (path.stat().st_size, path.stat().st_ino) == (size, inode)
    overwrite(path, b"y" * 5000)
    assert path.read_bytes().rstrip() == b"y" * 5000
    assert path.stat().st_size == 10_000


def test_what_has_no_room_is_refused(tmp_path: Path, full: None) -> None:
    with pytest.raises(OSError, match="space"):
        overwrite(tmp_path / "file", b"one")


def test_a_term_is_noted_in_the_place_of_the_last_one(tmp_path: Path) -> None:
    write_term(tmp_path, 9)
    before = (tmp_path / TERM_FILE).stat()
    write_term(tmp_path, 10)
    after = (tmp_path / TERM_FILE).stat()
    assert read_term(tmp_path) == 10
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_processes_are_noted_at_the_same_time_and_after_a_line_that_was_cut(
    tmp_path: Path,
) -> None:
    record = ProcessRecord(tmp_path)
    threads = [
        threading.Thread(target=record.note, args=(f"actor-{number}", number, os.getpid()))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.epochs() == {f"actor-{number}": number for number in range(20)}
    file = tmp_path / RECORD_FILE
    cut = file.read_bytes().rstrip()[:-10]
    file.write_bytes(cut.ljust(4096))
    record.note("next", 7, os.getpid())
    assert len(record.entries()) == 20
    assert ProcessRecord(tmp_path).epochs()["next"] == 7


def test_a_process_is_noted_on_a_full_disk(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    record = ProcessRecord(tmp_path)
    record.note("actor", 1, os.getpid())
    request.getfixturevalue("full")
    for epoch in range(2, 10):
        record.note("actor", epoch, os.getpid())
    assert record.epochs() == {"actor": 9}


def test_the_next_host_goes_on_counting_events_on_a_full_disk(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = History(tmp_path)
    for number in range(3):
        first.add("kind", "", f"event {number}")
    first.close()
    request.getfixturevalue("full")
    second = History(tmp_path)
    assert second.next_number == 3
    second.add("kind", "", "not on the disk")
    assert [event.detail for event in second.since(2)] == ["event 2", "not on the disk"]
    second.close()


def test_an_event_after_a_line_that_was_cut_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        events = History(tmp_path)
        events.add("kind", "", f"event {number}")
        events.close()
        with (tmp_path / HISTORY_FILE).open("ab") as file:
            file.write(b'{"number": 7, "ti')
    assert [event.detail for event in History(tmp_path).since(0)] == ["event 0", "event 1"]


def test_only_the_last_events_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_KEPT", 5)
    for _ in range(4):
        events = History(tmp_path)
        for _ in range(4):
            events.add("kind", "", "")
        events.close()
    assert [event.number for event in History(tmp_path).since(0)] == [11, 12, 13, 14, 15]
    assert len((tmp_path / HISTORY_FILE).read_bytes().splitlines()) == 5


def test_a_memory_is_held_again_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Hold(tmp_path)
    dead.take("name", "", lambda: None)
    dead.forget()

    def full_disk(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(holders, "write_private", full_disk)
    hold = Hold(tmp_path)
    hold.take("name", "", lambda: pytest.fail("the hold was lost"))
    assert is_held(tmp_path)
    assert read_holder(tmp_path) is not None
    hold.release()
    assert not (tmp_path / HOLDER_FILE).exists()
    with pytest.raises(OSError, match="space"):
        Hold(tmp_path).take("name", "", lambda: None)


def test_the_manifest_stays_as_it_is_for_the_next_host_of_one_cluster(tmp_path: Path) -> None:
    opened = []
    for instance in ("one", "one", "two"):
        memory = StoredMemory(tmp_path)
        memory.open(name="name", instance=instance, shards=2, namespace_depth=2)
        opened.append((tmp_path / MANIFEST).stat().st_ino)
        memory.close(orderly=False)
    assert opened[0] == opened[1] != opened[2]
