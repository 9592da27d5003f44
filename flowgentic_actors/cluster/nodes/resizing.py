"""Resizing: adds nodes to a running cluster, and removes them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from anyio.abc import TaskGroup

from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.rebalancing import Rebalancing
from flowgentic_actors.cluster.protocol.host import Rebalance, RebalanceReply
from flowgentic_actors.errors import FlowgenticError, InvalidRequestError, RejectedError
from flowgentic_actors.event_kinds import EventKind


class Resizing:
    """Runs one resizing at a time; it continues when its caller disconnects.

    Args:
        tasks: The task group that owns the work.
        placement: What decides.
        node_pool: The programs of the other nodes.
        specs: Makes the spec of a node.
        rebalancing: Makes what moves the slots, at a rate.
        changed: To be awaited until something may have changed, or a moment has passed.
        stir: Called when something was decided.
        joined: Told which nodes have joined, before they are told anything.
        on_event: Told what happens.
        replicas: Copies of each shard.
        start_timeout: Seconds in which new nodes have to join.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        placement: Placement,
        node_pool: NodePool,
        *,
        specs: Callable[[str], NodeSpec],
        rebalancing: Callable[[int], Rebalancing],
        changed: Callable[[], Awaitable[None]],
        stir: Callable[[], None],
        joined: Callable[[Sequence[str]], None],
        on_event: Callable[[EventKind, str, str], None],
        replicas: int,
        start_timeout: float,
    ) -> None:
        self._tasks = tasks
        self._placement = placement
        self._node_pool = node_pool
        self._specs = specs
        self._rebalancing = rebalancing
        self._changed = changed
        self._stir = stir
        self._joined = joined
        self._on_event = on_event
        self._replicas = replicas
        self._start_timeout = start_timeout
        self._number: int | None = None  # of the call that is being, or was last, carried out
        self._reply = RebalanceReply(True)

    async def asked(self, command: Rebalance) -> RebalanceReply:
        """Begin the requested resizing, unless it was begun, and wait a while for its end.

        Raises:
            RejectedError: If something else is under way.
            InvalidRequestError: If it is not possible.
        """
        if command.number != self._number:
            if not self._reply.done:
                raise RejectedError(
                    "this cluster is being rebalanced already: wait for that, then call again"
                )
            self._number, self._reply = command.number, RebalanceReply(False)
            self._tasks.start_soon(self._run, command)
        deadline = time.monotonic() + command.wait
        while not self._reply.done and time.monotonic() < deadline:
            await self._changed()
        return self._reply

    async def _run(self, command: Rebalance) -> None:
        error = ""
        try:
            nodes = await self._gather(command)
            self._on_event(EventKind.REBALANCE_BEGUN, "", f"over {', '.join(nodes)}")
            self._placement.set_eligible_nodes(nodes, command.without)
            self._stir()
            await self._rebalancing(command.rate).run(nodes)
            self._on_event(EventKind.REBALANCED, "", f"over {', '.join(nodes)}")
        except FlowgenticError as failure:
            error = str(failure)
        except (OSError, TimeoutError) as failure:
            error = f"on the host's node, {failure!r} (setting: scratch)"
        if error:
            self._on_event(EventKind.REBALANCE_FAILED, "", error)
        self._reply = RebalanceReply(True, error)

    async def _gather(self, command: Rebalance) -> list[str]:
        """Determine the nodes to use, the host's own first, and start those that are not up."""
        placement, here = self._placement, self._node_pool.here
        there = [node for node in placement.nodes if node != here]
        there.sort(key=lambda node: node in placement.plan.spare)  # those in use come first
        lost = set(self._node_pool.machines) - set(placement.nodes)
        others = await self._node_pool.others(command.nodes + len(lost))
        # Nothing is asked of a node that was lost: it comes by itself, or it does not.
        new = [node for node in others if node not in there and node not in lost]
        strange = set(command.without) - {here, *there, *others, *lost}
        if strange:
            known = ", ".join([here, *there, *new])
            raise InvalidRequestError(f"without: {min(strange)!r} is none of the nodes: {known}")
        if here in command.without:
            raise InvalidRequestError(
                f"without: {here} is the host's node, whose end is the cluster's. Close the "
                "cluster, and open it on other nodes (setting: persist_path)"
            )
        usable = [node for node in [*there, *new] if node not in command.without]
        most = command.nodes or len(usable) + 1
        if most > len(usable) + 1:
            raise InvalidRequestError(
                f"n_nodes={most}, and there are {len(usable) + 1}: {', '.join([here, *usable])}"
            )
        chosen = usable[: most - 1]
        self._check_replicas(chosen)
        starting = [node for node in chosen if node not in there]
        if starting:
            joined = await self._node_pool.add(starting, time.monotonic() + self._start_timeout)
            self._joined(joined)
            await self._node_pool.hand_out(self._specs)
            chosen = [node for node in chosen if node in there or node in joined]
            self._check_replicas(chosen)
        return [here, *chosen]

    def _check_replicas(self, others: Sequence[str]) -> None:
        if self._replicas > len(others) + 1:
            here = self._node_pool.here
            raise InvalidRequestError(
                f"replicas={self._replicas} needs as many nodes, and {here} would be alone"
            )
