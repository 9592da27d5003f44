"""The folders of clusters on a node: what is removed, and that nobody is disturbed by it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowgentic_actors.cluster.persistence import cluster_folders
from flowgentic_actors.cluster.persistence.cluster_folders import (
    HOST_LOCK,
    MEMORY,
    OWNER_LOCK,
    claim_folder,
    is_live,
    remove_folder,
    retire,
)
from flowgentic_actors.cluster.protocol.host_spec import OrphanLimits
from flowgentic_actors.storage.lock import FileLock

KEPT = OrphanLimits(ttl=3600, bytes=1 << 30)


def _claim(root: Path, name: str, limits: OrphanLimits = KEPT) -> tuple[Path, FileLock]:
    return claim_folder(root, name, limits, time.monotonic() + 5)


def _fill(folder: Path) -> Path:
    """Put a memory there that holds something, as far as can be told."""
    inside = folder / MEMORY / "generation-1"
    inside.mkdir(parents=True)
    (folder / MEMORY / "manifest.json").write_text("not one")
    (inside / "segment").write_bytes(b"x" * 8192)
    return inside


@pytest.mark.parametrize("removing", [remove_folder, retire])
def test_a_folder_is_live_until_nothing_is_in_it(
    removing: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = _claim(tmp_path, "mine")
    FileLock(folder / HOST_LOCK).acquire()
    (folder / MEMORY / "generation-1").mkdir(parents=True)
    (folder / "host.log").write_text("")
    (folder / "link").symlink_to(tmp_path)
    seen: list[set[str]] = []

    def watch(name: str) -> None:
        remove = getattr(os, name)

        def watched(*arguments: object, **options: object) -> None:
            if not is_live(folder):
                seen.append({path.name for path in folder.iterdir()})
            remove(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("unlink", "rmdir"):
        watch(name)
    assert callable(removing)
    removing(folder)
    assert not folder.exists()
    assert tmp_path.is_dir(), "a link's target was removed"
    assert all(names <= {OWNER_LOCK, HOST_LOCK} for names in seen), seen
    lock.release()


def test_the_name_of_a_removed_folder_is_free(tmp_path: Path) -> None:
    folder, lock = _claim(tmp_path, "mine")
    _fill(folder)
    remove_folder(folder)
    again, other = _claim(tmp_path, "mine")
    assert (again, sorted(p.name for p in again.iterdir())) == (folder, [OWNER_LOCK])
    lock.release()
    other.release()


def test_a_folder_that_somebody_removed_is_no_trouble(tmp_path: Path) -> None:
    folder, lock = _claim(tmp_path, "mine")
    shutil.rmtree(folder)
    remove_folder(folder)
    retire(folder)
    lock.release()


def test_retiring_keeps_a_memory_and_the_locks(tmp_path: Path) -> None:
    folder, lock = _claim(tmp_path, "mine")
    inside = _fill(folder)
    (folder / "host.log").write_text("")
    retire(folder)
    assert {path.name for path in folder.iterdir()} == {OWNER_LOCK, MEMORY}
    assert (inside / "segment").is_file()
    lock.release()


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """An actor that has outlived its cluster makes and removes files."""
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            shard = folder / f"shard-{number}"
            shard.mkdir()
            for name in "abc":
                (shard / name).touch()
            shutil.rmtree(shard)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_orphan_may_change_while_it_is_looked_at(tmp_path: Path) -> None:
    folder, lock = _claim(tmp_path, "orphan")
    inside = _fill(folder)
    lock.release()
    with _changing(inside):
        for _ in range(200):
            other, held = _claim(tmp_path, "mine")
            remove_folder(other)
            held.release()
    assert (inside / "segment").is_file()


def test_orphans_that_are_old_or_too_much_are_removed(tmp_path: Path) -> None:
    for age, name in ((10, "new"), (20, "older"), (4000, "too-old")):
        folder, lock = _claim(tmp_path, name)
        _fill(folder)
        lock.release()
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (time.time() - age,) * 2)
    names = []
    one = cluster_folders._age_and_size(tmp_path / "new" / MEMORY)[1]
    for limits in (KEPT, OrphanLimits(ttl=3600, bytes=one)):
        folder, lock = _claim(tmp_path, "mine", limits)
        remove_folder(folder)
        lock.release()
        names.append(sorted(path.name for path in tmp_path.iterdir() if path.is_dir()))
    assert names == [["new", "older"], ["new"]]
