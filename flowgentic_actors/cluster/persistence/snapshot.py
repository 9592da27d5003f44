"""Copies of a memory's shards, and of a memory as a whole while it may be open."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.persistence.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    generation_folder,
    generation_folders,
    make_generation,
    make_path,
    memory_path,
    new_identity,
    package_version,
    read_manifest,
    shard_folders,
    write_manifest,
)
from flowgentic_actors.cluster.persistence.memory_lock import is_held
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.records import (
    ItemDeleted,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    Record,
    ThreadsExpired,
)
from flowgentic_actors.errors import JournalError, PersistError
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader
from flowgentic_actors.shard.journaling.reshard import reshard
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.private_files import check_folder

_ATTEMPTS: Final = 5


def copy_shards(
    disk: Disk,
    old: list[Path],
    new: list[Path],
    route: Callable[[Record], int],
    *,
    owner: Callable[[Record], int] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    stop: threading.Event | None = None,
    live: bool = False,
) -> int:
    """Write what is alive in some shards' folders into others; see `reshard`."""
    with ExitStack() as readers:
        sources = [readers.enter_context(OfflineReader(folder, live=live)) for folder in old]
        size = sum(source.total_bytes for source in sources)
        return reshard(
            disk,
            sources,
            new,
            route,
            owner=owner,
            progress=lambda done: progress(done, size),
            stop=stop,
        )


def snapshot(path: Path, target: Path) -> tuple[Manifest, int]:
    """Copy a memory, open in a live cluster or not, into a new one.

    Each shard is copied as it was at one moment; what is written meanwhile may be in the copy of
    one shard and not yet in that of another.

    Args:
        path: The memory's folder; it is only read.
        target: Folder of the copy: it must not exist, or be empty.

    Returns:
        The copy's manifest, and the number of entries in it.

    Raises:
        PersistError: If there is no memory, or the copy cannot be written.
        JournalError: If a journal cannot be read.
    """
    disk = RealDisk()
    target = memory_path(target)
    try:
        made = not target.exists()
        if not made:
            check_folder(target)
        if not made and (not target.is_dir() or any(target.iterdir())):
            raise PersistError(f"{target} is there already: give a folder that is new or empty")
        if target.absolute().is_relative_to("/dev/shm"):  # noqa: S108
            raise PersistError(f"{target} is in /dev/shm, which does not outlive this node")
        make_path(disk, target)
        try:
            return _snapshot(disk, path, target)
        except BaseException:
            for folder in generation_folders(target):
                shutil.rmtree(folder, ignore_errors=True)
            (target / UNFINISHED).unlink(missing_ok=True)
            if made:
                shutil.rmtree(target, ignore_errors=True)
            raise
    except OSError as error:
        raise PersistError(f"cannot copy {path} to {target}: {error}") from error


def _snapshot(disk: Disk, path: Path, target: Path) -> tuple[Manifest, int]:
    for attempt in range(_ATTEMPTS):
        found = read_manifest(path)
        if found is None:
            raise PersistError(f"{path} is no memory: it has no {MANIFEST}")
        copy = msgspec.structs.replace(
            found,
            generation=attempt + 1,
            version=package_version(),
            closed=time.time(),
            noted=True,
            identity=new_identity(),
        )
        make_generation(disk, target, copy)
        live = is_held(path)
        written = 0
        try:
            for old, new in zip(shard_folders(path, found), copy.folders(target), strict=True):
                written += copy_shards(disk, [old], [new], lambda _: 0, live=live)
        except (PersistError, JournalError, FileNotFoundError):
            if read_manifest(path) == found:
                raise
            continue  # it was re-sharded, and the generation that was being read is gone
        write_manifest(disk, target, copy)
        for folder in generation_folders(target):
            if folder != generation_folder(target, copy.generation):
                shutil.rmtree(folder)
        return copy, written
    raise PersistError(f"{path} is re-sharded again and again: try again later")


def router(table: SlotTable) -> Callable[[Record], int]:
    """Tells the shard of a record."""

    def route(record: Record) -> int:
        match record:
            case ItemStored() | ItemDeleted():
                return table.of_namespace(record.namespace)
            case ItemsRefreshed() | ItemsExpired() | ThreadsExpired():
                raise AssertionError("it is of several shards, and nothing of it ever remains")
            case _:
                return table.of_thread(record.thread_id)

    return route
