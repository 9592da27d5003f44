"""Resizing: adds nodes to a running cluster, and removes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from anyio.abc import TaskGroup

from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.nodes.rebalancing import Rebalancing
from flowgentic_actors.cluster.protocol.host import Rebalance, RebalanceReply
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.errors import FlowgenticError, InvalidRequestError, RejectedError
from flowgentic_actors.event_kinds import EventKind


class ResizedCluster(Protocol):
    """The cluster that is resized.

    Attributes:
        placement: What decides.
        node_pool: The programs of the other nodes.
        on_event: Told what happens.
    """

    placement: Placement
    node_pool: NodePool
    on_event: Callable[[EventKind, str, str], None]

    def node_spec(self, node: str) -> NodeSpec:
        """The settings of a node."""

    def take_in(self, nodes: Sequence[str]) -> None:
        """Add nodes that have joined, before they are told anything."""

    def request_publish(self) -> None:
        """Publish what was decided."""

    async def changed(self) -> None:
        """Wait until something may have changed, or a moment has passed."""


class Resizing:
    """Runs one resizing at a time; it continues when its caller disconnects.

    Args:
        spec: What the host was told.
        tasks: The task group that owns the work.
        cluster: What is resized.
    """

    def __init__(self, spec: HostSpec, tasks: TaskGroup, cluster: ResizedCluster) -> None:
        self._spec = spec
        self._tasks = tasks
        self._cluster = cluster
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
            await self._cluster.changed()
        return self._reply

    async def _run(self, command: Rebalance) -> None:
        cluster, spec, error = self._cluster, self._spec, ""
        try:
            nodes = await self._gather(command)
            cluster.on_event(EventKind.REBALANCE_BEGUN, "", f"over {', '.join(nodes)}")
            cluster.placement.set_eligible_nodes(nodes, command.without)
            cluster.request_publish()
            rebalancing = Rebalancing(
                cluster.placement,
                actors=spec.actors,
                replicas=spec.replicas,
                rate=command.rate,
                start_timeout=spec.supervision.open_timeout,
                changed=cluster.changed,
                stir=cluster.request_publish,
            )
            await rebalancing.run(nodes)
            cluster.on_event(EventKind.REBALANCED, "", f"over {', '.join(nodes)}")
        except FlowgenticError as failure:
            error = str(failure)
        except (OSError, TimeoutError) as failure:
            error = f"on the host's node, {failure!r} (setting: scratch)"
        if error:
            cluster.on_event(EventKind.REBALANCE_FAILED, "", error)
        self._reply = RebalanceReply(True, error)

    async def _gather(self, command: Rebalance) -> list[str]:
        """Determine the nodes to use, the host's own first, and start those that are not up."""
        placement, node_pool = self._cluster.placement, self._cluster.node_pool
        here = node_pool.here
        there = [node for node in placement.nodes if node != here]
        there.sort(key=lambda node: node in placement.plan.spare)  # those in use come first
        lost = set(node_pool.machines) - set(placement.nodes)
        others = await node_pool.others(command.nodes + len(lost))
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
            joined = await node_pool.add(starting, self._cluster.node_spec, self._cluster.take_in)
            chosen = [node for node in chosen if node in there or node in joined]
            self._check_replicas(chosen)
        return [here, *chosen]

    def _check_replicas(self, others: Sequence[str]) -> None:
        replicas, here = self._spec.replicas, self._cluster.node_pool.here
        if replicas > len(others) + 1:
            raise InvalidRequestError(
                f"replicas={replicas} needs as many nodes, and {here} would be alone"
            )
