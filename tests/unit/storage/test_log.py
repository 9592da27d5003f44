"""The segment log: what survives a crash at any operation, and what damage is never served."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.log import SegmentLog
from flowgentic_actors.storage.sealed_end import NAME, read_end, write_end
from flowgentic_actors.storage.segment import Segment
from flowgentic_actors.testing.disk import Crash, SimulatedDisk
from tests.conftest import seeds

FOLDER = Path("/shard")
BATCHES = [
    [bytes([n]) * size for n, size in enumerate(sizes, 1)]
    for sizes in [(1,), (40, 0, 7), (300,), (90, 90), (5,), (700,), (1, 1, 1, 1), (200,), (33,)]
]
BEFORE, AFTER = b"a" * 16, b"b" * 16


def open_log(disk: SimulatedDisk, *, durable: bool = False, boot: bytes = BEFORE) -> SegmentLog:
    return SegmentLog(disk, FOLDER, durable=durable, segment_bytes=600, boot=boot)


def entries(log: SegmentLog) -> list[bytes]:
    return [payload for _, payload in log.recover(0)]


def write_all(
    disk: SimulatedDisk, *, durable: bool, ahead: bool = False
) -> tuple[list[bytes], list[bytes]]:
    """Append the batches until the disk crashes: what was acknowledged, what was under way.

    Args:
        disk: The disk.
        durable: Whether each batch is synced.
        ahead: Whether segments are allocated ahead, so that a thread names them later.
    """
    acknowledged: list[bytes] = []
    batch: list[bytes] = []
    try:
        log = open_log(disk, durable=durable)
        assert entries(log) == []
        for number, batch in enumerate(BATCHES):
            if ahead and number % 4 == 0:
                log.settle()
            if ahead:
                log.prepare()
            log.append(batch)
            if durable:
                log.sync(log.plan_sync())
            acknowledged += batch
        batch = []
        log.close()
    except Crash:
        pass
    return acknowledged, batch


def operations(*, durable: bool, ahead: bool = False) -> int:
    disk = SimulatedDisk()
    write_all(disk, durable=durable, ahead=ahead)
    return disk.operations


@pytest.mark.parametrize("ahead", [True, False])
def test_process_death_at_any_operation_loses_nothing_acknowledged(*, ahead: bool) -> None:
    for crash_at in range(operations(durable=False, ahead=ahead)):
        disk = SimulatedDisk(crash_at)
        acknowledged, under_way = write_all(disk, durable=False, ahead=ahead)
        found = entries(open_log(disk.after_process_death()))
        assert found[: len(acknowledged)] == acknowledged, crash_at
        assert found == [*acknowledged, *under_way][: len(found)], crash_at


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("seed", [None, *seeds(8)])
def test_power_loss_at_any_operation_loses_nothing_synced(seed: int | None, *, ahead: bool) -> None:
    for crash_at in range(operations(durable=True, ahead=ahead)):
        disk = SimulatedDisk(crash_at)
        acknowledged, under_way = write_all(disk, durable=True, ahead=ahead)
        rng = None if seed is None else random.Random(seed * 1000 + crash_at)
        found = entries(open_log(disk.after_power_loss(rng), durable=True, boot=AFTER))
        assert found[: len(acknowledged)] == acknowledged, crash_at
        assert found == [*acknowledged, *under_way][: len(found)], crash_at


@pytest.mark.parametrize("ahead", [True, False])
def test_a_crash_while_recovering_changes_nothing(*, ahead: bool) -> None:
    for crash_at in range(operations(durable=False, ahead=ahead)):
        first = SimulatedDisk(crash_at)
        write_all(first, durable=False, ahead=ahead)
        expected = entries(open_log(first.after_process_death()))
        for second_crash in range(8):
            again = first.after_process_death()
            again._crash_at = second_crash
            with contextlib.suppress(Crash):
                entries(open_log(again))
            assert entries(open_log(again.after_process_death())) == expected


def test_what_was_cut_off_is_not_in_the_way_of_what_is_appended_next() -> None:
    disk = SimulatedDisk(crash_at=4)
    acknowledged, _ = write_all(disk, durable=False)
    disk = disk.after_process_death()
    log = open_log(disk)
    before = entries(log)
    log.append([b"next"])
    assert entries(open_log(disk.after_process_death())) == [*before, b"next"]
    assert before[: len(acknowledged)] == acknowledged


@pytest.fixture(params=["named", "not named yet"])
def written(request: pytest.FixtureRequest) -> tuple[SimulatedDisk, list[bytes]]:
    disk = SimulatedDisk()
    log = open_log(disk)
    entries(log)
    for batch in BATCHES[:4]:
        if request.param == "not named yet":
            log.prepare()
        log.append(batch)
    return disk, [payload for batch in BATCHES[:4] for payload in batch]


def test_a_flipped_bit_is_detected_wherever_it_is(
    written: tuple[SimulatedDisk, list[bytes]],
) -> None:
    disk, payloads = written
    for path, file in disk._files.items():
        used = len(bytes(file.data).rstrip(b"\0"))
        for byte in range(used):
            damaged = disk.after_process_death()
            damaged.flip(path, byte, byte % 8)
            try:
                found = entries(open_log(damaged))
            except JournalError:
                continue
            # Nothing is in that part of the header, and the note of the end is there twice.
            assert 28 <= byte < 64 or path.name == NAME, (path, byte)
            assert found == payloads


def test_a_log_cut_at_any_byte_of_its_last_segment_keeps_its_whole_entries(
    written: tuple[SimulatedDisk, list[bytes]],
) -> None:
    disk, payloads = written
    path = max(path for path in disk._files if path.name != NAME)
    used = len(bytes(disk._files[path].data).rstrip(b"\0"))
    for length in range(64, used):
        cut = disk.after_process_death()
        cut._files[path].data[length:] = bytes(len(cut._files[path].data) - length)
        found = entries(open_log(cut))
        assert found == payloads[: len(found)]
        assert len(found) < len(payloads)


def test_a_missing_segment_is_detected(written: tuple[SimulatedDisk, list[bytes]]) -> None:
    disk, _ = written
    used = {path: bytes(file.data[64:]).strip(b"\0") for path, file in disk._files.items()}
    disk.unlink(min(path for path, data in used.items() if data))
    with pytest.raises(JournalDamagedError, match=r"is missing|not what was written"):
        entries(open_log(disk))


@pytest.mark.parametrize("boot", [BEFORE, AFTER], ids=["same boot", "after a boot"])
def test_a_sealed_log_that_lost_its_end_is_refused(boot: bytes) -> None:
    disk = SimulatedDisk()
    payloads, _ = write_all(disk, durable=False)
    last = max(path for path in disk._files if path.suffix == ".sealed")
    segment = Segment.open(disk, last)
    ends = [segment.offset(lsn) for lsn, _ in segment.entries()]
    assert len(ends) > 1
    for end in ends:  # the beginning of an entry is the end of the one before
        cut = disk.after_process_death()
        del cut._files[last].data[end:]
        with pytest.raises(JournalDamagedError, match=r"was sealed up to .* removed or shortened"):
            entries(open_log(cut, boot=boot))
    for gone in ([last], [path for path in disk._files if path.suffix == ".sealed"]):
        left = disk.after_process_death()
        for path in gone:
            left.unlink(path)
        with pytest.raises(JournalDamagedError, match=r"was sealed up to .* removed or shortened"):
            entries(open_log(left, boot=boot))
    assert entries(open_log(disk.after_process_death(), boot=boot)) == payloads


def test_a_log_without_a_note_of_its_end_opens_and_gets_one() -> None:
    disk = SimulatedDisk()
    payloads, _ = write_all(disk, durable=False)
    disk.unlink(FOLDER / NAME)
    log = open_log(disk)
    assert entries(log) == payloads
    assert read_end(disk, FOLDER) == log.end


def test_a_note_of_an_end_that_is_damaged_in_one_place_counts_and_in_both_is_refused() -> None:
    disk = SimulatedDisk()
    write_end(disk, FOLDER, 5)
    write_end(disk, FOLDER, 1 << 40)
    for place in 8, 520:
        damaged = disk.after_process_death()
        damaged.flip(FOLDER / NAME, place, 3)
        assert read_end(damaged, FOLDER) == 1 << 40
    damaged.flip(FOLDER / NAME, 8, 3)
    with pytest.raises(JournalDamagedError, match="not what was written"):
        read_end(damaged, FOLDER)


def test_a_note_that_is_interrupted_anywhere_is_the_old_one_or_the_new_one() -> None:
    for crash_at in range(12):
        disk = SimulatedDisk(crash_at)
        done = 0
        with contextlib.suppress(Crash):
            for end in 5, 6:
                write_end(disk, FOLDER, end)
                done = end
        for after in (disk.after_process_death(), disk.after_power_loss(random.Random(crash_at))):
            assert (read_end(after, FOLDER) or 0) in {done, min(6, (done or 4) + 1)}


def test_entries_keep_their_address(tmp_path: Path) -> None:
    log = SegmentLog(RealDisk(), tmp_path, durable=False, segment_bytes=600)
    assert list(log.recover(0)) == []
    addresses = [lsn for batch in BATCHES for lsn in log.append(batch)]
    payloads = [payload for batch in BATCHES for payload in batch]
    log.close()
    log = SegmentLog(RealDisk(), tmp_path, durable=False, segment_bytes=600)
    assert list(log.recover(0)) == list(zip(addresses, payloads, strict=True))
    log.close()


def test_forgotten_segments_are_removed_and_the_rest_is_found(tmp_path: Path) -> None:
    log = SegmentLog(RealDisk(), tmp_path, durable=False, segment_bytes=600)
    list(log.recover(0))
    addresses = [lsn for batch in BATCHES for lsn in log.append(batch)]
    middle = log.sealed()[1].end
    for segment in log.forget_below(middle):
        os.close(segment.fd)
        segment.path.unlink()
    log.close()
    log = SegmentLog(RealDisk(), tmp_path, durable=False, segment_bytes=600)
    assert [lsn for lsn, _ in log.recover(middle)] == [a for a in addresses if a >= middle]
    log.close()


def test_an_append_to_what_is_allocated_only_writes(tmp_path: Path) -> None:
    """An event loop appends, and may do nothing else to a file."""

    class OnlyWrites(RealDisk):
        appending = False

        def create(self, path: Path, size: int) -> int:
            assert not self.appending
            return super().create(path, size)

        def rename(self, source: Path, target: Path) -> None:
            assert not self.appending
            super().rename(source, target)

        def truncate(self, fd: int, size: int) -> None:
            assert not self.appending
            super().truncate(fd, size)

    disk = OnlyWrites()
    log = SegmentLog(disk, tmp_path, durable=False, segment_bytes=600)
    list(log.recover(0))
    for batch in BATCHES:
        log.make_room(800)
        disk.appending = True
        log.append(batch)
        disk.appending = False
    log.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".sealed", ".end"}
    log = SegmentLog(disk, tmp_path, durable=False, segment_bytes=600)
    assert [payload for _, payload in log.recover(0)] == [
        each for batch in BATCHES for each in batch
    ]
    log.close()


def test_a_failed_append_can_be_taken_back(tmp_path: Path) -> None:
    class Full(RealDisk):
        full = False

        def write(self, fd: int, data: bytes, offset: int) -> None:
            if not self.full:
                super().write(fd, data, offset)
                return
            super().write(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

    disk = Full()
    log = SegmentLog(disk, tmp_path, durable=False, segment_bytes=600)
    list(log.recover(0))
    log.append([b"kept"])
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        log.append([b"lost" * 20])
    log.take_back()
    disk.full = False
    log.append([b"next"])
    log.close()
    log = SegmentLog(disk, tmp_path, durable=False, segment_bytes=600)
    assert [payload for _, payload in log.recover(0)] == [b"kept", b"next"]
    log.close()
