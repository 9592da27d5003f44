"""Distinction of this machine's file systems from those that are reached over a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_LOCAL: Final = frozenset(
    (
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "overlay",
        "ramfs",
        "reiserfs",
        "tmpfs",
        "xfs",
        "zfs",
    )
)
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


_IN_MEMORY: Final = frozenset(("ramfs", "tmpfs"))


def is_node_local(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether writing to files below a path waits for nothing but this machine. Blocks.

    What is not known to be local counts as remote: every file system over a network or in user
    space, and everything where the kernel does not list its mounts.
    """
    return _file_system(path, mounts) in _LOCAL


def is_in_memory(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether files below a path are in this machine's memory. Blocks."""
    return _file_system(path, mounts) in _IN_MEMORY


def _file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that a path is on, empty when unknown."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        path = path.resolve()
    except OSError:
        return ""
    found, kind = -1, ""
    for line in lines:
        about, _, rest = line.partition(" - ")
        point = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), about.split()[4]))
        if path.is_relative_to(point) and len(point.parts) >= found:  # the last one is on top
            found, kind = len(point.parts), rest.split()[0]
    return kind
