"""Rebalancing: moves slots until they are spread evenly over the nodes in use.

A shard is never moved as a whole: where one is wanted, an empty one is made, with both its copies,
and slots move to it. One that has no place any more is emptied, and ends. So there is one way for
data to move, and at no time fewer copies of anything than there shall be.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import anyio

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, moves, rebalanced
from flowgentic_actors.errors import RejectedError
from flowgentic_actors.shard.progress import MigrationStatus

_ATTEMPTS: Final = 20  # to go on with what is left, when a node was lost or an actor ended
_PAUSE: Final = 0.5
_SILENCE: Final = 15.0  # seconds without a sign that what was ordered is being done
_HELD: Final = 5.0  # seconds for which slots are held, at most: their callers wait
_FAREWELL: Final = 1.0  # for clients to hear whom to ask, before a shard that has no slots ends


class Layout(NamedTuple):
    """The wanted distribution of shards over nodes.

    Attributes:
        keep: Shards that stay where they are.
        make: Node of the leader and of the follower of each new shard.
        end: Shards that have no place.
    """

    keep: list[int]
    make: list[tuple[str, str]]
    end: list[int]


def lay_out(plan: ClusterPlan, nodes: Sequence[str], *, actors: int, replicas: int) -> Layout:
    """Give each node the same number of leaders, with as few moves as possible.

    Args:
        plan: What there is.
        nodes: The nodes to use, in their order.
        actors: Leaders of each.
        replicas: Copies of each shard.
    """
    two = replicas > 1 and len(nodes) > 1
    keep: list[int] = []
    leads, follows = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0)
    for shard in plan.shards:
        stays = leads.get(shard.leader, actors) < actors and not shard.retired
        if stays and (not two or shard.follower in follows):
            keep.append(shard.shard)
            leads[shard.leader] += 1
            if two:
                follows[shard.follower] += 1
    make = []
    for index, node in enumerate(nodes):
        others = [*nodes[index + 1 :], *nodes[:index]]
        for _ in range(actors - leads[node]):
            follower = min(others, key=follows.__getitem__) if two else ""
            make.append((node, follower))
            if two:
                follows[follower] += 1
    end = [p.shard for p in plan.shards if not p.retired and p.shard not in keep]
    return Layout(keep, make, end)


class _BeginAnewError(Exception):
    """The planned moves are not possible any more; plan them anew."""


class Rebalancing:
    """Moves slots to the wanted distribution, one migration at a time.

    Args:
        placement: What decides and is told.
        actors: Leaders of each node.
        replicas: Copies of each shard.
        rate: Bytes that move in a second, at most.
        start_timeout: Seconds in which a new actor has to serve.
        changed: To be awaited until something may have changed, or a moment has passed.
        stir: Called when something was decided.
        sleep: Lets seconds pass.
        now: A clock, in seconds.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        actors: int,
        replicas: int,
        rate: int,
        start_timeout: float,
        changed: Callable[[], Awaitable[None]],
        stir: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = placement
        self._actors = actors
        self._replicas = replicas
        self._rate = rate
        self._start_timeout = start_timeout
        self._changed = changed
        self._stir = stir
        self._sleep = sleep
        self._now = now

    async def run(self, nodes: Sequence[str]) -> None:
        """Spread the slots over nodes, and continue when one of them is lost meanwhile.

        Args:
            nodes: The nodes.

        Raises:
            RejectedError: If it cannot be done.
        """
        why = ""
        for _ in range(_ATTEMPTS):
            there = [node for node in nodes if node in self._placement.nodes]
            plan = self._placement.plan
            owners = plan.table.owners if plan.table is not None else ()
            lost = [actor_name(shard) for shard in owners if plan.shards[shard].lost]
            if lost:
                raise RejectedError(
                    f"{', '.join(lost)}: lost with its node, so its slots cannot move. Bring the "
                    "node back, or go on without what it had: open another cluster"
                )
            layout = lay_out(plan, there, actors=self._actors, replicas=self._replicas)
            try:
                await self._carry_out(layout)
            except _BeginAnewError as error:
                why = str(error)
                await self._sleep(_PAUSE)
            else:
                return
        raise RejectedError(f"slots were moved, but not all of them: {why}. Try again")

    async def _carry_out(self, layout: Layout) -> None:
        placement = self._placement
        new = placement.add_shards(layout.make)
        self._stir()
        for shard in new:
            await self._until(partial(self._serves, shard), self._start_timeout, shard)
        table = placement.plan.table
        assert table is not None
        target = self._target(table, layout, new)
        for (source, taker), slots in sorted(moves(table, target).items()):
            await self._move(source, taker, slots)
        if not layout.end:
            return
        await self._sleep(_FAREWELL)
        for shard in layout.end:
            placement.retire(shard)
            self._stir()

    def _target(self, table: SlotTable, layout: Layout, new: Sequence[int]) -> SlotTable:
        """The slot table to reach; a shard that ends leaves its slots to a new one of its node."""
        shards = self._placement.plan.shards
        heirs: dict[int, int] = {}
        for shard in layout.end:
            here = [n for n in new if shards[n].leader == shards[shard].leader]
            if heir := [n for n in here if n not in heirs.values()]:
                heirs[shard] = heir[0]
        slots = tuple(heirs.get(shard, shard) for shard in table.shards)
        weights = dict.fromkeys([*layout.keep, *new], 1.0)
        return rebalanced(SlotTable(table.version, slots, table.namespace_depth), weights)

    def _serves(self, shard: int) -> bool:
        """Whether all copies of a shard are up, so that slots are as safe there as before."""
        plan, member = self._placement.plan.shards[shard], self._placement.leader_status(shard)
        if not plan.leader:
            raise _BeginAnewError(f"the node of {actor_name(shard)} was lost")
        if member is not None and member.state == "failed":
            where = f"{actor_name(shard)} does not start on {plan.leader}"
            raise RejectedError(f"{where}: {member.reason}")
        return member is not None and member.leads and (plan.caught_up or not plan.follower)

    async def _move(self, source: int, target: int, slots: Sequence[int]) -> None:
        """Move slots from one shard to another.

        Raises:
            _BeginAnewError: If they stayed.
        """
        placement = self._placement
        await self._until(partial(self._serves, target), self._start_timeout, target)
        epoch = self._epoch(target)
        number = placement.moves.begin(source, target, slots, self._rate)
        self._stir()

        def done() -> bool:
            return self._takes(target, number, epoch).done and self._serves(target)

        why = "whoever moved them was ended"
        try:
            await self._until_near(target, number, epoch)
            placement.moves.freeze(number)
            self._stir()
            await self._until(done, _HELD, target)
            placement.moves.commit(number)
        except _BeginAnewError as error:
            why = str(error)
            raise
        finally:
            placement.moves.give_up(number, why)  # which is nothing, once it is decided
            self._stir()

    def _epoch(self, shard: int) -> int:
        """The epoch of the incarnation that leads a shard."""
        member = self._placement.leader_status(shard)
        return member.epoch if member is not None else 0

    async def _until_near(self, target: int, number: int, epoch: int) -> None:
        """Wait until a target has almost all of its new slots, as long as it makes progress."""
        steps, deadline = -1, 0.0
        while True:
            found = self._takes(target, number, epoch)
            if found.near:
                return
            if found.steps != steps:
                steps, deadline = found.steps, self._now() + _SILENCE
            elif self._now() > deadline:
                raise _BeginAnewError(f"{actor_name(target)} does not get on with the slots")
            await self._changed()

    def _takes(self, shard: int, number: int, epoch: int) -> MigrationStatus:
        """The status of a shard's migration as the target."""
        if self._placement.moves.find(number) is None:
            raise _BeginAnewError("a node was lost meanwhile")
        member = self._placement.leader_status(shard)
        if member is not None and member.epoch != epoch:
            raise _BeginAnewError(f"{actor_name(shard)} ended, and was started again")
        found = member.migration if member is not None and member.leads else None
        if found is None or found.move != number:
            return MigrationStatus(number)
        if found.failed:
            raise _BeginAnewError(
                f"{actor_name(shard)} could not take the slots over (event slots_not_taken)"
            )
        return found

    async def _until(self, so: Callable[[], bool], timeout: float, shard: int) -> None:
        """Wait until a condition holds."""
        deadline = self._now() + timeout
        while not so():
            if self._now() > deadline:
                raise _BeginAnewError(f"nothing was heard of {actor_name(shard)} in time")
            await self._changed()
