"""The plan file: the cluster plan on the disk, stored before any node acts on it.

Two files take turns, so whatever ends a writing at any point leaves the other one whole. Both are
longer than they need be and are written in place: what has to be decided on a full disk, such as
who takes the place of a lost node, has its room already.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.storage.private_files import overwrite, read_private

_NAMES: Final = ("plan.json", "plan-2.json")
_SMALLEST: Final = 16 << 10  # bytes


class _Written(msgspec.Struct):
    """The content of the file, with a checksum: a mixture of two plans is not accepted."""

    checksum: int
    plan: msgspec.Raw


class PlanFile:
    """A cluster's plan in its memory's folder. Everything here blocks.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / name for name in _NAMES]
        self._next = 0

    def read(self) -> ClusterPlan | None:
        """Read the plan that was written last, None when there is none.

        Raises:
            ClusterOpenError: If what is there is damaged.
        """
        found: dict[int, ClusterPlan] = {}
        trouble: Exception | None = None
        for number, path in enumerate(self._paths):
            try:
                found[number] = _decode(read_private(path))
            except FileNotFoundError:
                continue
            except (ValueError, OSError) as error:
                trouble = error  # if the other one is whole, the writing of this one was cut off
        if not found:
            if trouble is not None:
                raise ClusterOpenError(f"{self._paths[0]} cannot be read: {trouble}") from trouble
            return None
        latest = max(found, key=lambda number: found[number].version)
        self._next = 1 - latest
        return found[latest]

    def write(self, plan: bytes) -> None:
        """Write an encoded plan.

        Raises:
            OSError: If that is not possible; the one before is there still.
        """
        whole = msgspec.json.encode(_Written(zlib.crc32(plan), msgspec.Raw(plan)))
        overwrite(self._paths[self._next], whole, _SMALLEST)
        self._next = 1 - self._next


def _decode(data: bytes) -> ClusterPlan:
    written = msgspec.json.decode(data, type=_Written)
    if zlib.crc32(written.plan) != written.checksum:
        raise ValueError("it is not what was written")
    return msgspec.json.decode(written.plan, type=ClusterPlan)
