"""The chunked lists that a process knows to be stored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from flowgentic_actors.adapters.chunked_lists.format import ChunkedList

_CHECKPOINTS = 4  # of each namespace, whose lists are remembered
_REMEMBERED = 50_000  # parts, some 250 bytes each


class _Branch:
    """The lists of a branch's last checkpoints, by checkpoint id, oldest first.

    Attributes:
        checkpoints: Them.
        weight: Most parts that any of them ever had; they share most of theirs.
    """

    __slots__ = ("checkpoints", "weight")

    def __init__(self) -> None:
        self.checkpoints: dict[str, dict[str, ChunkedList]] = {}
        self.weight = 0

    def __bool__(self) -> bool:
        return any(self.checkpoints.values())

    def put(self, checkpoint_id: str, lists: dict[str, ChunkedList]) -> None:
        """Add a checkpoint as the last one."""
        self.checkpoints.pop(checkpoint_id, None)
        self.checkpoints[checkpoint_id] = lists
        if len(self.checkpoints) > _CHECKPOINTS:
            del self.checkpoints[next(iter(self.checkpoints))]
        self.weight = max(self.weight, sum([len(found.parts) for found in lists.values()]))


class RecentLists:
    """The chunked lists of each branch's last checkpoints, as far as this process knows.

    What it says is stored may be gone meanwhile: the shard is always asked. Any thread may use it.
    """

    __slots__ = ("_branches", "_lock", "_parts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts = 0
        # By thread and namespace, the one that was used last at the end.
        self._branches: OrderedDict[tuple[str, str], _Branch] = OrderedDict()

    def of(
        self, thread_id: str, ns: str, checkpoint_id: str | None
    ) -> Mapping[str, Sequence[ChunkedList]]:
        """The lists of a branch by channel: of a checkpoint first, then from the last one back."""
        if (thread_id, ns) not in self._branches:
            return _NONE
        with self._lock:
            branch = self._branches.get((thread_id, ns))
            if branch is None:
                return _NONE
            self._branches.move_to_end((thread_id, ns))
            found: dict[str, list[ChunkedList]] = {}
            first = branch.checkpoints.get(checkpoint_id or "", _NO_LISTS)
            for lists in (first, *reversed(branch.checkpoints.values())):
                for channel, known in lists.items():
                    found.setdefault(channel, []).append(known)
            return found

    def remember(
        self, thread_id: str, ns: str, checkpoint_id: str, lists: dict[str, ChunkedList]
    ) -> None:
        """Remember the lists of a stored checkpoint."""
        with self._lock:
            branch = self._branches.pop((thread_id, ns), None) or _Branch()
            self._parts -= branch.weight
            branch.put(checkpoint_id, lists)
            if branch:
                self._branches[thread_id, ns] = branch
                self._parts += branch.weight
            if self._parts > _REMEMBERED:  # counted anew: a call that was interrupted miscounts
                self._parts = sum(branch.weight for branch in self._branches.values())
            while self._parts > _REMEMBERED and len(self._branches) > 1:
                self._parts -= self._branches.popitem(last=False)[1].weight


_NO_LISTS: Final[dict[str, ChunkedList]] = {}
_NONE: Final[Mapping[str, Sequence[ChunkedList]]] = {}
