"""Private folders of clusters, and short ones for sockets whose path would be too long.

/tmp/flowgentic-sockets-<uid>/    0700, this user's
    <digest>/                     the sockets of one folder
        of                        the path of that folder
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import ClusterOpenError, UntrustedPathError
from flowgentic_actors.storage.private_files import (
    make_folder,
    read_private,
    trusted_path,
    write_private,
)
from flowgentic_actors.wire.sockets import MAX_PATH

_LONGEST_NAME: Final = len("/shard-1048576.sock")
_SHORT: Final = Path("/tmp")  # noqa: S108 - checked below
_OF: Final = "of"
_PROBE: Final = 1.0
_FOR: Final = "Secrets and sockets of clusters are kept there; scratch= (or $TMPDIR) says where"


def private_folder(folder: Path) -> Path:
    """Make a folder of this user alone, unless it exists.

    Raises:
        ClusterOpenError: If it cannot be made, or another user could write to it.
    """
    try:
        trusted_path(folder)
        make_folder(folder, secret=True)
        trusted_path(folder)  # what was missing may have been made by another user meanwhile
    except UntrustedPathError as error:
        raise ClusterOpenError(f"{error}. {_FOR}") from error
    except OSError as error:
        raise ClusterOpenError(
            f"cannot make the folder {folder}: {error}. Set scratch= to a writable, node-local "
            "folder"
        ) from error
    return folder


def socket_folder(folder: Path) -> Path:
    """The folder for a cluster's sockets: its own, unless their paths are too long there.

    The limit is the operating system's; schedulers' `$TMPDIR` can be longer.
    """
    path = os.fsencode(folder)
    if len(path) + _LONGEST_NAME <= MAX_PATH:
        return folder
    return _short_root() / hashlib.sha256(path).hexdigest()[:16]


def make_socket_folder(folder: Path) -> None:
    """Make the socket folder of a cluster, if it is not its own folder. Blocks.

    Raises:
        ClusterOpenError: If it cannot be made.
    """
    sockets = socket_folder(folder)
    if sockets == folder:
        return
    private_folder(_short_root())
    _remove_needless()
    private_folder(sockets)
    write_private(sockets / _OF, os.fsencode(folder))


def remove_socket_folder(folder: Path) -> None:
    """Remove the socket folder of a cluster, if it is not its own folder. Blocks."""
    sockets = socket_folder(folder)
    if sockets != folder:
        shutil.rmtree(sockets, ignore_errors=True)
        _remove_needless()


def _remove_needless() -> None:
    """Remove socket folders whose cluster is gone, as after a job with its own `$TMPDIR`."""
    for other in _short_root().iterdir():
        with contextlib.suppress(OSError):  # another process removes it, or is making it
            there = Path(os.fsdecode(read_private(other / _OF))).is_dir()
            # A container may share /tmp and not the folder.
            if not there and not any(map(_listens, other.glob("*.sock"))):
                shutil.rmtree(other, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PROBE)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # too busy to take it
            return True
    return True


def _short_root() -> Path:
    return _SHORT / f"flowgentic-sockets-{os.geteuid()}"
