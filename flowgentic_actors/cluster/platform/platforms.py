"""The platforms that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flowgentic_actors.cluster.platform.platform import Platform
from flowgentic_actors.cluster.platform.subprocesses import SubprocessPlatform
from flowgentic_actors.dragon.platform import DragonPlatform

_PLATFORMS: Final[tuple[Platform, ...]] = (DragonPlatform(), SubprocessPlatform())


def platform_named(name: str) -> Platform:
    """The platform of a value of the setting `spawner`; the first one for `"auto"`."""
    named = {platform.name: platform for platform in _PLATFORMS} | {"auto": _PLATFORMS[0]}
    return named[name]


def end_tiers(folder: Path) -> None:
    """End every memory tier that still exists of a cluster whose actors have ended. Blocks."""
    for platform in _PLATFORMS:
        platform.end_tiers(folder)
