"""The folders of clusters on a node: one private folder each, owned by locks.

    <scratch>/flowgentic-<uid>/         0700, this user's
        .lock                           held for the moment of making or sweeping a folder
        <name>/                         one cluster
            owner.lock  host.lock       held while opener and host live
            cluster.json                how to attach (0600: it holds the secret)

A folder whose locks nobody holds belonged to processes that died; the next opener removes it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flowgentic_actors.errors import ClusterExistsError, ClusterNotFoundError, ClusterOpenError
from flowgentic_actors.storage.lock import FileLock

OWNER_LOCK = "owner.lock"
HOST_LOCK = "host.lock"
DESCRIPTOR = "cluster.json"
HOST_SOCKET = "host.sock"
PID_FILE = "host.pid"


def root_folder(scratch: Path | None) -> Path:
    """This user's folder for clusters, made when it is not there.

    Raises:
        ClusterOpenError: If it cannot be made, or somebody else could write to it.
    """
    parent = (scratch or Path(tempfile.gettempdir())).resolve()  # for processes elsewhere
    if parent.is_relative_to("/dev/shm"):  # noqa: S108
        raise ClusterOpenError(
            f"{parent} is in /dev/shm, which dragon-cleanup empties: set scratch= (or $TMPDIR) to "
            "a folder on a disk of this node"
        )
    root = parent / f"flowgentic-{os.geteuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ClusterOpenError(
            f"cannot make the folder {root}: {error}. Set scratch= to a writable, node-local folder"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ClusterOpenError(
            f"{root} must be a folder of mode 0700 that belongs to this user: it holds the "
            "clusters' secrets. Remove it, or set scratch= to another folder"
        )
    return root


@contextlib.contextmanager
def _root_locked(root: Path) -> Iterator[None]:
    lock = FileLock(root / ".lock")
    lock.acquire(wait=True)  # held for milliseconds
    try:
        yield
    finally:
        lock.release()


def claim_folder(root: Path, name: str | None) -> tuple[Path, FileLock]:
    """Make a cluster's folder and take its owner's lock; sweeps what dead clusters left.

    Raises:
        ClusterExistsError: If a live cluster has that name.
    """
    with _root_locked(root):
        for folder in root.iterdir():
            if folder.is_dir() and not is_live(folder):
                shutil.rmtree(folder, ignore_errors=True)
        folder = root / (name or f"memory-{secrets.token_hex(4)}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise ClusterExistsError(
                f"a live cluster is named {name!r} (its folder: {folder}): attach to it with "
                f"MemoryCluster.attach({name!r}), close it, or choose another name="
            ) from None
        lock = FileLock(folder / OWNER_LOCK)
        lock.acquire()
        return folder, lock


def is_live(folder: Path) -> bool:
    """Whether an opener or a host of a cluster's folder lives."""
    for name in (OWNER_LOCK, HOST_LOCK):
        probe = FileLock(folder / name)
        try:
            if (folder / name).exists() and not probe.acquire():
                return True
        except FileNotFoundError:
            continue
        probe.release()
    return False


def descriptor_of(name: str, scratch: Path | None = None) -> Path:
    """The descriptor file of a live cluster of this user on this node.

    Raises:
        ClusterNotFoundError: If there is none of that name.
    """
    folder = root_folder(scratch) / name
    descriptor = folder / DESCRIPTOR
    if not descriptor.is_file() or not is_live(folder):
        found = folder.parent.glob(f"*/{DESCRIPTOR}")
        live = sorted(f.parent.name for f in found if is_live(f.parent))
        raise ClusterNotFoundError(
            f"no live cluster is named {name!r} in {folder.parent}; there: {', '.join(live) or '-'}"
        )
    return descriptor
