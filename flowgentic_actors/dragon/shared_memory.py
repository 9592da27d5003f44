"""Checks that `/dev/shm` has enough room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import SharedMemoryError

MiB: Final = 2**20
SHM: Final = Path("/dev/shm")  # noqa: S108 - where Dragon's pools are
RUNTIME_BYTES: Final = 128 * MiB
"""What a Dragon runtime itself takes there: 74 MB when it starts, and channels as it works."""


_RUNTIME_START: Final = 80 * MiB  # below this a Dragon runtime does not come up
_LARGER: Final = "make {} larger (mount -o remount,size=..., docker run --shm-size=...)"


def pool_bytes(total_bytes: int, managers: int) -> int:
    """The bytes of `/dev/shm` that a full DDict takes, with the overhead of its pools."""
    return total_bytes + total_bytes // 64 + managers * 8 * MiB


def check_shm(need_bytes: int, *, folder: Path = SHM) -> int:
    """Refuse a size that cannot fit in advance: a page too many kills the process.

    Args:
        need_bytes: Bytes that all DDicts of this node and Dragon's runtime may take.
        folder: Where shared memory is.

    Returns:
        Bytes that are free there.

    Raises:
        SharedMemoryError: If that is less.
    """
    state = os.statvfs(folder)
    have = state.f_bavail * state.f_frsize
    if have < need_bytes:
        raise SharedMemoryError(
            f"{folder} has {have // MiB} MiB free and the memory asked for needs "
            f"{-(-need_bytes // MiB)} MiB there: lower store_total_mem or checkpoint_total_mem "
            "(or managers_per_node, each of which takes 8 MiB more), rely on hot_memory alone, or "
            + _LARGER.format(folder)
        )
    return have


def check_runtime_shm(*, folder: Path = SHM) -> None:
    """Refuse to start a Dragon runtime that would not come up.

    Raises:
        SharedMemoryError: If too little of `folder` is free.
    """
    state = os.statvfs(folder)
    have = state.f_bavail * state.f_frsize
    if have < _RUNTIME_START:
        raise SharedMemoryError(
            f"{folder} has {have // MiB} MiB free, and a Dragon runtime needs "
            f"{RUNTIME_BYTES // MiB} MiB there: {_LARGER.format(folder)}, or use mode='local', or "
            "spawner='subprocess'"
        )
