"""The cluster plan: placement and slot table, stored before any node acts on them."""

from __future__ import annotations

from msgspec import Struct

from flowgentic_actors.cluster.protocol.slot_table import SlotTable


class ShardPlan(Struct, kw_only=True):
    """The placement of one shard's copies.

    Attributes:
        shard: Number of the shard.
        term: Number of this arrangement.
        leader: Node of the copy that answers, empty while the shard is lost.
        follower: Node of the other copy, empty for none.
        caught_up: Whether the follower has everything that was acknowledged; from then on the
            leader acknowledges nothing without it.
        lost: Node that had the only copy, while the shard is lost; if a follower is named then, it
            is lost as well, and its copy is as good.
        since: Version of the table in which its slots changed last.
        retired: Whether it has ended for good, after other shards got its slots.
    """

    shard: int
    term: int = 1
    leader: str = ""
    follower: str = ""
    caught_up: bool = False
    lost: str = ""
    since: int = 0
    retired: bool = False


class SlotMigration(Struct, frozen=True, kw_only=True):
    """Slots that one shard takes over from another, while both serve.

    Attributes:
        number: Number of the attempt.
        source: Shard that has them.
        target: Shard that gets them.
        slots: The slots, packed.
        rate: Bytes in a second, at most.
        held: Whether the source answers nothing about them any more, so that the rest can follow.
    """

    number: int
    source: int
    target: int
    slots: bytes
    rate: int
    held: bool = False


class ClusterPlan(Struct, kw_only=True):
    """The placement of all shards, stored before any node acts on it.

    Attributes:
        version: Grows with every change.
        shards: The plan of each shard, by number.
        table: Which shard has which slot, None where that is decided elsewhere, once and for all.
        moves: Slots that are on their way.
        spare: Nodes that are there and get no copies, unless there are too few others.
    """

    version: int
    shards: list[ShardPlan]
    table: SlotTable | None = None
    moves: list[SlotMigration] = []
    spare: list[str] = []

    @property
    def nodes(self) -> set[str]:
        """The nodes that have, or had last, a copy of a shard."""
        places = {node for plan in self.shards for node in (plan.leader, plan.follower, plan.lost)}
        return places - {""}

    @property
    def is_spread(self) -> bool:
        """Whether more nodes than one have copies."""
        return len(self.nodes) > 1
