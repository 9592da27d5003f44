"""Finding the cluster that a program attaches to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from flowgentic_actors.cluster.folders import descriptor_of
from flowgentic_actors.cluster.handle import ClusterHandle, Descriptor, is_export, read_export
from flowgentic_actors.cluster.presence import Watched, watched_file
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE
from flowgentic_actors.errors import ClusterNotFoundError


class Found(NamedTuple):
    """A cluster to attach to.

    Attributes:
        descriptor: Its descriptor.
        watched: How to notice its end, None where that cannot be seen.
        handle: Its handle, None when only the exported string is known.
    """

    descriptor: Descriptor
    watched: Watched | None
    handle: ClusterHandle | None


def find(target: ClusterHandle | str | None, scratch: Path | None) -> Found:
    """Find a cluster by what `MemoryCluster.attach` takes. Blocks.

    Args:
        target: A handle, an exported string, a name; None for what the environment names.
        scratch: Where names are looked up.

    Raises:
        ClusterNotFoundError: If there is none.
    """
    if isinstance(target, str) and is_export(target):
        descriptor = read_export(target)
        return Found(descriptor, watched_file(descriptor), None)
    by_name = isinstance(target, str)
    if target is None:
        path = os.environ.get(DESCRIPTOR_VARIABLE)
        if not path:
            raise ClusterNotFoundError(
                f"attach() was given no handle or name, and ${DESCRIPTOR_VARIABLE} is not set"
            )
        target = ClusterHandle(Path(path).parent.name, path)
    elif isinstance(target, str):
        target = ClusterHandle(target, str(descriptor_of(target, scratch)))
    return Found(target.read(), Watched(Path(target.descriptor), by_name), target)
