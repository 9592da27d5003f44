"""Sizing of the actors' DDicts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowgentic_actors.dragon.ddict.tier import FULL, SMALLEST_POOL
from flowgentic_actors.dragon.ddict_processes import end_leftovers
from flowgentic_actors.dragon.shared_memory import RUNTIME_BYTES, SHM, check_shm, pool_bytes

_SUFFIX: Final = ".ddict"
_SHARE: Final = 4  # of /dev/shm, for all tiers of a node, when no ceilings are given
_MOST: Final = 64 << 30
_AROUND: Final = 1.1  # what is around values, and the room that packing leaves free


def tier_folder(folder: Path, actor: str) -> Path:
    """The folder for the files of an actor's DDict, below the cluster's folder."""
    return folder / f"{actor}{_SUFFIX}"


def end_tiers(folder: Path) -> None:
    """End every DDict that still exists of a cluster whose actors have ended. Blocks."""
    for left in folder.glob(f"*{_SUFFIX}"):
        end_leftovers(left)


def tier_bytes(ceilings: int, actors: int, managers: int) -> int:
    """The bytes of each actor's DDict, 0 for none.

    With quotas, what they need; these are of the values' own bytes. Without, a part of
    what is free in `/dev/shm`: what does not fit there comes from the journal.

    Args:
        ceilings: Bytes of values that all actors may hold together, 0 for no quota.
        actors: Actors on this node.
        managers: Processes of each DDict.

    Raises:
        SharedMemoryError: If `/dev/shm` has less than the quotas need.
    """
    least = managers * SMALLEST_POOL
    if ceilings:
        size = max(least, int(ceilings / actors * _AROUND / FULL))
        check_shm(actors * pool_bytes(size, managers) + RUNTIME_BYTES)
        return size
    state = os.statvfs(SHM)
    free = state.f_bavail * state.f_frsize
    size = min(free // _SHARE, _MOST) // actors
    return size if size >= least else 0
