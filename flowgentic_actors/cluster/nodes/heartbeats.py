"""Heartbeats of nodes: what the placement learns from each, and what is replied. Without I/O.

The host's controller drives this with requests and a clock, a simulation with what it draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from flowgentic_actors.cluster.nodes.leases import GrantedLeases
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import NodeAssignments
from flowgentic_actors.cluster.protocol.host import EndNode, Heartbeat, HeartbeatReply
from flowgentic_actors.event_kinds import EventKind


class HeartbeatDesk:
    """Decides which heartbeats are replied to at once, and which node gets a lease or assignments.

    Nothing is acted upon before the plan that contains it is stored.

    Args:
        placement: What decides.
        leases: The leases of the other nodes.
        here: The host's own node, which needs no lease.

    Attributes:
        lease: Length of a lease, seconds.
        published: Version of the plan that is stored, 0 for none.
        end: The order to the other nodes to end their actors, None while there is none.
        leave: Whether the other nodes are to end altogether, and what becomes of what is stored
            there; None while they are not.
        ended: What did not end in order on each node whose actors have ended.
        left: Nodes that were told to leave.
    """

    def __init__(self, placement: Placement, leases: GrantedLeases, here: str) -> None:
        self._placement = placement
        self._leases = leases
        self._here = here
        self._awaited: set[str] = set()  # nodes that have joined, and have not been heard yet
        self._events_to: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        self.lease = leases.seconds
        self.published = 0
        self.end: EndNode | None = None
        self.leave: Literal["keep", "remove"] | None = None
        self.ended: dict[str, dict[str, str]] = {}
        self.left: set[str] = set()
        self._query = 0

    # ------------------------------------------------------------------ nodes and time

    def join(self, nodes: Iterable[str]) -> None:
        """Add nodes that have joined; none of them is silent before its first heartbeat."""
        for node in nodes:
            self._placement.joined(node)
            self._awaited.add(node)
        self._awaited.discard(self._here)

    def tick(self, now: float) -> set[str]:
        """Count a tick; returns the nodes that are lost now.

        Args:
            now: On the host's clock.
        """
        for node in self._awaited:
            self._leases.heard(node)  # it is on its way
        before = self._placement.nodes
        self._placement.tick(now)
        return set(before) - set(self._placement.nodes)

    @property
    def others(self) -> set[str]:
        """The nodes that are up, without the host's own."""
        return set(self._placement.nodes) - {self._here}

    # ------------------------------------------------------------------ the plan on the disk

    @property
    def must_publish(self) -> bool:
        """Whether the plan has changes that are not stored."""
        return self._placement.plan.version != self.published

    def is_stored_for(self, node: str) -> bool:
        """Whether all that a node has to be told of is stored."""
        return self._placement.changed_for(node) <= self.published

    def assignments_here(self, known: int) -> NodeAssignments | None:
        """New assignments of the host's own node, once the whole plan is stored; else None.

        Args:
            known: Version of the assignments that it has carried out.
        """
        if self.must_publish or known >= self.published:
            return None
        return self._placement.assignments(self._here)

    # ------------------------------------------------------------------ heartbeats

    def heard(self, heartbeat: Heartbeat) -> tuple[tuple[EventKind, str, str], ...]:
        """Process a heartbeat; returns those of its events that are new."""
        node = heartbeat.node
        self._awaited.discard(node)
        known = self._events_to.get(node, 0)
        self._events_to[node] = max(known, heartbeat.events_from + len(heartbeat.events))
        self._answered[node] = max(self._answered.get(node, 0), heartbeat.answered)
        self._placement.heard(node, heartbeat.replicas)
        if heartbeat.ended is not None:
            self.ended[node] = heartbeat.ended
        return heartbeat.events[max(0, known - heartbeat.events_from) :]

    def has_news_for(self, heartbeat: Heartbeat) -> bool:
        """Whether a heartbeat is to be replied to now; otherwise after a while."""
        if self.leave is not None or (self.end is not None and heartbeat.ended is None):
            return True
        if heartbeat.asked < self._query:
            return True
        return self.end is None and self._has_assignments_for(heartbeat)

    def reply(self, heartbeat: Heartbeat, now: float) -> HeartbeatReply:
        """The reply to a heartbeat: a lease and assignments, as far as the plan is stored.

        Args:
            heartbeat: One that was heard.
            now: On the host's clock.
        """
        node = heartbeat.node
        events_to = self._events_to[node]
        if self.leave is not None:
            self.left.add(node)
            return HeartbeatReply(0.0, leave=self.leave, events_to=events_to)
        lease, assignments = 0.0, None
        if self.is_stored_for(node):
            if self._has_assignments_for(heartbeat):
                assignments = self._placement.assignments(node)
            self._placement.granted(node, now)
            lease = self.lease
        end = self.end if heartbeat.ended is None else None
        return HeartbeatReply(lease, assignments, end, None, events_to, self._query)

    def begin_query(self) -> int:
        """Have all nodes ask their actors for their counters; returns the number of this query."""
        self._query += 1
        return self._query

    def have_answered(self, nodes: Iterable[str], query: int) -> bool:
        """Whether nodes have answered a query."""
        return all(self._answered.get(node, 0) >= query for node in nodes)

    def _has_assignments_for(self, heartbeat: Heartbeat) -> bool:
        changed = self._placement.changed_for(heartbeat.node)
        return heartbeat.known < changed and self.is_stored_for(heartbeat.node)
