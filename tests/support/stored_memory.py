"""A memory on disk, opened without a cluster, and filled."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowgentic_actors.cluster.persistence.manifest import Manifest
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.storage.disk import Disk
from tests.support.shards import contents, some_commands, write


@contextlib.contextmanager
def opened(
    path: Path, shards: int, depth: int = 2, disk: Disk | None = None, **options: Any
) -> Iterator[Manifest]:
    """A memory that a cluster has open."""
    memory = StoredMemory(path, disk)
    orderly = False
    try:
        settings = {"name": "x", "instance": "i", **options}
        yield memory.open(shards=shards, namespace_depth=depth, **settings)[0]
        orderly = True
    finally:
        memory.close(orderly=orderly)


def filled(path: Path, shards: int, count: int = 150, seed: int = 1) -> Any:
    """Make a memory and give what is in it."""
    table = even_table(shards, 2)
    with opened(path, shards) as manifest:
        write(manifest.folders(path), table, some_commands(random.Random(seed), count))
        return contents(manifest.folders(path), table)
