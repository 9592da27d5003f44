"""A cluster's memory on disk: below `persist_path`, or in the cluster's folder without it.

    <path>/                     0700
        manifest.json           format, generation, shards, ...; replaced in one step
        holder.lock holder.json who has it open
        generation-<N>/         the journals of the generation that the manifest names
            shard-0/ ...        one of each shard; a local cluster has one shard

Opening it for another number of shards, or another `namespace_depth`, writes the next generation
from the files of this one, switches the manifest, and removes the old files. Whatever ends that
at any point leaves one generation whole and the manifest naming it; the other one is removed by
the next opening.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.persistence.manifest import (
    FORMAT,
    Manifest,
    generation_folder,
    generation_folders,
    make_generation,
    make_path,
    new_identity,
    package_version,
    read_layout,
    read_manifest,
    unusable,
    write_manifest,
)
from flowgentic_actors.cluster.persistence.memory_lock import MemoryLock
from flowgentic_actors.cluster.persistence.snapshot import copy_shards, router
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings, reopened_index
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.errors import JournalLockedError, PersistHeldError, UntrustedPathError
from flowgentic_actors.shard.actor import LOCK_NAME
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import make_folder
from flowgentic_actors.storage.sealed_end import read_end, write_end, write_owner

_LET_GO: Final = 10.0  # for the actors of a host that was killed to end
_MOMENT: Final = 1.0
_POLL: Final = 0.05
_TOLD: Final = 5.0  # seconds between two lines about progress

logger = logging.getLogger(__name__)


class StoredMemory:
    """One cluster's hold on its memory on disk. Everything here blocks.

    Args:
        path: The memory's folder.
        disk: File operations.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = disk or RealDisk()
        self._memory_lock = MemoryLock(path)
        self._opening = threading.Lock()
        self._stop = threading.Event()
        self._manifest: Manifest | None = None
        self.doing = f"opening {path}"
        """What takes time, in words."""

    def check(self) -> None:
        """Raise what `open` would, as far as that can be told without taking hold of it.

        Raises:
            PersistError: See `open`.
        """
        try:
            make_path(self._disk, self._path)
            read_layout(self._path)
            self._memory_lock.check()
        except OSError as error:
            raise unusable(self._path, error) from error

    def open(
        self,
        *,
        name: str,
        instance: str,
        shards: int,
        namespace_depth: int,
        job: str = "",
        table: SlotTable | None = None,
        index: IndexSettings | None = None,
        reindex: bool = False,
        on_lost: Callable[[], None] = lambda: None,
    ) -> tuple[Manifest, Manifest | None]:
        """Take hold of the memory, make it when it is not there, and re-shard it when needed.

        Args:
            name: Name of the cluster.
            instance: Tells the cluster from others of its name; a host that takes the place of
                one that died has the same.
            shards: Shards that it shall have.
            namespace_depth: As in `MemoryConfig`.
            job: The scheduler's job, or empty.
            table: Which of these shards has which slot, where that is known from elsewhere: then
                the files are what they shall be.
            index: How its opener embeds items, None if it does not.
            reindex: Whether that may differ from how they were embedded before.
            on_lost: Called on a thread when another cluster took the memory away.

        Returns:
            Its manifest now, and the one that was found, None when the memory is new.

        Raises:
            PersistHeldError: If a live cluster has it open.
            PersistError: If it is damaged, of a newer version, or its folder cannot be used.
            JournalError: If a journal cannot be read.
        """
        with self._opening:
            try:
                make_path(self._disk, self._path)
                self._memory_lock.take(name, job, on_lost)
                found = read_layout(self._path)
                manifest = Manifest(
                    format=1 if table is None else FORMAT,
                    generation=found.generation if found else 1,
                    shards=shards,
                    namespace_depth=namespace_depth,
                    name=name,
                    instance=instance,
                    version=package_version(),
                    created=found.created if found else time.time(),
                    opened=time.time(),
                    table=table,
                    noted=True,
                    identity=found.identity if found else new_identity(),
                    index=reopened_index(
                        self._path, found.index if found else None, index, reindex=reindex
                    ),
                )
                return self._open(found, manifest), found
            except OSError as error:
                raise unusable(self._path, error) from error

    def note_table(self, shards: int, table: SlotTable) -> None:
        """Write down which shard has which slots, from now on.

        Args:
            shards: Shards that there are, those included that have none any more.
            table: Which of them has which slot.

        Raises:
            OSError: If that is not possible; nothing has changed then.
        """
        assert self._manifest is not None
        manifest = msgspec.structs.replace(
            self._manifest, format=FORMAT, shards=shards, table=table
        )
        for number, folder in enumerate(manifest.folders(self._path)):
            make_folder(folder)
            if read_end(self._disk, folder) is None:  # it is there after an interrupted attempt
                write_end(self._disk, folder, 0)
                if manifest.identity:
                    write_owner(self._disk, folder, manifest.owner(number))
        self._disk.sync_folder(folder.parent)
        write_manifest(self._disk, self._path, manifest)
        self._manifest = manifest

    def announce_end(self) -> None:
        """Tell who wants to open it that it is let go soon; does not block."""
        self._stop.set()
        self._memory_lock.announce_end()

    def close(self, *, orderly: bool) -> None:
        """Let go of the memory; an opening that is under way is given up.

        Args:
            orderly: Whether every actor sealed its journal.
        """
        self._stop.set()
        if not self._opening.acquire(timeout=_LET_GO):
            return  # stuck in the file system: the end of this process lets go of the lock
        try:
            if self._manifest is not None and orderly:
                closed = msgspec.structs.replace(self._manifest, closed=time.time())
                write_manifest(self._disk, self._path, closed)
        except OSError as error:  # the journals are sealed all the same
            logger.warning("cannot note in %s that it was closed in order: %s", self._path, error)
        finally:
            self._memory_lock.release()
            self._opening.release()

    def after_fork(self) -> None:
        """Let go of what a forked child must not keep from others."""
        self._memory_lock.forget()

    def _open(self, found: Manifest | None, manifest: Manifest) -> Manifest:
        """Bring the memory into the layout of a new manifest; returns the final manifest."""
        self._remove_generations(but=found.generation if found else None)
        if found is None:
            make_generation(self._disk, self._path, manifest)
        else:
            self._await_actors(found.folders(self._path))
            noted = self._check_notes(found)
            identity = found.identity or (self._identify(found) if noted else "")
            manifest = msgspec.structs.replace(manifest, noted=noted, identity=identity)
            old = found.shards, found.namespace_depth
            layout = manifest.shards, manifest.namespace_depth
            # By a table of its own, a shard may hold what is another one's by now.
            if manifest.table is None and (found.table is not None or old != layout):
                generation = found.generation + 1
                manifest = msgspec.structs.replace(
                    manifest,
                    generation=generation,
                    noted=True,
                    identity=manifest.identity or new_identity(),
                )
                self._reshard(found, manifest)
        # What is the same to the next host of one cluster needs no room on a disk that is full.
        same = found and msgspec.structs.replace(found, opened=manifest.opened, check=0)
        if manifest != same:
            write_manifest(self._disk, self._path, manifest)
        self._remove_generations(but=manifest.generation)
        self._manifest = manifest
        return manifest

    def _check_notes(self, found: Manifest) -> bool:
        """Whether each shard has a note of its log's end; one of an earlier version gets it."""
        for folder in found.folders(self._path):
            if read_end(self._disk, folder) is not None:
                continue
            try:
                write_end(self._disk, folder, 0)
            except OSError as error:  # on a full disk, say: it can be opened as it is
                logger.warning("%s: how far its log is sealed cannot be noted: %s", folder, error)
                return False
        return True

    def _identify(self, found: Manifest) -> str:
        """Give the shards of an earlier version's memory an identity; empty if that fails."""
        identified = msgspec.structs.replace(found, identity=new_identity())
        try:
            for number, folder in enumerate(found.folders(self._path)):
                write_owner(self._disk, folder, identified.owner(number))
        except OSError as error:
            logger.warning("%s: whose shards these are cannot be noted: %s", self._path, error)
            return ""
        return identified.identity

    def _await_actors(self, folders: list[Path]) -> None:
        """Wait until no actor of a cluster that was killed has a journal open any more."""
        deadline = time.monotonic() + _LET_GO
        for folder in folders:
            lock = FileLock(folder / LOCK_NAME)
            while not _try(lock):
                if time.monotonic() > deadline:
                    raise JournalLockedError(
                        f"the journal in {folder} is still open in a process of the cluster that "
                        "held this memory before: end that process"
                    )
                time.sleep(_POLL)
            lock.release()

    def _reshard(self, old: Manifest, new: Manifest) -> None:
        what = f"re-sharding {self._path} from {old.shards} to {new.shards} shards"
        if old.namespace_depth != new.namespace_depth:
            what += f", namespace_depth {old.namespace_depth} to {new.namespace_depth}"
        logger.info("%s", what)
        self.doing, begun = what, time.monotonic()
        try:
            make_generation(self._disk, self._path, new)
            copy_shards(
                self._disk,
                old.folders(self._path),
                new.folders(self._path),
                router(new.slots),
                owner=router(old.slots),
                progress=self._progress(what),
                stop=self._stop,
            )
        except Exception:
            shutil.rmtree(generation_folder(self._path, new.generation), ignore_errors=True)
            raise
        logger.info("%s took %.1f s", what, time.monotonic() - begun)

    def _progress(self, what: str) -> Callable[[int, int], None]:
        told = time.monotonic()

        def progress(written: int, size: int) -> None:
            nonlocal told
            self.doing = f"{what}: {written / 1e6:.0f} MB written, at most {size / 1e6:.0f} in all"
            if time.monotonic() > told + _TOLD:
                told = time.monotonic()
                logger.info("%s", self.doing)

        return progress

    def _remove_generations(self, *, but: int | None) -> None:
        for folder in generation_folders(self._path):
            if but is None or folder != generation_folder(self._path, but):
                shutil.rmtree(folder)


def await_free(path: Path, deadline: float) -> None:
    """Make sure that a memory can be opened; waits for a holder that is ending, or seems dead.

    A program that died and is started again at once may be faster than its host's noticing it, so
    any holder is given a moment.

    Args:
        path: The memory's folder; made when it is not there.
        deadline: On the monotonic clock.

    Raises:
        PersistHeldError: If a live cluster has it open, or may have beyond the deadline.
        PersistError: If it cannot be opened at all.
    """
    moment = time.monotonic() + _MOMENT
    while True:
        try:
            return StoredMemory(path).check()
        except PersistHeldError as error:
            now = time.monotonic()
            until = moment if error.dead_in is None else deadline
            if now > until or now + (error.dead_in or 0.0) > deadline:
                raise
        time.sleep(_POLL)


def check_index(path: Path, index: IndexSettings | None, reindex: bool) -> None:
    """Check `index` as `StoredMemory.open` does, before a host is started to open the memory.

    Raises:
        PersistError: If the memory has vectors that new ones could not be compared with.
    """
    found = read_manifest(path)
    if found is not None:
        reopened_index(path, found.index, index, reindex=reindex)


def _try(lock: FileLock) -> bool:
    try:
        return lock.acquire()
    except UntrustedPathError:
        raise
    except OSError:  # a file system without locks: the holder's silence has told
        return True
