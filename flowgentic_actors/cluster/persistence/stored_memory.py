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
import re
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.persistence.memory_lock import (
    HOLDER_FILE,
    HOLDER_LOCK,
    MemoryLock,
    is_held,
)
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings, reopened_index
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine.records import (
    ItemDeleted,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    Record,
    ThreadsExpired,
)
from flowgentic_actors.engine.slots import SLOTS
from flowgentic_actors.errors import (
    JournalDamagedError,
    JournalError,
    JournalLockedError,
    PersistError,
    PersistHeldError,
    UntrustedPathError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.actor import LOCK_NAME
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader, holds_entries
from flowgentic_actors.shard.journaling.reshard import reshard
from flowgentic_actors.storage.disk import Disk, RealDisk
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import (
    check_folder,
    make_folder,
    make_folders,
    read_private,
    trusted_path,
)
from flowgentic_actors.storage.sealed_end import (
    NAME,
    Owner,
    read_end,
    read_owner,
    write_end,
    write_owner,
)

FORMAT: Final = 2
"""Format 1 has no tables; what has none is still written so, for versions that know no other."""

MANIFEST: Final = "manifest.json"

_UNFINISHED: Final = "manifest.new"
_CHECK: Final = re.compile(rb'"check": \d+')
_GENERATION: Final = "generation-"
_OURS: Final = (MANIFEST, _UNFINISHED, HOLDER_LOCK)
_LET_GO: Final = 10.0  # for the actors of a host that was killed to end
_MOMENT: Final = 1.0
_ATTEMPTS: Final = 5
_POLL: Final = 0.05
_TOLD: Final = 5.0  # seconds between two lines about progress

logger = logging.getLogger(__name__)


MAX_SHARDS: Final = 16 * SLOTS
"""Most shards that a memory has: more than slots only where some were given up."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a memory's folder. Times are seconds since the Unix epoch.

    Attributes:
        format: Version of the layout.
        generation: Number of the generation that counts.
        shards: Its shards.
        namespace_depth: As in `MemoryConfig`; decides with `shards` where a key lives.
        name: Name of the cluster that opened it last.
        instance: Tells that cluster from others of its name.
        version: Version of the package that opened it last.
        created: When it was made.
        opened: When it was opened last.
        closed: When it was closed in order; None while it is open, and after an unclean end.
        table: Which shard has which slot, None while they are spread as in the beginning.
        index: How items are embedded, None while no opener has said so.
        noted: Whether each shard's folder has a note of how far its log was sealed; earlier
            versions wrote none.
        identity: What tells this memory's shards from those of others and of copies, 32 hexadecimal
            digits; empty in manifests of earlier versions.
        check: CRC-32 of the file, with 0 in the place of this; 0 in those of earlier versions.
    """

    format: int
    generation: int
    shards: int
    namespace_depth: int
    name: str
    instance: str
    version: str
    created: float
    opened: float
    closed: float | None = None
    table: SlotTable | None = None
    index: IndexSettings | None = None
    noted: bool = False
    identity: str = ""
    check: int = 0

    @property
    def subfolder(self) -> str:
        """Folder of its generation, below the memory's."""
        return f"{_GENERATION}{self.generation}"

    def owner(self, shard: int) -> Owner:
        """What is noted in the folder of a shard."""
        return Owner(bytes.fromhex(self.identity), shard)

    @property
    def slots(self) -> SlotTable:
        """Which shard has which slot."""
        return self.table or even_table(self.shards, self.namespace_depth)

    def folders(self, path: Path) -> list[Path]:
        """The folder of each shard of a memory."""
        return [path / self.subfolder / f"shard-{n}" for n in range(self.shards)]


def reopening(
    path: Path,
    now: Manifest,
    found: Manifest,
    kind: EventKind = EventKind.PERSIST_REOPENED,
) -> Iterator[tuple[EventKind, str]]:
    """What there is to tell about a memory that was found: kinds of events, and details."""
    end = "was closed in order" if found.closed else "was not closed in order"
    yield kind, f"{path} of cluster {found.name}, which {end}"
    if now.generation != found.generation:
        shards = f"{found.shards} to {now.shards} shards"
        depths = f"{found.namespace_depth} to {now.namespace_depth}"
        yield EventKind.RESHARDED, f"from {shards}, namespace_depth {depths}"


class _Format(msgspec.Struct):
    format: int


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
            _make_path(self._disk, self._path)
            _read_layout(self._path)
            self._memory_lock.check()
        except OSError as error:
            raise _unusable(self._path, error) from error

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
                _make_path(self._disk, self._path)
                self._memory_lock.take(name, job, on_lost)
                found = _read_layout(self._path)
                manifest = Manifest(
                    format=1 if table is None else FORMAT,
                    generation=found.generation if found else 1,
                    shards=shards,
                    namespace_depth=namespace_depth,
                    name=name,
                    instance=instance,
                    version=_version(),
                    created=found.created if found else time.time(),
                    opened=time.time(),
                    table=table,
                    noted=True,
                    identity=found.identity if found else _new_identity(),
                    index=reopened_index(
                        self._path, found.index if found else None, index, reindex=reindex
                    ),
                )
                return self._open(found, manifest), found
            except OSError as error:
                raise _unusable(self._path, error) from error

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
            _make_generation(self._disk, self._path, manifest)
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
                    identity=manifest.identity or _new_identity(),
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
        identified = msgspec.structs.replace(found, identity=_new_identity())
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
            _make_generation(self._disk, self._path, new)
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
            shutil.rmtree(_generation(self._path, new.generation), ignore_errors=True)
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
        for folder in _generations(self._path):
            if but is None or folder != _generation(self._path, but):
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
        _make_path(disk, target)
        try:
            return _snapshot(disk, path, target)
        except BaseException:
            for folder in _generations(target):
                shutil.rmtree(folder, ignore_errors=True)
            (target / _UNFINISHED).unlink(missing_ok=True)
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
            version=_version(),
            closed=time.time(),
            noted=True,
            identity=_new_identity(),
        )
        _make_generation(disk, target, copy)
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
        for folder in _generations(target):
            if folder != _generation(target, copy.generation):
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


def memory_path(path: Path) -> Path:
    """The folder that a user names, with all links followed; see `trusted_path`. Blocks.

    Raises:
        PersistError: If somebody else could put another folder in its place.
    """
    try:
        return trusted_path(path)
    except OSError as error:
        raise _unusable(path, error) from error


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a memory's folder, None when there is none.

    Raises:
        PersistError: If it is damaged, of a newer version, or not only this user's.
        OSError: If it cannot be read.
    """
    file = path / MANIFEST
    try:
        data = read_private(file)
    except FileNotFoundError:
        return None
    except UntrustedPathError as error:
        raise PersistError(str(error)) from error
    try:
        version = msgspec.json.decode(data, type=_Format).format
        if version > FORMAT:
            raise PersistError(
                f"{file} is of format {version}, and this version of flowgentic_actors reads up to "
                f"{FORMAT}: use the version that wrote it, or a newer one"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
        bytes.fromhex(manifest.identity)
        if not 1 <= manifest.shards <= MAX_SHARDS or manifest.generation < 1:
            raise ValueError(f"{manifest.shards} shards, generation {manifest.generation}")
        if manifest.check and manifest.check != _check_of(data):
            raise ValueError("it is not what was written, by its checksum (check)")
    except (ValueError, UnicodeDecodeError) as error:
        raise PersistError(
            f"{file} is damaged: {error}. The journals beside it may be whole: restore the file "
            "from a copy"
        ) from error
    return manifest


def write_manifest(disk: Disk, path: Path, manifest: Manifest) -> None:
    """Put a manifest in place in one step; when this returns it is on the medium."""
    unfinished = path / _UNFINISHED
    if unfinished.name in disk.names(path):
        disk.unlink(unfinished)
    fd = disk.create(unfinished, 0)
    try:
        data = msgspec.json.encode(msgspec.structs.replace(manifest, check=0))
        data = msgspec.json.format(data) + b"\n"
        disk.write(fd, _CHECK.sub(b'"check": %d' % _check_of(data), data), 0)
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(unfinished, path / MANIFEST)
    disk.sync_folder(path)


def _check_of(data: bytes) -> int:
    """The checksum of a manifest's file."""
    return zlib.crc32(_CHECK.sub(b'"check": 0', data)) or 1


def shard_folders(path: Path, manifest: Manifest) -> list[Path]:
    """The folders of a memory's shards.

    Raises:
        PersistError: If one is missing, or not only this user's.
        JournalDamagedError: If one has no note of its log's end any more, or is another shard's, or
            another memory's.
    """
    folders = manifest.folders(path)
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise PersistError(
            f"{path} should have {manifest.shards:,} shards, and {len(missing):,} of their folders "
            f"are missing: there is no {missing[0]}. Restore it from a copy"
        )
    try:
        for folder in (path / manifest.subfolder, *folders):
            check_folder(folder)
    except UntrustedPathError as error:
        raise PersistError(str(error)) from error
    for folder in folders if manifest.noted else ():
        if not (folder / NAME).exists():
            raise JournalDamagedError(
                f"{folder} has no {NAME}: files of this shard's journal were removed. Restore the "
                "folder from a copy"
            )
    for number, folder in enumerate(folders if manifest.identity else ()):
        owner = read_owner(folder) if (folder / NAME).exists() else None
        if owner is not None and owner != manifest.owner(number):
            same = owner.memory == manifest.owner(number).memory
            whose = f"shard-{owner.shard}'s" if same else "another memory's, or another copy's"
            raise JournalDamagedError(
                f"{folder} is {whose}: folders were exchanged, or copied one by one. Restore the "
                f"whole of {path} from one copy"
            )
    return folders


def holds_memory(path: Path) -> bool:
    """Whether any journal below a memory's folder holds an entry; True when that cannot be told."""
    try:
        manifest = read_manifest(path)
        return manifest is not None and any(map(holds_entries, shard_folders(path, manifest)))
    except (PersistError, JournalError, OSError):
        return True


def _read_layout(path: Path) -> Manifest | None:
    """The manifest of a folder that is a memory's, None when it is empty; raises for others."""
    manifest = read_manifest(path)
    if manifest is not None:
        shard_folders(path, manifest)
        return manifest
    generations = _generations(path)
    names = {p.name for p in path.iterdir() if not p.name.startswith((".", HOLDER_FILE))}
    strange = names - {*_OURS, *(p.name for p in generations)}
    if strange:
        raise PersistError(
            f"{path} is not empty and not a memory (there is {min(strange)!r}): give "
            "persist_path= a folder of its own"
        )
    # Without a manifest there is at most what an interrupted first opening left: empty journals.
    files = (file for folder in generations for file in folder.rglob("*") if file.is_file())
    if any(not file.name.startswith(NAME) for file in files):
        raise PersistError(
            f"there are journals in {path}, but no {MANIFEST}: restore that file from a copy"
        )
    return None


def _new_identity() -> str:
    return secrets.token_hex(16)


def _version() -> str:
    try:
        return version_of("flowgentic-actors")
    except PackageNotFoundError:  # a source checkout
        return "unknown"


def _make_path(disk: Disk, path: Path) -> None:
    """Make a folder of this user alone, and see to it that its name is on the medium."""
    make_folders(path, made=lambda folder: disk.sync_folder(folder.parent))


def _make_generation(disk: Disk, path: Path, manifest: Manifest) -> None:
    folders = manifest.folders(path)
    make_folder(folders[0].parent)
    for number, folder in enumerate(folders):
        folder.mkdir(mode=0o700)
        write_end(disk, folder, 0)
        write_owner(disk, folder, manifest.owner(number))
    disk.sync_folder(folders[0].parent)
    disk.sync_folder(path)


def _generation(path: Path, number: int) -> Path:
    return path / f"{_GENERATION}{number}"


def _generations(path: Path) -> list[Path]:
    return [
        folder
        for folder in path.glob(f"{_GENERATION}*")
        if folder.name.removeprefix(_GENERATION).isdecimal()
    ]


def _try(lock: FileLock) -> bool:
    try:
        return lock.acquire()
    except UntrustedPathError:
        raise
    except OSError:  # a file system without locks: the holder's silence has told
        return True


def _unusable(path: Path, error: OSError) -> PersistError:
    if isinstance(error, UntrustedPathError):
        return PersistError(f"{error} (setting: persist_path)")
    return PersistError(
        f"cannot use {path}: {error}. Set persist_path= (or scratch=, where it is not set) to a "
        "folder that this user can write to, with room for twice the memory when it is re-sharded"
    )
