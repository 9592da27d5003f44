"""A memory's manifest, and the folders of its shards and generations: read, written, checked."""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.persistence.memory_lock import HOLDER_FILE, HOLDER_LOCK
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine.slots import SLOTS
from flowgentic_actors.errors import (
    JournalDamagedError,
    JournalError,
    PersistError,
    UntrustedPathError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.journaling.offline_reader import holds_entries
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.private_files import (
    check_folder,
    make_folder,
    make_folders,
    read_private,
    trusted_path,
)
from flowgentic_actors.storage.sealed_end import NAME, LogOwner, read_owner, write_end, write_owner

FORMAT: Final = 2
"""Format 1 has no tables; what has none is still written so, for versions that know no other."""

MANIFEST: Final = "manifest.json"

UNFINISHED: Final = "manifest.new"
_CHECK: Final = re.compile(rb'"check": \d+')
_GENERATION: Final = "generation-"
_OURS: Final = (MANIFEST, UNFINISHED, HOLDER_LOCK)


MAX_SHARDS: Final = 16 * SLOTS
"""Most shards that a memory has: more than slots only where some were given up."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a memory's folder. Times are seconds since the Unix epoch.

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

    def owner(self, shard: int) -> LogOwner:
        """The note of its owner in the folder of a shard."""
        return LogOwner(bytes.fromhex(self.identity), shard)

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
    """The events, by kind and detail, that report the memory that was found."""
    end = "was closed in order" if found.closed else "was not closed in order"
    yield kind, f"{path} of cluster {found.name}, which {end}"
    if now.generation != found.generation:
        shards = f"{found.shards} to {now.shards} shards"
        depths = f"{found.namespace_depth} to {now.namespace_depth}"
        yield EventKind.RESHARDED, f"from {shards}, namespace_depth {depths}"


class _Format(msgspec.Struct):
    format: int


def memory_path(path: Path) -> Path:
    """The folder that a user names, with all links followed; see `trusted_path`. Blocks.

    Raises:
        PersistError: If another user could put another folder in its place.
    """
    try:
        return trusted_path(path)
    except OSError as error:
        raise unusable(path, error) from error


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
    unfinished = path / UNFINISHED
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


def read_layout(path: Path) -> Manifest | None:
    """The manifest of a folder that is a memory's, None when it is empty; raises for others."""
    manifest = read_manifest(path)
    if manifest is not None:
        shard_folders(path, manifest)
        return manifest
    generations = generation_folders(path)
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


def new_identity() -> str:
    """A new `Manifest.identity`."""
    return secrets.token_hex(16)


def package_version() -> str:
    """This package's version, as a manifest notes it."""
    try:
        return version_of("flowgentic-actors")
    except PackageNotFoundError:  # a source checkout
        return "unknown"


def make_path(disk: Disk, path: Path) -> None:
    """Make a folder of this user alone, and see to it that its name is on the medium."""
    make_folders(path, made=lambda folder: disk.sync_folder(folder.parent))


def make_generation(disk: Disk, path: Path, manifest: Manifest) -> None:
    """Make the empty folders of a manifest's generation."""
    folders = manifest.folders(path)
    make_folder(folders[0].parent)
    for number, folder in enumerate(folders):
        folder.mkdir(mode=0o700)
        write_end(disk, folder, 0)
        write_owner(disk, folder, manifest.owner(number))
    disk.sync_folder(folders[0].parent)
    disk.sync_folder(path)


def generation_folder(path: Path, number: int) -> Path:
    """The folder of a generation."""
    return path / f"{_GENERATION}{number}"


def generation_folders(path: Path) -> list[Path]:
    """The folders of the generations that there are."""
    return [
        folder
        for folder in path.glob(f"{_GENERATION}*")
        if folder.name.removeprefix(_GENERATION).isdecimal()
    ]


def unusable(path: Path, error: OSError) -> PersistError:
    """The exception for an operating system's error in a memory's folder."""
    if isinstance(error, UntrustedPathError):
        return PersistError(f"{error} (setting: persist_path)")
    return PersistError(
        f"cannot use {path}: {error}. Set persist_path= (or scratch=, where it is not set) to a "
        "folder that this user can write to, with room for twice the memory when it is re-sharded"
    )
