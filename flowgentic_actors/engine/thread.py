"""A thread: its branches, the time of its last write, and its size."""

from __future__ import annotations

from flowgentic_actors.engine.branch import Branch


class Thread:
    """One thread.

    Attributes:
        branches: By checkpoint namespace.
        updated_us: When it was last written to.
        bytes: Bytes of its values.
        order: The order of all checkpoints that has its own, if there is one; see `Threads`.
    """

    __slots__ = ("branches", "bytes", "order", "updated_us")

    def __init__(self, order: object = None) -> None:
        self.branches: dict[str, Branch] = {}
        self.order = order
        self.updated_us = 0
        self.bytes = 0

    @property
    def checkpoints(self) -> int:
        """The number of checkpoints of the thread."""
        return sum(len(branch.entries) for branch in self.branches.values())

    def restore(self) -> None:
        """Rebuild all derived state after an interrupted change."""
        self.branches = {ns: branch for ns, branch in self.branches.items() if branch}
        for branch in self.branches.values():
            branch.restore()
        self.bytes = sum(v.size for branch in self.branches.values() for v in branch.all_values())
