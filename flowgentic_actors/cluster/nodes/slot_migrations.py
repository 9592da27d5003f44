"""Slot migrations: the part of the plan about slots that move between shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan, SlotMigration
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.engine.slots import SlotSet
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.migration.ownership import PullOrder, SlotOwnership
from flowgentic_actors.wire.addresses import Address


class SlotMigrations:
    """Begins, commits and gives up migrations, and tells leaders which slots they own.

    Args:
        plan: The plan.
        address: Where the leader of a shard is, None while it serves nowhere.
        changed: Told the shards whose leaders have something to do now.
        tell: Told what was decided: kind, actor, detail.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        *,
        address: Callable[[ShardPlan], Address | None],
        changed: Callable[..., None],
        tell: Callable[[EventKind, str, str], None],
    ) -> None:
        self._plan = plan
        self._address = address
        self._mark = changed
        self._tell = tell

    def find(self, number: int) -> SlotMigration | None:
        """A migration by its number, None when it has ended."""
        return next((move for move in self._plan.moves if move.number == number), None)

    def begin(self, source: int, target: int, slots: Iterable[int], rate: int) -> int:
        """Begin a migration of slots from one shard to another.

        Args:
            source: The shard that has them.
            target: The other one.
            slots: The slots.
            rate: Bytes in a second, at most.

        Returns:
            The number of the move.
        """
        number = self._plan.version + 1
        packed = SlotSet.pack(slots)
        move = SlotMigration(number=number, source=source, target=target, slots=packed, rate=rate)
        self._plan.moves.append(move)
        self._mark(source, target)
        return number

    def freeze(self, number: int) -> None:
        """Freeze the slots of a migration that is nearly done: the source refuses requests."""
        for index, move in enumerate(self._plan.moves):
            if move.number == number:
                self._plan.moves[index] = replace(move, held=True)
                self._mark(move.source)

    def commit(self, number: int) -> None:
        """Commit a migration: the target has everything, and owns the slots from now on."""
        move, table = self.find(number), self._plan.table
        assert move is not None
        assert table is not None
        shards = list(table.shards)
        moved = SlotSet(move.slots)
        for slot in moved:
            assert shards[slot] == move.source
            shards[slot] = move.target
        table = SlotTable(table.version + 1, tuple(shards), table.namespace_depth)
        self._plan.table = table
        for shard in (move.source, move.target):
            self._plan.shards[shard].since = table.version
        self._plan.moves.remove(move)
        self._mark(move.source, move.target)
        name, count = actor_name(move.target), len(moved)
        self._tell(EventKind.SLOTS_MOVED, name, f"{count} slots from {actor_name(move.source)}")

    def give_up(self, number: int, why: str) -> None:
        """Give a migration up: the slots stay at the source."""
        move = self.find(number)
        if move is None:
            return
        self._plan.moves.remove(move)
        self._mark(move.source, move.target)
        what = f"{len(SlotSet(move.slots))} slots stay with {actor_name(move.source)}"
        self._tell(EventKind.SLOTS_STAYED, actor_name(move.target), f"{what}: {why}")

    def give_up_of(self, shard: int) -> None:
        """Give up all migrations from or to a shard that begins another term."""
        for move in list(self._plan.moves):
            if shard in (move.source, move.target):
                self.give_up(move.number, f"{actor_name(shard)} was arranged anew")

    def to(self, source: int) -> list[int]:
        """The targets of a source's migrations."""
        return [move.target for move in self._plan.moves if move.source == source]

    def ownership(self, plan: ShardPlan) -> SlotOwnership | None:
        """The slots that a shard owns, freezes or takes over."""
        table = self._plan.table
        if table is None:
            return None
        known, held, held_for, pull = 0, b"", 0, None
        for move in self._plan.moves:
            if plan.shard in (move.source, move.target):
                known = table.version
            if move.source == plan.shard and move.held:
                held, held_for = move.slots, move.number
            if move.target == plan.shard:
                source = self._address(self._plan.shards[move.source])
                pull = PullOrder(
                    move.number, source, actor_name(move.source), move.slots, move.rate
                )
        owned = SlotSet.pack(table.slots.get(plan.shard, ()))
        return SlotOwnership(plan.since, table.namespace_depth, owned, held, known, pull, held_for)
