"""The folders of clusters on a node: one private folder each, with locks for owner and host.

    <scratch>/flowgentic-<uid>/         0700, this user's
        .lock                           held for the moment of making or sweeping a folder
        <name>/                         one cluster
            owner.lock  host.lock       held while opener and host live
            cluster.json                how to attach (0600: it holds the secret)
            memory/                     the journals (`stored_memory`), or without one of its own
            persist                     a link to the `persist_path`

A folder whose locks are free belonged to processes that died. Its memory, if it holds anything,
is an orphan: kept for a while and reopened by name. All else is removed by the next opener.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from flowgentic_actors.cluster.persistence.manifest import MANIFEST, holds_memory
from flowgentic_actors.cluster.platforms import end_tiers
from flowgentic_actors.cluster.protocol.host_spec import OrphanLimits
from flowgentic_actors.cluster.socket_folders import (
    make_socket_folder,
    private_folder,
    remove_socket_folder,
)
from flowgentic_actors.errors import (
    ClusterExistsError,
    ClusterNotFoundError,
    ClusterOpenError,
    PersistError,
    UntrustedPathError,
)
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import check_folder, make_folder, trusted_path

OWNER_LOCK = "owner.lock"
HOST_LOCK = "host.lock"
DESCRIPTOR = "cluster.json"
HOST_SOCKET = "host.sock"
PID_FILE = "host.pid"
HOST_LOG = "host.log"
PORT_FILE = "host.port"
MEMORY = "memory"
PERSIST_LINK = "persist"

_ENDING_POLL = 0.05


def _root_path(scratch: Path | None) -> Path:
    parent = trusted_path(scratch or Path(tempfile.gettempdir()))  # for processes elsewhere
    return parent / f"flowgentic-{os.geteuid()}"


def root_folder(scratch: Path | None) -> Path:
    """This user's folder for clusters, made when missing.

    Raises:
        ClusterOpenError: If it cannot be made, or another user could write to it.
    """
    try:
        root = _root_path(scratch)
    except UntrustedPathError as error:
        raise ClusterOpenError(f"{error}. scratch= (or $TMPDIR) says which path") from error
    parent = root.parent
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise ClusterOpenError(
            f"{str(root)!a} is no text in the file system's encoding of this process, "
            f"{sys.getfilesystemencoding()}: start it with PYTHONUTF8=1, or set scratch="
        ) from error
    if parent.is_relative_to("/dev/shm"):  # noqa: S108
        raise ClusterOpenError(
            f"{parent} is in /dev/shm, which dragon-cleanup empties: set scratch= (or $TMPDIR) to "
            "a folder on a disk of this node"
        )
    return private_folder(root)


@contextlib.contextmanager
def root_locked(root: Path) -> Iterator[None]:
    """Hold the lock of this user's folder for clusters. Blocks."""
    lock = FileLock(root / ".lock")
    lock.acquire(wait=True)  # held for milliseconds
    try:
        yield
    finally:
        lock.release()


def claim_folder(
    root: Path, name: str | None, limits: OrphanLimits, deadline: float
) -> tuple[Path, FileLock]:
    """Make a cluster's folder, or take over its orphan, and take its owner's lock.

    Sweeps what dead clusters left. A host that is draining after the death of its owner is waited
    for.

    Args:
        root: The folder of clusters.
        name: The cluster's name, None for a random one.
        limits: Which orphans are kept.
        deadline: On the monotonic clock.

    Raises:
        ClusterExistsError: If a live cluster has that name.
    """
    folder = root / (name or f"memory-{secrets.token_hex(4)}")
    while True:
        with root_locked(root):
            _sweep(root, folder, limits)
            if not is_live(folder):
                make_folder(folder, secret=True)
                make_socket_folder(folder)
                lock = FileLock(folder / OWNER_LOCK)
                lock.acquire(wait=True)  # a probe of the lock holds it for a moment
                return folder, lock
            ending = not _locked(folder, OWNER_LOCK)
        if not ending or time.monotonic() > deadline:
            raise ClusterExistsError(
                f"a live cluster is named {name!r} (its folder: {folder}): attach to it with "
                f"MemoryCluster.attach({name!r}), close it, or choose another name="
            )
        time.sleep(_ENDING_POLL)


def claim_node_folder(
    root: Path, name: str, limits: OrphanLimits, deadline: float
) -> tuple[Path, FileLock]:
    """Make a cluster's folder on a node that is not its opener's, and take its host lock.

    What an earlier program of this cluster left is taken over; one that is ending is waited for.

    Args:
        root: The folder of clusters on this node.
        name: The cluster's name.
        limits: Which orphans are kept.
        deadline: On the monotonic clock.

    Raises:
        ClusterExistsError: If that program does not end in time.
    """
    folder = root / name
    while True:
        with root_locked(root):
            _sweep(root, folder, limits)
            make_folder(folder, secret=True)
            lock = FileLock(folder / HOST_LOCK)
            if not _locked(folder, OWNER_LOCK) and lock.acquire():
                make_socket_folder(folder)
                return folder, lock
        if time.monotonic() > deadline:
            raise ClusterExistsError(
                f"another live cluster, or an earlier part of this one, holds {folder} on this "
                "node: end it, or choose another name="
            )
        time.sleep(_ENDING_POLL)


def retire(folder: Path) -> None:
    """Remove a cluster's folder, except a memory in it that is not empty.

    For who holds one of its locks.
    """
    if not _reduce(folder):
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a cluster's folder with its content; the caller holds one of its locks.

    The locks go last: a folder without them passes for one of a dead cluster, which others sweep.
    """
    with contextlib.suppress(FileNotFoundError):
        _clear(folder)
    with contextlib.suppress(FileNotFoundError), root_locked(folder.parent):
        shutil.rmtree(folder, ignore_errors=True)


def _reduce(folder: Path) -> bool:
    """Remove all but the locks and a memory that is not empty; whether there is one."""
    end_tiers(folder)
    memory = folder / MEMORY
    keep = memory.is_dir() and holds_memory(memory)
    with contextlib.suppress(FileNotFoundError):
        _clear(folder, *([MEMORY] if keep else []))
    return keep


def _clear(folder: Path, *kept: str) -> None:
    for path in folder.iterdir():
        if path.name in (OWNER_LOCK, HOST_LOCK, *kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    remove_socket_folder(folder)


def _sweep(root: Path, wanted: Path, limits: OrphanLimits) -> None:
    """Retire the folders of dead clusters, and remove orphans beyond the limits of age and size."""
    orphans: list[tuple[float, int, Path]] = []
    for folder in root.iterdir():
        if not folder.is_dir() or is_live(folder):
            continue
        if not _reduce(folder):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder != wanted:
            orphans.append((*_age_and_size(folder / MEMORY), folder))
    total = 0
    for ended, size, folder in sorted(orphans, reverse=True):
        total += size
        if time.time() - ended > limits.ttl or total > limits.bytes:
            shutil.rmtree(folder, ignore_errors=True)


def _age_and_size(memory: Path) -> tuple[float, int]:
    """The time of the last change in a folder, and its size on the disk.

    An actor may outlive its cluster by seconds and remove files meanwhile.
    """
    ended, size = 0.0, 0
    for parent, folders, files in os.walk(memory):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                found = Path(parent, name).lstat()
                ended, size = max(ended, found.st_mtime), size + 512 * found.st_blocks
    return ended, size


def is_live(folder: Path) -> bool:
    """Whether the owner or the host of a cluster's folder is running."""
    return _locked(folder, OWNER_LOCK) or _locked(folder, HOST_LOCK)


def _locked(folder: Path, name: str) -> bool:
    probe = FileLock(folder / name)
    try:
        if not (folder / name).exists():
            return False
        if not probe.acquire():
            return True
    except FileNotFoundError:
        return False
    probe.release()
    return False


def has_owner(folder: Path) -> bool:
    """Whether the owner of a cluster's folder is running."""
    return _locked(folder, OWNER_LOCK)


def is_orphan(folder: Path) -> bool:
    """Whether a folder holds an orphan: a memory whose owner died."""
    memory = folder / MEMORY
    return memory.is_dir() and not has_owner(folder) and holds_memory(memory)


def descriptor_of(name: str, scratch: Path | None = None) -> Path:
    """The descriptor file of a live cluster of this user on this node.

    Raises:
        ClusterNotFoundError: If there is none of that name.
    """
    folder = root_folder(scratch) / name
    descriptor = folder / DESCRIPTOR
    if not descriptor.is_file() or not is_live(folder):
        root = folder.parent
        found = [path.parent.name for path in _found(root, f"*/{DESCRIPTOR}")]
        live = sorted(name for name in found if is_live(root / name))
        raise ClusterNotFoundError(
            f"no live cluster is named {name!r} in {root}: "
            + (f"open there: {', '.join(live)}" if live else "no cluster is open there")
        )
    return descriptor


def find_memory(target: str, scratch: Path | None = None) -> Path:
    """Find the folder of a memory on disk, without changing anything.

    Args:
        target: A `persist_path`, the folder of a cluster, or the name of a live cluster or an
            orphan of this user on this node.
        scratch: Where names are looked up, as in `MemoryConfig`.

    Raises:
        PersistError: If there is none, or another user could have replaced it.
    """
    named = "/" not in target and not Path(target).exists()
    try:
        root = _root_path(scratch)
        if named:
            with contextlib.suppress(FileNotFoundError):
                check_folder(root, secret=True)
        folder = root / target if named else trusted_path(Path(target).expanduser())
        if folder.is_dir():
            check_folder(folder)
        for path in (folder, folder / PERSIST_LINK, folder / MEMORY):
            if (path / MANIFEST).is_file():
                memory = trusted_path(path)
                check_folder(memory)
                return memory
    except UntrustedPathError as error:
        raise PersistError(str(error)) from error
    except OSError as error:
        raise PersistError(f"cannot look for a memory in {target}: {error}") from error
    if not named:
        what = "is no memory: it has no" if folder.is_dir() else "is not there, so it has no"
        raise PersistError(f"{folder} {what} {MANIFEST}. Give a persist_path, or a cluster's name")
    found = {path.parts[0] for path in _found(root, f"*/*/{MANIFEST}")}
    raise PersistError(
        f"there is no folder {target!r} here, and no cluster of that name has a memory in {root}: "
        + (f"there are {', '.join(sorted(found))}" if found else "no cluster is open there")
    )


def _found(root: Path, pattern: str) -> list[Path]:
    """The matching paths below a folder; unlike `Path.glob`, this tolerates vanishing folders."""
    return [Path(path) for path in glob(pattern, root_dir=root)]  # noqa: PTH207
