"""`flowgentic-actors snapshot`: a copy of a memory that another cluster can open."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from flowgentic_actors.cluster.persistence.cluster_folders import find_memory
from flowgentic_actors.cluster.persistence.snapshot import snapshot
from flowgentic_actors.config_values import user_path


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """The options of the copy.

    Attributes:
        memory: A `persist_path`, a cluster's folder, or the name of a live cluster or an orphan.
        destination: Folder of the copy, new or empty.
        scratch: Where names are looked up.
    """

    memory: str
    destination: Path
    scratch: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_memory(parser)
    parser.add_argument("destination", type=user_path, help="folder of the copy: new, or empty")


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name a memory."""
    parser.add_argument(
        "memory", help="a persist_path, a cluster's folder, or the name of a cluster or an orphan"
    )
    parser.add_argument(
        "--scratch", type=user_path, help="where names are looked up (default: $TMPDIR)"
    )


def run_snapshot(options: SnapshotOptions) -> int:
    """Copy a memory, and print what was copied; returns the exit code."""
    path = find_memory(options.memory, options.scratch)
    manifest, entries = snapshot(path, options.destination)
    print(f"{path}: {manifest.shards} shards, {entries} entries copied to {options.destination}")
    print(f'open it with MemoryCluster(mode="distributed", persist_path="{options.destination}")')
    return 0
