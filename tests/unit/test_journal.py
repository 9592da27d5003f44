"""The journal: what was appended is replayed, and nothing else ever is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.errors import JournalDamagedError, JournalError, JournalLockedError
from flowgentic_actors.storage import journal as storage
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import EXIT_JOURNAL, FILE_NAME, Journal
from flowgentic_actors.storage.log import _DATA, _HEADER, SegmentLog
from tests.unit.counter import REPOSITORY

ENTRIES = [b"first", b"", b"third entry", bytes(range(256))]
HEAD = storage._ENTRY.size


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Journal, list[bytes]]]:
    """An open journal, and what it replayed."""
    journal = Journal(folder)
    try:
        yield journal, list(journal.replay())
    finally:
        journal.close()


def replayed(folder: Path) -> list[bytes]:
    with opened(folder) as (_, entries):
        return entries


def written(folder: Path, entries: list[bytes]) -> Path:
    """A journal with these entries; returns its file."""
    with opened(folder) as (journal, _):
        journal.append(entries)
    return folder / FILE_NAME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shard"


# ---------------------------------------------------------------------- append and replay


@settings(deadline=None)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=5), st.data())
def test_what_was_appended_is_replayed_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    expected: list[bytes] = []
    journal = Journal(folder)
    assert list(journal.replay()) == []
    for batch in batches:
        journal.append(batch)
        expected += batch
        assert journal.size == (folder / FILE_NAME).stat().st_size
        if data.draw(st.booleans()):
            journal.close()
            journal = Journal(folder)
            assert list(journal.replay()) == expected
    journal.close()
    assert replayed(folder) == expected


def test_a_new_journal_is_private_and_empty(folder: Path) -> None:
    assert replayed(folder) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_entries_larger_than_the_read_buffer_are_replayed(folder: Path) -> None:
    large = os.urandom(3 << 20)
    written(folder, [b"before", large, b"after"])
    assert replayed(folder) == [b"before", large, b"after"]


def test_appending_goes_on_where_replay_ended(folder: Path) -> None:
    written(folder, ENTRIES)
    with opened(folder) as (journal, _):
        journal.append([b"later"])
    assert replayed(folder) == [*ENTRIES, b"later"]


# ---------------------------------------------------------------------- cuts and damage


def test_a_cut_anywhere_leaves_the_whole_entries_before_it(folder: Path) -> None:
    data = written(folder, ENTRIES).read_bytes()
    ends = [storage._HEADER.size]
    for entry in ENTRIES:
        ends.append(ends[-1] + HEAD + len(entry))
    assert ends[-1] == len(data)
    for cut in range(len(data) + 1):
        (folder / FILE_NAME).write_bytes(data[:cut])
        whole = max(sum(end <= cut for end in ends) - 1, 0)
        with opened(folder) as (journal, entries):
            assert entries == ENTRIES[:whole]
            journal.append([b"after the cut"])
        assert replayed(folder) == [*ENTRIES[:whole], b"after the cut"]


def test_a_changed_bit_anywhere_is_noticed(folder: Path) -> None:
    file = written(folder, ENTRIES)
    data = file.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        file.write_bytes(changed)
        with pytest.raises(JournalError) as caught:
            replayed(folder)
        in_header = position < storage._HEADER.size
        assert (type(caught.value) is JournalDamagedError) is not in_header
        assert file.read_bytes() == changed  # and nothing is cut off that could still be saved


def test_a_length_that_reaches_beyond_the_end_is_no_torn_tail(folder: Path) -> None:
    """Else one changed bit would lose every entry after it without a word."""
    file = written(folder, ENTRIES)
    data = bytearray(file.read_bytes())
    data[storage._HEADER.size] ^= 0x40  # the first entry's length
    file.write_bytes(data)
    with pytest.raises(JournalDamagedError, match="does not match its checksum"):
        replayed(folder)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=100))
def test_rubbish_at_the_end_is_never_served(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    file = written(folder, ENTRIES)
    with file.open("ab") as end:
        end.write(rubbish)
    try:
        assert replayed(folder) == ENTRIES
    except JournalDamagedError:
        assert len(rubbish) >= HEAD


@pytest.mark.parametrize("head", [b"FGAJ\x00\x00\x00\x02", b"GIF89a..", bytes(8)])
def test_another_kind_of_file_is_refused_and_left_alone(folder: Path, head: bytes) -> None:
    file = written(folder, ENTRIES)
    data = head + file.read_bytes()[8:]
    file.write_bytes(data)
    with pytest.raises(JournalError, match="not a journal of format"):
        Journal(folder)
    assert file.read_bytes() == data


# ---------------------------------------------------------------------- failing appends


class Disk:
    """`os.write` of a disk that is full after so many bytes."""

    def __init__(self, room: int, step: int = 1 << 30) -> None:
        self._write = os.write
        self._room = room
        self._step = step

    def write(self, descriptor: int, data: bytes) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = min(self._room, self._step, len(data))
        self._room -= count
        return self._write(descriptor, data[:count])


def test_a_failed_append_leaves_nothing_however_much_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, ENTRIES)
    batch = [b"not", b"this"]
    for room in range(2 * HEAD + 7):
        with opened(folder) as (journal, _):
            size = journal.size
            monkeypatch.setattr(os, "write", Disk(room).write)
            with pytest.raises(JournalError, match=r"No space left.*scratch="):
                journal.append(batch)
            monkeypatch.undo()
            assert journal.size == size == (folder / FILE_NAME).stat().st_size
            journal.append([b"%d" % room])  # the disk has space again
    assert replayed(folder) == ENTRIES + [b"%d" % room for room in range(2 * HEAD + 7)]


def test_an_append_that_the_system_takes_in_pieces_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as (journal, _):
        monkeypatch.setattr(os, "write", Disk(1 << 30, step=7).write)
        journal.append(ENTRIES)
        monkeypatch.undo()
    assert replayed(folder) == ENTRIES


def test_a_failed_append_before_replay_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, ENTRIES)
    journal = Journal(folder)
    monkeypatch.setattr(os, "write", Disk(3).write)
    with pytest.raises(JournalError):
        journal.append([b"too early"])
    monkeypatch.undo()
    journal.close()
    assert replayed(folder) == ENTRIES


def test_an_append_that_cannot_be_taken_back_ends_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def end(code: int) -> None:
        raise Ended(code)

    with opened(folder) as (journal, _):
        monkeypatch.setattr(os, "write", Disk(3).write)
        monkeypatch.setattr(os, "ftruncate", refuse)
        monkeypatch.setattr(os, "_exit", end)
        with pytest.raises(Ended, match=str(EXIT_JOURNAL)):
            journal.append([b"not this"])
        monkeypatch.undo()
    assert replayed(folder) == []


# ---------------------------------------------------------------------- the lock


def test_a_journal_is_open_once(folder: Path) -> None:
    with opened(folder), pytest.raises(JournalLockedError, match="another process"):
        Journal(folder)
    assert replayed(folder) == []


def test_another_process_cannot_open_it_and_its_death_lets_go(folder: Path) -> None:
    code = (
        "import sys, pathlib; from flowgentic_actors.storage.journal import Journal;"
        "j = Journal(pathlib.Path(sys.argv[1])); list(j.replay()); j.append([b'theirs']);"
        "print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(JournalLockedError):
            Journal(folder)
        process.kill()
        process.wait()
        assert replayed(folder) == [b"theirs"]


def test_a_journal_that_cannot_be_opened_is_not_left_locked(folder: Path) -> None:
    file = written(folder, ENTRIES)
    data = file.read_bytes()
    file.write_bytes(b"something else")
    with pytest.raises(JournalError):
        Journal(folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        Journal(folder)
    shutil.rmtree(file)
    file.write_bytes(data)
    assert replayed(folder) == ENTRIES


def test_closing_twice_closes_nothing_of_others(folder: Path) -> None:
    journal = Journal(folder)
    journal.close()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]  # these get the same numbers
    journal.close()
    for descriptor in others:
        os.close(descriptor)  # would raise if it were closed already


# ---------------------------------------------------------------------- the segmented log


SEGMENT = 1024


@contextmanager
def log_in(folder: Path) -> Iterator[tuple[SegmentLog, list[bytes]]]:
    """A log, and what it recovered; left as by a process that dies."""
    folder.mkdir(exist_ok=True)
    log = SegmentLog(RealDisk(), folder, segment_bytes=SEGMENT, durable=False)
    try:
        yield log, [payload for _, payload in log.recover(0)]
    finally:
        log.abandon()


def recovered(folder: Path) -> list[bytes]:
    with log_in(folder) as (_, entries):
        return entries


def segment_of(folder: Path, entries: list[bytes]) -> tuple[Path, bytes, int]:
    """The segment with these entries, its content, and where they end."""
    with log_in(folder) as (log, _):
        log.append(entries)
        end = log.end
    (path,) = folder.iterdir()
    return path, path.read_bytes(), _DATA + end


def test_a_segment_cut_anywhere_holds_the_whole_entries_before_it(folder: Path) -> None:
    path, data, end = segment_of(folder, ENTRIES)
    ends = [_DATA]
    for entry in ENTRIES:
        ends.append(ends[-1] + (end - _DATA - sum(map(len, ENTRIES))) // len(ENTRIES) + len(entry))
    assert ends[-1] == end
    for cut in range(_DATA, end + 1):
        shutil.rmtree(folder)
        folder.mkdir()
        path.write_bytes(data[:cut].ljust(SEGMENT, b"\0"))
        assert recovered(folder) == ENTRIES[: sum(end <= cut for end in ends) - 1]


def test_a_changed_bit_anywhere_in_a_segment_is_noticed(folder: Path) -> None:
    path, data, end = segment_of(folder, ENTRIES)
    for position in range(end):
        if _HEADER.size <= position < _DATA:
            continue  # between header and entries nothing is read
        shutil.rmtree(folder)
        folder.mkdir()
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(JournalError):
            recovered(folder)


@pytest.mark.parametrize("left", range(16))
def test_a_segment_may_be_filled_to_any_byte_of_its_end(folder: Path, left: int) -> None:
    _, _, end = segment_of(folder, [b""])
    with log_in(folder) as (log, _):
        rest = SEGMENT - _DATA - 2 * (end - _DATA) - left
        log.append([b"", bytes(rest)])
    assert [len(entry) for entry in recovered(folder)] == [0, 0, rest]


def test_the_checksum_is_the_usual_one(folder: Path) -> None:
    """So that other tools can read a journal."""
    data = written(folder, [b"payload"]).read_bytes()[storage._HEADER.size :]
    length, crc, _ = storage._ENTRY.unpack(data[:HEAD])
    assert (length, crc) == (7, zlib.crc32(b"payload"))
