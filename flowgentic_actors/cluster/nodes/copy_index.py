"""An index of a plan by node, so that a heartbeat needs no search."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan


class CopyIndex:
    """The shards of which each node has a copy, and the version of each node's assignments.

    Args:
        plan: The plan; a change of it is told to the index.
    """

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._copies: dict[str, set[int]] = {}
        self._changed: dict[str, int] = {}  # version in which each node's assignments changed
        self._begun = plan.version  # the same for those of whom nothing changed since
        self.rebuild()

    def rebuild(self) -> None:
        """Index the plan anew; the assignments of all nodes have changed."""
        self._copies.clear()
        for plan in self._plan.shards:
            self._place(plan.shard, {plan.leader, plan.follower})
        self.mark_all()

    def of(self, node: str) -> AbstractSet[int]:
        """The shards of which a node has a copy."""
        return self._copies.get(node, frozenset())

    def move(self, shard: int, before: AbstractSet[str], now: AbstractSet[str]) -> None:
        """Note that other nodes have the copies of a shard; empty names are none."""
        for node in before - now:
            self._copies.get(node, set()).discard(shard)
        self._place(shard, now - before)
        self.mark(before | now)

    def mark(self, nodes: Iterable[str]) -> None:
        """Mark nodes as having new assignments in the plan's version."""
        for node in nodes:
            self._changed[node] = self._plan.version

    def mark_all(self) -> None:
        """Mark all nodes so."""
        self._changed.clear()
        self._begun = self._plan.version

    def changed(self, node: str) -> int:
        """The version in which a node's assignments changed last."""
        return self._changed.get(node, self._begun)

    def _place(self, shard: int, nodes: AbstractSet[str]) -> None:
        for node in nodes - {""}:
            self._copies.setdefault(node, set()).add(shard)
