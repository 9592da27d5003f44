"""The platforms that there are, one for each value of the setting `spawner`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.platform import Platform

_PLATFORMS: Final = (DragonPlatform(), Platform())


def platform_named(name: str) -> Platform:
    """The platform of a value of the setting; of `"auto"`, the first one."""
    return next(platform for platform in _PLATFORMS if name in (platform.name, "auto"))


def end_tiers(folder: Path) -> None:
    """End every memory tier that still exists of a cluster whose actors have ended. Blocks."""
    for platform in _PLATFORMS:
        platform.end_tiers(folder)
