"""The status of a host's cluster, with counters that actors are asked for at that moment."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from flowgentic_actors.actors.child import Child, ChildState
from flowgentic_actors.actors.stats_query import query_stats
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.controller import ClusterController
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.cluster.protocol.status import (
    ActorStatus,
    ClusterStatus,
    NodeStatus,
    known_stats,
)

_HEARING: Final = 1.0  # seconds for the actors to answer; what is older says so


class StatusReporter:
    """Builds the status of a host's cluster.

    Args:
        spec: The host's spec.
        supervisor: Of the actors on this node.
        epochs: Of the last incarnation of each actor under earlier hosts.
        is_ending: Whether the cluster's work is ending.
    """

    def __init__(
        self,
        spec: HostSpec,
        supervisor: Supervisor,
        epochs: Mapping[str, int],
        is_ending: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._supervisor = supervisor
        self._epochs = epochs
        self._is_ending = is_ending

    async def status(self, controller: ClusterController | None) -> ClusterStatus:
        """The status, with the counters that actors answer within a second, or reported last.

        Args:
            controller: The nodes, None for this one alone.
        """
        left = anyio.current_effective_deadline() - anyio.current_time()
        timeout = min(_HEARING, left / 2)  # an answer that is partly old is better than none
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(query_stats, self._supervisor.children, timeout)
            if controller is not None:
                tasks.start_soon(controller.hear, timeout)
        if controller is not None:
            controller.request_publish()
        return self._status(controller)

    def _status(self, controller: ClusterController | None) -> ClusterStatus:
        spec = self._spec
        if controller is not None:
            actors, nodes = list(controller.actors()), controller.nodes()
        else:
            slots = Counter(even_table(spec.actors, spec.namespace_depth).shards)
            children = enumerate(self._supervisor.children)
            actors, nodes = [_actor_status(n, child, slots[n]) for n, child in children], ()
        if not nodes:
            here, now = socket.gethostname(), time.time()
            nodes = (
                NodeStatus(name=here, state="up", leads=spec.actors, follows=0, last_heard=now),
            )
        return ClusterStatus(
            name=spec.name,
            mode="distributed",
            spawner=spec.spawner,
            host_pid=os.getpid(),
            uptime=time.time() - spec.opened,
            host_restarts=spec.restarts,
            folder=spec.folder,
            actors=tuple(actors or map(self._not_started, range(spec.actors))),
            n_nodes=sum(node.state == "up" for node in nodes),
            nodes=nodes,
        )

    def _not_started(self, shard: int) -> ActorStatus:
        """The status of an actor that this host did not start, from the record of earlier hosts."""
        name = actor_name(shard)
        epoch = self._epochs.get(name, 0)
        return ActorStatus(
            name=name,
            shard=shard,
            node="",
            pid=None,
            epoch=epoch,
            state=ChildState.STOPPED if self._is_ending() else ChildState.STARTING,
            restarts=epoch,
        )


def _actor_status(shard: int, child: Child, slots: int) -> ActorStatus:
    alive = child.state in (ChildState.RUNNING, ChildState.DEGRADED)
    return ActorStatus(
        name=child.spec.name,
        shard=shard,
        node=child.node,
        pid=child.pid if alive else None,
        epoch=child.epoch,
        state=child.state,
        as_of=child.as_of,
        last_heard=child.last_heard,
        restarts=child.restarts,
        reason=child.reason,
        slots=slots,
        **known_stats(child.stats),
    )
