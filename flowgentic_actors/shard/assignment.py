"""The assignment of one copy of a shard, as it travels from the plan to the copy's actor."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from flowgentic_actors.shard.migration.ownership import SlotOwnership
from flowgentic_actors.wire.addresses import Address

ReplicaRole: TypeAlias = Literal["leader", "follower"]


class Assignment(Struct, array_like=True, frozen=True):
    """One copy of a shard that a node has to keep.

    Attributes:
        shard: Number of the shard.
        role: The leader answers clients; a follower keeps what the leader tells it.
        term: Number of this arrangement of leader and follower; it grows with every change of
            either, and what belongs to two terms is never mixed.
        leader: Where a follower finds its leader, None while it serves nowhere.
        follower: Node that is to have the other copy, empty for none.
        allow_single_copy: Whether a leader that has no follower, or none that has caught up, may go
            on as if one copy were enough.
        follower_in_sync: Whether the follower has caught up, so that nothing may be acknowledged
            without it.
        ownership: The slots that a leader answers for; None for all.
    """

    shard: int
    role: ReplicaRole
    term: int
    leader: Address | None = None
    follower: str = ""
    allow_single_copy: bool = True
    follower_in_sync: bool = False
    ownership: SlotOwnership | None = None

    @property
    def leads(self) -> bool:
        """Whether the copy is the leader."""
        return self.role == "leader"
