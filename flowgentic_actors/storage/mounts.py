"""Telling the file systems of this machine from those that answer over a network."""

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


def is_node_local(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether writing to files below a path waits for nothing but this machine. Blocks.

    What is not known to be local counts as remote: every file system over a network or in user
    space, and everything where the kernel does not list its mounts.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        path = path.resolve()
    except OSError:
        return False
    found, kind = -1, ""
    for line in lines:
        about, _, rest = line.partition(" - ")
        point = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), about.split()[4]))
        if path.is_relative_to(point) and len(point.parts) >= found:  # the last one is on top
            found, kind = len(point.parts), rest.split()[0]
    return kind in _LOCAL
