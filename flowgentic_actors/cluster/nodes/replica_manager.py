"""The replicas of shards on one node: started, told and ended as its assignments say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.child import Child, ChildState
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.shard_specs import NodeMemory
from flowgentic_actors.cluster.protocol.assignments import (
    NodeAssignments,
    ReplicaStatus,
    actor_name,
)
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.progress import ReplicationStatus, decode_progress
from flowgentic_actors.wire.addresses import TcpAddress

_FILE_TIMEOUT = 60.0
_encode = msgspec.msgpack.Encoder().encode


class ReplicaManager:
    """Manages the replicas of shards on one node.

    Args:
        supervisor: The node's supervisor.
        tasks: The task group that owns the actors' watching.
        memory: What the replicas are made of. One that is not wanted here any more is removed if
            its shard has two.
        certificate: What the actors prove to other nodes.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        tasks: TaskGroup,
        memory: NodeMemory,
        certificate: str,
    ) -> None:
        self._supervisor = supervisor
        self._tasks = tasks
        self._memory = memory
        self._certificate = certificate
        self._assignments: dict[int, Assignment] = {}

    async def carry_out(self, assignments: NodeAssignments) -> None:
        """Carry out assignments; replicas without one are removed when this returns."""
        wanted = {assignment.shard: assignment for assignment in assignments.per_shard}
        for shard, now in list(self._assignments.items()):
            then = wanted.get(shard)
            if then is None or (now.leads and not then.leads):
                del self._assignments[shard]
                await self._supervisor.remove(actor_name(shard))
                if self._memory.replicated:
                    folder = self._memory.shard_folder(shard)
                    await on_daemon_thread(_FILE_TIMEOUT, shutil.rmtree, folder, True)
        for shard, assignment in wanted.items():
            told = Raw(_encode(assignment))
            before = self._assignments.get(shard)
            self._assignments[shard] = assignment
            if before is not None and before.term != assignment.term and self._has_failed(shard):
                # What was wrong may be right by now
                await self._supervisor.remove(actor_name(shard))
                before = None
            if before is None:
                await self._supervisor.add(self._tasks, self._memory.shard_spec(shard), told)
            elif before != assignment:
                self._supervisor.tell(actor_name(shard), told)

    def _has_failed(self, shard: int) -> bool:
        states = [c.state for c in self._supervisor.children if c.spec.name == actor_name(shard)]
        return states == [ChildState.FAILED]

    def unclean_leaders(self, ended: Mapping[str, str]) -> dict[str, str]:
        """The unclean shutdowns, excluding follower replicas, whose leaders have everything."""
        copies = {
            actor_name(assignment.shard)
            for assignment in self._assignments.values()
            if not assignment.leads
        }
        return {name: why for name, why in ended.items() if name not in copies}

    def located(self, name: str, detail: str, node: str) -> str:
        """The detail of an actor's event, with the node's name and the actor's role."""
        roles = [
            assignment.role
            for assignment in self._assignments.values()
            if actor_name(assignment.shard) == name
        ]
        where = f"{roles[0]} on {node}" if roles else f"on {node}"
        return f"{detail} ({where})" if detail else where

    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """The status of the replicas."""
        children = {child.spec.name: child for child in self._supervisor.children}
        return tuple(
            self._member(assignment, children[actor_name(shard)])
            for shard, assignment in self._assignments.items()
            if actor_name(shard) in children
        )

    def _member(self, assignment: Assignment, child: Child) -> ReplicaStatus:
        serves = child.state in (ChildState.RUNNING, ChildState.DEGRADED)
        progress = decode_progress(child.report)
        copy = progress.replication or ReplicationStatus()
        if self._memory.replicated and child.state is not ChildState.FAILED:
            term, leads = copy.term, serves and copy.leads
        else:  # of one that has failed, what it was to do
            term, leads = assignment.term, serves
        port = child.port
        address = TcpAddress(self._memory.ip, port, self._certificate) if serves and port else None
        return ReplicaStatus(
            shard=assignment.shard,
            state=child.state,
            term=term if serves or child.state is ChildState.FAILED else 0,
            leads=leads,
            caught_up=leads and copy.caught_up,
            resync_required=leads and copy.sent_back,
            path=child.spec.address,
            address=address,
            pid=child.pid if serves else 0,
            epoch=child.epoch,
            restarts=child.restarts,
            reason=child.reason,
            stats=child.stats,
            as_of=child.as_of,
            last_heard=child.last_heard,
            unanswered=copy.unanswered,
            migration=progress.migration,
        )
