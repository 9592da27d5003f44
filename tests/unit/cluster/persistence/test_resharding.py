"""Re-sharding of a memory on disk, which may end at any point."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowgentic_actors.cluster.persistence import snapshot as snapshot_module
from flowgentic_actors.cluster.persistence.manifest import MANIFEST, read_manifest
from flowgentic_actors.cluster.persistence.snapshot import snapshot
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.commands import GetItem, PutItem
from flowgentic_actors.engine.replies import ItemReply
from flowgentic_actors.errors import JournalError, PersistError
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.testing.disk import Crash
from tests.support.shards import ask, compact_all, contents, write
from tests.support.stored_memory import filled, opened


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    depth=st.integers(1, 3),
)
def test_every_number_of_shards_holds_the_same(
    seed: int, counts: list[int], depth: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("memory")
    rng = random.Random(seed)
    expected = filled(path, counts[0], seed=seed)
    for shards in counts[1:]:
        with opened(path, counts[0]) as manifest:
            if rng.random() < 0.5:
                compact_all(manifest.folders(path))
        with opened(path, shards, depth) as manifest:
            assert contents(manifest.folders(path), even_table(shards, depth)) == expected
        counts[0] = shards
        with opened(path, shards, 2) as manifest:
            assert contents(manifest.folders(path), even_table(shards, 2)) == expected


class CrashingDisk(RealDisk):
    """The real disk until the process dies at an operation that changes something."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at
        self.operations = 0
        self._lock = threading.Lock()

    def _step(self) -> None:
        with self._lock:
            if self.operations == self.crash_at:
                raise Crash(f"at {self.operations}")
            self.operations += 1

    def create(self, path: Path, size: int) -> int:
        self._step()
        return super().create(path, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        try:
            self._step()
        except Crash:
            super().write(fd, data[: len(data) // 2], offset)
            raise
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def sync_folder(self, folder: Path) -> None:
        self._step()
        super().sync_folder(folder)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)


def test_a_crash_at_any_operation_of_a_re_sharding_changes_nothing_else(tmp_path: Path) -> None:
    expected = filled(tmp_path, 2)
    shards = 2
    for crash_at in range(1000):
        disk = CrashingDisk(crash_at)
        with contextlib.suppress(Crash), opened(tmp_path, 5 - shards, disk=disk):
            pass
        left = read_manifest(tmp_path)
        assert left is not None
        # The next opening finds the generation that the manifest names, and only that.
        with opened(tmp_path, left.shards) as manifest:
            assert contents(manifest.folders(tmp_path), even_table(left.shards, 2)) == expected
            assert len(list(tmp_path.glob("generation-*"))) == 1
        shards = left.shards
        if disk.operations < crash_at:
            break
    assert crash_at > 15  # it was crashed at every operation there is


def test_all_of_a_new_generation_is_on_the_medium_before_the_manifest_names_it(
    tmp_path: Path,
) -> None:
    done: list[tuple[str, str]] = []

    class Recording(RealDisk):
        def sync(self, fd: int) -> None:
            name = Path(f"/proc/self/fd/{fd}").readlink()
            done.append(("sync", str(name.relative_to(tmp_path))))

        def sync_folder(self, folder: Path) -> None:
            done.append(("sync", str(folder.relative_to(tmp_path))))

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            done.append(("rename", str(target.relative_to(tmp_path))))

        def write(self, fd: int, data: bytes, offset: int) -> None:
            super().write(fd, data, offset)
            name = Path(f"/proc/self/fd/{fd}").readlink()
            done.append(("write", str(name.relative_to(tmp_path))))

    filled(tmp_path, 1)
    with opened(tmp_path, 2, disk=Recording()):
        pass
    switched = done.index(("rename", MANIFEST))
    before, after = done[:switched], done[switched + 1 :]
    assert {("sync", "."), ("sync", "generation-2")} <= set(before)
    assert before[-1] == ("sync", "manifest.new")
    assert after[0] == ("sync", ".")
    for shard in ("generation-2/shard-0", "generation-2/shard-1"):
        of_shard = [step for step in before if step[1].startswith(shard)]
        steps = [kind if name != shard else "sync folder" for kind, name in of_shard]
        assert steps[-7:-3] == ["write", "sync", "rename", "sync folder"]
        assert steps[-3:] == ["write", "write", "sync"]  # how far it goes


def test_a_snapshot_of_a_memory_that_is_re_sharded_meanwhile_is_of_the_new_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = tmp_path / "memory", tmp_path / "copy"
    expected = filled(path, 1)
    with opened(path, 1) as manifest:
        old = manifest
    with opened(path, 2):
        pass
    (folder,) = old.folders(path)
    folder.mkdir(mode=0o700, parents=True)  # the removal of the old generation is half done
    folder.parent.chmod(0o700)
    manifests = iter([old])
    monkeypatch.setattr(
        snapshot_module, "read_manifest", lambda path: next(manifests, None) or read_manifest(path)
    )
    copied, _ = snapshot(path, target)
    assert copied.shards == 2
    assert contents(copied.folders(target), even_table(2, 2)) == expected


def test_the_first_opening_may_end_anywhere_too(tmp_path: Path) -> None:
    for crash_at in range(100):
        path, disk = tmp_path / str(crash_at), CrashingDisk(crash_at)
        with contextlib.suppress(Crash), opened(path, 2, disk=disk):
            pass
        with opened(path, 3) as manifest:
            assert contents(manifest.folders(path), even_table(3, 2)) == ([], [])
        if disk.operations < crash_at:
            break
    assert crash_at > 4


def test_a_retried_write_takes_effect_once_across_re_sharding(tmp_path: Path) -> None:
    first = PutItem(("team", "n1"), "key", ("msgpack", b"\x01"))
    second = PutItem(("team", "n1"), "key", ("msgpack", b"\x02"))
    with opened(tmp_path, 3) as manifest:
        write(manifest.folders(tmp_path), even_table(3, 2), [first, second])
    with opened(tmp_path, 2) as manifest:
        compact_all(manifest.folders(tmp_path))
    with opened(tmp_path, 4) as manifest:
        for folder in manifest.folders(tmp_path):  # wherever a client may send it now
            actor = ShardActor(str(folder))
            before = ask(actor, GetItem(first.namespace, "key"))
            assert ask(actor, first, seq=0) == ask(actor, second, seq=1)
            assert ask(actor, GetItem(first.namespace, "key")) == before
            actor.close()
    with opened(tmp_path, 1) as manifest:
        actor = ShardActor(str(manifest.folders(tmp_path)[0]))
        found = ask(actor, GetItem(first.namespace, "key"))
        actor.close()
    assert isinstance(found, ItemReply)
    assert found.row is not None
    assert found.row.value[1] == b"\x02"


def test_a_disk_that_is_full_leaves_the_old_memory_as_it_was(tmp_path: Path) -> None:
    class Full(RealDisk):
        def write(self, fd: int, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    expected = filled(tmp_path, 2)
    with pytest.raises(PersistError, match="No space left"), opened(tmp_path, 3, disk=Full()):
        pass
    assert not (tmp_path / "generation-2").exists()
    with opened(tmp_path, 2) as manifest:
        assert contents(manifest.folders(tmp_path), even_table(2, 2)) == expected


def test_closing_gives_a_re_sharding_up(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    memory = StoredMemory(tmp_path)
    memory.announce_end()
    with pytest.raises(JournalError, match="given up"):
        memory.open(name="x", instance="i", shards=3, namespace_depth=2)
    memory.close(orderly=False)
    with opened(tmp_path, 2) as manifest:
        assert manifest.generation == 1
