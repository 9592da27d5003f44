"""A memory on disk: its manifest, its shards, and who reads and holds it."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowgentic_actors.cluster.persistence.manifest import (
    FORMAT,
    MANIFEST,
    holds_memory,
    read_manifest,
)
from flowgentic_actors.cluster.persistence.memory_lock import HOLDER_FILE, SILENCE, LockOwner
from flowgentic_actors.cluster.persistence.snapshot import copy_shards, router, snapshot
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory, await_free
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.commands import PutItem
from flowgentic_actors.errors import (
    JournalDamagedError,
    JournalError,
    PersistError,
    PersistHeldError,
)
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader, holds_entries
from flowgentic_actors.storage.disk import RealDisk
from tests.support.shards import ask, compact_all, contents, some_commands, write
from tests.support.stored_memory import filled, opened

DATA = Path(__file__).parents[3] / "data"


def test_a_memory_is_private_and_says_whether_it_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memory"
    with opened(path, 2, name="team") as manifest:
        assert [folder.name for folder in manifest.folders(path)] == ["shard-0", "shard-1"]
        during = read_manifest(path)
        assert during is not None
        assert during.closed is None
    after = read_manifest(path)

    assert path.stat().st_mode & 0o777 == 0o700
    assert after is not None
    assert after.closed is not None
    assert (after.name, after.shards, after.namespace_depth) == ("team", 2, 2)
    with opened(path, 2):
        again = read_manifest(path)
    assert again is not None
    assert (again.created, again.generation) == (after.created, 1)


def change(path: Path, **fields: Any) -> None:
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(msgspec.json.encode({**manifest, **fields}))


def without_shard(path: Path) -> None:
    for file in (path / "generation-1" / "shard-1").iterdir():
        file.unlink()
    (path / "generation-1" / "shard-1").rmdir()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: change(path, format=FORMAT + 1, shards="many"), "is of format"),
        (lambda path: (path / MANIFEST).write_text('{"format": 1, "gen'), "is damaged"),
        (lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda path: change(path, shards=0), "is damaged"),
        (lambda path: change(path, shards="2"), "is damaged"),
        (lambda path: change(path, shards=1_000_000), "is damaged: 1000000 shards"),
        (lambda path: (path / MANIFEST).unlink(), "no manifest.json"),
        (without_shard, "there is no .*shard-1"),
        (lambda path: change(path, generation=2, check=0), "there is no .*generation-2"),
        (lambda path: change(path, shards=1), "is damaged: it is not what was written"),
    ],
)
def test_a_memory_that_is_not_whole_is_refused_and_left_alone(
    damage: Any, told: str, tmp_path: Path
) -> None:
    filled(tmp_path, 2)
    damage(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    for use in (StoredMemory(tmp_path).check, lambda: opened(tmp_path, 3).__enter__()):
        with pytest.raises(PersistError, match=told):
            use()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PersistError, match=r"not empty and not a memory .*thesis\.tex"):
        StoredMemory(tmp_path).check()


def test_a_path_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PersistError, match="persist_path="):
        StoredMemory(tmp_path / "file" / "memory").check()


def test_a_shard_that_lost_all_its_files_is_refused(tmp_path: Path) -> None:
    expected = filled(tmp_path, 2)
    for file in (tmp_path / "generation-1" / "shard-1").iterdir():
        file.rename(tmp_path / f".{file.name}")
    words = r"shard-1 has no log.end: files .* were removed. Restore"
    with pytest.raises(JournalDamagedError, match=words), opened(tmp_path, 2):
        pass
    with pytest.raises(JournalDamagedError, match=words):
        snapshot(tmp_path, tmp_path.with_name("copy"))
    assert holds_memory(tmp_path)
    for file in tmp_path.glob(".*"):
        file.rename(tmp_path / "generation-1" / "shard-1" / file.name[1:])
    with opened(tmp_path, 2) as manifest:
        assert contents(manifest.folders(tmp_path), even_table(2, 2)) == expected


def exchange(memory: Path, other: Path) -> None:
    generation = memory / "generation-1"
    for old, new in (("shard-0", "x"), ("shard-1", "shard-0"), ("x", "shard-1")):
        (generation / old).rename(generation / new)


def double(memory: Path, other: Path) -> None:
    replace_folder(memory / "generation-1/shard-1", memory / "generation-1/shard-0")


def take_another_ones(memory: Path, other: Path) -> None:
    replace_folder(memory / "generation-1/shard-1", other / "generation-1/shard-1")


def replace_folder(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


def take_another_ones_manifest(memory: Path, other: Path) -> None:
    shutil.copyfile(other / MANIFEST, memory / MANIFEST)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (exchange, "shard-0 is shard-1's"),
        (double, "shard-1 is shard-0's"),
        (take_another_ones, "shard-1 is another memory's"),
        (take_another_ones_manifest, "shard-0 is another memory's"),
    ],
)
def test_shards_in_the_place_of_others_are_refused(
    tmp_path: Path, damage: Any, told: str, shards: int
) -> None:
    memory, copy = tmp_path / "memory", tmp_path / "copy"
    expected = filled(memory, 2)
    snapshot(memory, copy)
    shutil.copytree(memory, tmp_path / "whole")
    damage(memory, copy)
    with pytest.raises(JournalDamagedError, match=told), opened(memory, shards):
        pass
    with pytest.raises(JournalDamagedError, match=told):
        snapshot(memory, tmp_path / "another")
    for whole in tmp_path / "whole", copy:
        with opened(whole, shards) as manifest:
            assert contents(manifest.folders(whole), even_table(shards, 2)) == expected


def test_shards_of_an_earlier_version_get_to_know_whose_they_are(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    for number in range(2):  # as that version would leave them
        end = tmp_path / "generation-1" / f"shard-{number}" / "log.end"
        note = end.read_bytes()
        end.write_bytes(b"".join(note[at : at + 64].ljust(512, b"\0") for at in (0, 512)))
    change(tmp_path, identity="", check=0)
    with opened(tmp_path, 2):
        pass
    exchange(tmp_path, tmp_path)
    with pytest.raises(JournalDamagedError, match="shard-0 is shard-1's"), opened(tmp_path, 2):
        pass


def test_a_memory_of_a_version_that_noted_no_ends_opens_and_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    shutil.copytree(DATA / "memory-without-notes", path)
    for each in path.rglob("*"):
        each.chmod(0o700 if each.is_dir() else 0o600)
    for _ in range(2):
        with opened(path, 1) as manifest:
            (folder,) = manifest.folders(path)
            actor = ShardActor(str(folder))
            try:
                stats = actor.stats()
            finally:
                actor.close()
            assert (stats["items"], stats["checkpoints"]) == (4, 3)
            assert manifest.noted
    (sealed,) = folder.glob("*.sealed")
    sealed.unlink()
    with pytest.raises(JournalDamagedError, match="removed or shortened"):
        ShardActor(str(folder))


def test_a_live_journal_is_read_up_to_its_last_whole_entry_and_not_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = even_table(1, 2)
    source, copy = tmp_path / "live", tmp_path / "copy"
    copy.mkdir()
    actor = ShardActor(str(source))
    assert not holds_entries(source)
    for number in range(20):
        ask(actor, PutItem(("n",), f"k{number}", ("msgpack", b"\x01")), number, number)
    (segment,) = source.glob("*.seg")
    whole = segment.read_bytes()
    ask(actor, PutItem(("n",), "half written", ("msgpack", bytes(500))), 20, 20)
    end = max(at for at, byte in enumerate(segment.read_bytes()) if byte)
    segment.write_bytes(segment.read_bytes()[: end - 100] + bytes(99) + b"\1")
    before = {p.name: p.read_bytes() for p in source.iterdir()}

    assert holds_entries(source)
    with OfflineReader(source, live=True) as reader:
        assert len(list(reader.entries())) == 20
    with OfflineReader(source) as reader, pytest.raises(JournalError, match="not what was written"):
        list(reader.entries())
    copy_shards(RealDisk(), [source], [copy], router(table), live=True)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not caplog.records  # nothing was cut
    segment.write_bytes(whole)
    actor.close()
    assert len(contents([copy], table)[1]) == 20


def test_readers_see_the_same_files_on_every_pass(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as manifest:
        folder = manifest.folders(tmp_path)[0]
        write([folder], even_table(1, 2), some_commands(random.Random(3), 200))
        with OfflineReader(folder) as reader:
            first = list(reader.entries())
            compact_all([folder])
            for segment in folder.glob("*.sealed"):
                segment.unlink()
            assert list(reader.entries()) == first
        assert first


def test_a_holder_that_seems_dead_is_waited_for(tmp_path: Path) -> None:
    with opened(tmp_path, 1):
        data = (tmp_path / HOLDER_FILE).read_bytes()
    elsewhere = msgspec.structs.replace(msgspec.json.decode(data, type=LockOwner), boot="another")
    (tmp_path / HOLDER_FILE).write_bytes(msgspec.json.encode(elsewhere))
    os.utime(tmp_path / HOLDER_FILE, (time.time() - SILENCE + 1.5,) * 2)
    started = time.monotonic()
    with pytest.raises(PersistHeldError):
        await_free(tmp_path, started + 0.5)
    assert time.monotonic() - started < 0.5  # it cannot be dead by then
    await_free(tmp_path, started + 10)
    assert 1 < time.monotonic() - started < 5


def test_one_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path, 1, name="first", job="slurm 17"):
        with pytest.raises(PersistHeldError, match=r"cluster 'first' \(host .*job slurm 17"):
            StoredMemory(tmp_path).check()
        with pytest.raises(PersistHeldError):
            opened(tmp_path, 1, name="second").__enter__()
    with opened(tmp_path, 1, name="second"):
        pass
