"""Assignments of a node and the status that it reports: messages of host and agents."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.progress import MigrationStatus
from flowgentic_actors.wire.addresses import Address

NodeName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]


class NodeAssignments(Struct, array_like=True, frozen=True):
    """All assignments of a node.

    Attributes:
        version: Grows with every change.
        per_shard: At most one for each shard; what is not among them the node has to end.
    """

    version: int
    per_shard: tuple[Assignment, ...]


class ReplicaStatus(Struct, array_like=True, frozen=True):
    """The status of one replica of a shard.

    Attributes:
        shard: Number of the shard.
        state: As in `ActorStatus`.
        term: Term in which it leads or follows now, 0 for none yet.
        leads: Whether it answers clients.
        caught_up: Whether it leads and its follower has had everything once in this term.
        resync_required: Whether the follower had to start over after that.
        path: Its Unix socket, on its own node.
        address: Where other nodes reach it, None while it serves nowhere.
        pid: Its process, 0 for none.
        epoch: Number of its incarnation.
        restarts: Times it was restarted.
        reason: Why it ended last.
        stats: Its counters.
        as_of: When they were so; see `ActorStatus`.
        last_heard: When it last gave a sign of life.
        unanswered: Times in a row that it has not reached the leader that it follows.
        migration: Slots that it takes over, or took over last.
    """

    shard: int
    state: str
    term: int
    leads: bool
    caught_up: bool
    resync_required: bool
    path: str
    address: Address | None
    pid: int
    epoch: int
    restarts: int
    reason: str
    stats: dict[str, int]
    as_of: float | None = None
    last_heard: float | None = None
    unanswered: int = 0
    migration: MigrationStatus | None = None


def actor_name(shard: int) -> str:
    """The name of a shard's actors, the same on every node."""
    return f"shard-{shard}"
