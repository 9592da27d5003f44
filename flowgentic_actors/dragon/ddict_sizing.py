"""The actors' DDicts: their sizes, their folders, and how an actor makes its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowgentic_actors.dragon.ddict.tier import FULL, SMALLEST_POOL, DDictShard, why_no_ddict
from flowgentic_actors.dragon.ddict_processes import end_leftovers
from flowgentic_actors.dragon.shared_memory import RUNTIME_BYTES, SHM, check_shm, pool_bytes
from flowgentic_actors.shard.memory_tier import TierEvents
from flowgentic_actors.shard.settings import TierSettings

DDICT_FACTORY: Final = "flowgentic_actors.dragon.ddict_sizing:make_ddict"

_SUFFIX: Final = ".ddict"
_SHARE: Final = 4  # of /dev/shm, for all tiers of a node, when no quotas are given
_MOST: Final = 64 << 30
_AROUND: Final = 1.1  # what is around values, and the room that packing leaves free


def tier_folder(folder: Path, actor: str) -> Path:
    """The folder for the files of an actor's DDict, below the cluster's folder."""
    return folder / f"{actor}{_SUFFIX}"


def make_ddict(settings: TierSettings, path: Path, on_event: TierEvents) -> DDictShard | None:
    """Make an actor's DDict; see `memory_tier.TierFactory`."""
    if why_no_ddict() is not None:
        return None
    return DDictShard(
        total_bytes=settings.total_bytes,
        managers=settings.managers,
        folder=tier_folder(path.parent, path.name),
        on_event=on_event,
    )


def end_tiers(folder: Path) -> None:
    """End every DDict that still exists of a cluster whose actors have ended. Blocks."""
    for left in folder.glob(f"*{_SUFFIX}"):
        end_leftovers(left)


def ddict_settings(quotas: int, actors: int, managers: int) -> TierSettings | None:
    """The settings of each actor's DDict, None for none.

    With quotas, it has the size that they need; these are of the values' own bytes. Without, a part
    of what is free in `/dev/shm`: what does not fit there comes from the journal.

    Args:
        quotas: Bytes of values that all actors may hold together, 0 for no quota.
        actors: Actors on this node.
        managers: Processes of each DDict.

    Raises:
        SharedMemoryError: If `/dev/shm` has less than the quotas need.
    """
    least = managers * SMALLEST_POOL
    if quotas:
        size = max(least, int(quotas / actors * _AROUND / FULL))
        check_shm(actors * pool_bytes(size, managers) + RUNTIME_BYTES)
    else:
        state = os.statvfs(SHM)
        free = state.f_bavail * state.f_frsize
        size = min(free // _SHARE, _MOST) // actors
        if size < least:
            return None
    return TierSettings(factory=DDICT_FACTORY, total_bytes=size, managers=managers)
