"""The status of a host's cluster, with counters that actors are asked for at that moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.cluster.host.topology import Topology
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.cluster.protocol.status import ActorStatus, ClusterStatus, actor_status

_HEARING: Final = 1.0  # seconds for the actors to answer; what is older says so


class StatusReporter:
    """Builds the status of a host's cluster.

    Args:
        spec: The host's spec.
        epochs: Of the last incarnation of each actor under earlier hosts.
        is_ending: Whether the cluster's work is ending.
    """

    def __init__(
        self, spec: HostSpec, epochs: Mapping[str, int], is_ending: Callable[[], bool]
    ) -> None:
        self._spec = spec
        self._epochs = epochs
        self._is_ending = is_ending

    async def status(self, topology: Topology) -> ClusterStatus:
        """The status, with the counters that actors answer within a second, or reported last."""
        spec = self._spec
        left = anyio.current_effective_deadline() - anyio.current_time()
        # An answer that is partly old is better than none
        await topology.query_stats(min(_HEARING, left / 2))
        nodes = topology.nodes()
        return ClusterStatus(
            name=spec.name,
            mode="distributed",
            spawner=spec.spawner,
            host_pid=os.getpid(),
            uptime=time.time() - spec.opened,
            host_restarts=spec.restarts,
            folder=spec.folder,
            actors=topology.actors() or tuple(map(self._not_started, range(spec.actors))),
            n_nodes=sum(node.state == "up" for node in nodes),
            nodes=nodes,
        )

    def _not_started(self, shard: int) -> ActorStatus:
        """The status of an actor that this host did not start, from the record of earlier hosts."""
        state = ChildState.STOPPED if self._is_ending() else ChildState.STARTING
        epoch = self._epochs.get(actor_name(shard), 0)
        return actor_status(shard, state, None, node="", epoch=epoch)
