"""The status and events of a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus, actor_name
from flowgentic_actors.event_kinds import WARNINGS
from flowgentic_actors.shard.hot_keys import hot_in

if TYPE_CHECKING:
    from flowgentic_actors.actors.child import Child


class ActorStatus(Struct, frozen=True, kw_only=True):
    """The status of one memory actor.

    Attributes:
        name: Its name, such as `shard-0`.
        shard: Number of its shard.
        node: Host name of the node it runs on.
        pid: Its process, None while it has none.
        epoch: Number of its incarnation, 1 for the first.
        as_of: When the counters below were so, seconds since the Unix epoch by its node's clock:
            the moment of the call, or earlier for an actor that did not answer within a second.
            None while this incarnation has told none, and for a shard whose node is lost.
        last_heard: When it last gave a sign of life, on the same clock; None for never.
        state: `starting`, `running`, `restarting`, `degraded` (in the host's own process),
            `failed`, `stopped`, or `lost` with its node.
        restarts: Times it was restarted.
        reason: Why it ended last, empty if it never did.
        requests: Requests handled by this incarnation.
        rejected: Requests refused by this incarnation.
        mailbox_requests: Requests waiting in its mailbox.
        mailbox_bytes: Bytes waiting in its mailbox.
        threads: Threads with anything stored.
        checkpoints: Checkpoints stored.
        items: Store items stored.
        blob_bytes: Bytes of stored values, vectors included.
        vector_bytes: Bytes of the vectors that items are searched by.
        cached: Cached values.
        cache_bytes: Bytes that they take.
        journal_bytes: Bytes in its journal, 0 without one.
        compactions: Compactions of its journal by this incarnation.
        hot_bytes: Bytes of values in its own memory, in a distributed cluster.
        ddict_bytes: Bytes in its DDict, 0 without one.
        cold_reads: Values that this incarnation had to fetch from the DDict or the journal.
        ddict_reads: Those of them that came from the DDict.
        hot: Threads, and namespaces by their first labels, that take a large part of its requests,
            such as `thread 'abc' 61 %`; none while it has few, nor in a local cluster.
        slots: Slots that it answers for, of 4,096 in all.
        replica_node: Node of its second copy, empty for none.
        replica_ready: Whether that copy has everything that was acknowledged.
        replica_lag: Bytes of journal that it does not have yet.
    """

    name: str
    shard: int
    node: str
    pid: int | None
    epoch: int
    state: str
    as_of: float | None = None
    last_heard: float | None = None
    restarts: int = 0
    reason: str = ""
    requests: int = 0
    rejected: int = 0
    mailbox_requests: int = 0
    mailbox_bytes: int = 0
    threads: int = 0
    checkpoints: int = 0
    items: int = 0
    blob_bytes: int = 0
    vector_bytes: int = 0
    cached: int = 0
    cache_bytes: int = 0
    journal_bytes: int = 0
    compactions: int = 0
    hot_bytes: int = 0
    ddict_bytes: int = 0
    cold_reads: int = 0
    ddict_reads: int = 0
    hot: tuple[str, ...] = ()
    slots: int = 0
    replica_node: str = ""
    replica_ready: bool = False
    replica_lag: int = 0


def actor_status(
    shard: int,
    state: str,
    copy: Child | ReplicaStatus | None,
    *,
    node: str,
    slots: int = 0,
    epoch: int = 0,
    replica_node: str = "",
    replica_ready: bool = False,
) -> ActorStatus:
    """The status of a shard's actor, of which nothing may be known but its last `epoch`."""
    alive = state in ("running", "degraded")
    return ActorStatus(
        name=actor_name(shard),
        shard=shard,
        node=node,
        pid=copy.pid or None if copy is not None and alive else None,
        epoch=copy.epoch if copy is not None else epoch,
        state=state,
        as_of=copy.as_of if copy is not None else None,
        last_heard=copy.last_heard if copy is not None else None,
        restarts=copy.restarts if copy is not None else epoch,
        reason=copy.reason if copy is not None else "",
        slots=slots,
        replica_node=replica_node,
        replica_ready=replica_ready,
        **known_stats(copy.stats if copy is not None else {}),
    )


def known_stats(stats: Mapping[str, int]) -> dict[str, Any]:
    """The counters of an actor that `ActorStatus` has fields for."""
    known = {name: stats[name] for name in ActorStatus.__struct_fields__ if name in stats}
    return {**known, "hot": hot_in(stats)}


def blocked(seconds: float) -> str:
    """The detail of a `loop_blocked` event: which program, and for how long."""
    return f"pid {os.getpid()} on {os.uname().nodename}: for {seconds:.1f} s"


class NodeStatus(Struct, frozen=True, kw_only=True):
    """The status of one node.

    Attributes:
        name: Its host name.
        state: `up`, `lost` when nothing is heard of it any more, or `spare` when `rebalance` was
            told to do without it.
        leads: Shards that it answers for.
        follows: Shards of which it has the second copy.
        last_heard: When the host last heard of it, seconds since the Unix epoch; None for never.
    """

    name: str
    state: str
    leads: int
    follows: int
    last_heard: float | None = None


class ClusterStatus(Struct, frozen=True, kw_only=True):
    """The status of a cluster at the moment of the call; older counters have an `as_of`.

    Attributes:
        name: Its name.
        mode: `local` or `distributed`.
        spawner: `inline`, `subprocess` or `dragon`.
        host_pid: Process of its host, or of the program itself in local mode.
        uptime: Seconds since it was opened.
        folder: Where its sockets and, without `persist_path`, journals are; empty in local mode.
        actors: Its actors, by shard.
        host_restarts: Times its host was restarted.
        n_nodes: Nodes that run now.
        nodes: Its nodes, the host's own first.
    """

    name: str
    mode: str
    spawner: str
    host_pid: int
    uptime: float
    folder: str
    actors: tuple[ActorStatus, ...]
    host_restarts: int = 0
    n_nodes: int = 1
    nodes: tuple[NodeStatus, ...] = ()


class ClusterEvent(Struct, frozen=True, kw_only=True):
    """An event of a cluster.

    Attributes:
        number: Counts up from 0.
        time: Seconds since the Unix epoch.
        kind: An `EventKind`; another one only if it is told by a newer version of this package.
        actor: The actor concerned, or empty.
        detail: Description. In a cluster of several nodes, what happens to an actor names its node,
            and whether it leads its shard there or follows.
    """

    number: int
    time: float
    kind: str
    actor: str
    detail: str

    def log(self, cluster: str, logger: logging.Logger) -> None:
        """Log the event as a warning, if its kind is in `WARNINGS`."""
        if self.kind in WARNINGS:
            what = f"{self.kind} {self.actor}".rstrip()
            logger.warning("cluster %s: %s: %s", cluster, what, self.detail)
