"""The plan on the disk: whatever happens to one file, the other one is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.errors import ClusterOpenError


def plan(version: int, shards: int = 3) -> ClusterPlan:
    made = [ShardPlan(shard=number, leader="a", term=version) for number in range(shards)]
    return ClusterPlan(version=version, shards=made, table=even_table(shards, 2))


def write(file: PlanFile, version: int, shards: int = 3) -> None:
    file.write(msgspec.json.encode(plan(version, shards)))


def test_the_one_that_was_written_last_is_read(tmp_path: Path) -> None:
    assert PlanFile(tmp_path).read() is None
    file = PlanFile(tmp_path)
    for version in range(1, 8):
        write(file, version, shards=version % 3 + 1)
        assert PlanFile(tmp_path).read() == plan(version, version % 3 + 1)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_the_next_host_goes_on_in_the_older_file(tmp_path: Path) -> None:
    for version in (5, 6, 7, 8):
        file = PlanFile(tmp_path)
        file.read()
        write(file, version)
        assert PlanFile(tmp_path).read() == plan(version)
    (tmp_path / "plan-2.json").unlink()  # which has the last one
    assert PlanFile(tmp_path).read() == plan(7)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, older: data[:100],
        lambda data, older: b"",
        lambda data, older: data[:200] + older[200:],  # half of each
        lambda data, older: os.urandom(500),
    ],
)
def test_a_writing_that_was_cut_off_leaves_the_plan_before(
    tmp_path: Path, damage: Callable[[bytes, bytes], bytes]
) -> None:
    file = PlanFile(tmp_path)
    for version in (1, 2, 3):
        write(file, version)
    newest, older = tmp_path / "plan.json", tmp_path / "plan-2.json"
    newest.write_bytes(damage(newest.read_bytes(), older.read_bytes()))
    again = PlanFile(tmp_path)
    assert again.read() == plan(2)
    write(again, 4)
    assert PlanFile(tmp_path).read() == plan(4)


def test_two_damaged_files_are_said_to_be_damaged(tmp_path: Path) -> None:
    file = PlanFile(tmp_path)
    write(file, 1)
    write(file, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"nonsense")
    with pytest.raises(ClusterOpenError, match="plan"):
        PlanFile(tmp_path).read()


def test_a_full_disk_has_room_for_the_next_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PlanFile(tmp_path)
    write(file, 1)
    write(file, 2)
    sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset + len(data) > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for version in range(3, 30):
        write(file, version, shards=3 + version % 5)
    assert PlanFile(tmp_path).read() == plan(29, 3 + 29 % 5)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == sizes
    with pytest.raises(OSError, match="space"):
        write(file, 30, shards=1000)
    assert PlanFile(tmp_path).read() == plan(29, 3 + 29 % 5)


def test_what_is_written_in_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:777], at))
    write(PlanFile(tmp_path), 1, shards=50)
    assert PlanFile(tmp_path).read() == plan(1, 50)
