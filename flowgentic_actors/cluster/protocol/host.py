"""Commands to a host, and its replies."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from flowgentic_actors.cluster.protocol.assignments import NodeAssignments, NodeName, ReplicaStatus
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.protocol.slot_table import SlotTable
from flowgentic_actors.cluster.protocol.status import ClusterEvent, ClusterStatus
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.wire.addresses import Address, TcpAddress


class Describe(Struct, tag=1, array_like=True, frozen=True):
    """Ask how to reach the actors. Answered once all of them serve."""


class GetStatus(Struct, tag=2, array_like=True, frozen=True):
    """Ask for the cluster's status."""


class GetEvents(Struct, tag=3, array_like=True, frozen=True):
    """Ask for events from a number on, waiting a while for one. The owner's heartbeat."""

    start: Annotated[int, Meta(ge=0)]
    wait: Annotated[float, Meta(ge=0, le=60)]


class Shutdown(Struct, tag=4, array_like=True, frozen=True):
    """End the cluster in order; only its owner may ask. Answered when all actors have ended."""

    timeout: Annotated[float, Meta(gt=0)]


class End(Struct, tag=6, array_like=True, frozen=True):
    """Drain and end the actors, and stay to refuse requests with the reason; for the owner."""

    reason: Annotated[str, Meta(max_length=1024)]


class GetShardMap(Struct, tag=7, array_like=True, frozen=True):
    """Ask for the shard map once it has changed; waits a while for that.

    Attributes:
        version: What the asker knows.
        wait: Seconds.
    """

    version: int
    wait: Annotated[float, Meta(ge=0, le=60)]


class Heartbeat(Struct, tag=8, array_like=True, frozen=True):
    """A node's sign of life, and request for a lease; answered at once with new assignments.

    Attributes:
        node: Its name.
        host: What the host that it joined calls itself: one that took its place has others.
        known: Version of the assignments that it has carried out.
        replicas: How its copies of shards are doing.
        events: What happened there: kind, actor, detail.
        events_from: Number of the first of them; the host has heard of those before it.
        ended: Once its actors have ended: those that did not end in order, and why.
        asked: Number of the last question (`HeartbeatReply.asks`) that it has heard.
        answered: Number of the last question that it has answered; `replicas` are not older.
    """

    node: NodeName
    host: str
    known: int
    replicas: tuple[ReplicaStatus, ...]
    events: tuple[tuple[EventKind, str, str], ...]
    events_from: int = 0
    ended: dict[str, str] | None = None
    asked: int = 0
    answered: int = 0


class AttachRank(Struct, tag=9, array_like=True, frozen=True):
    """Attach a rank of the job step, for as long as its connection is open.

    Attributes:
        rank: Its number; 0 of another process that has the first one's.
    """

    rank: Annotated[int, Meta(ge=0)]


class AwaitRanks(Struct, tag=10, array_like=True, frozen=True):
    """Wait until all ranks have attached and left, or for a while.

    Attributes:
        size: Ranks of the step, the owner's own included.
        wait: Seconds.
    """

    size: Annotated[int, Meta(ge=2)]
    wait: Annotated[float, Meta(ge=0, le=60)]


class Rebalance(Struct, tag=11, array_like=True, frozen=True):
    """Spread the slots evenly over nodes; answered when that is done, or after a while.

    Attributes:
        number: Of the call: asked again under the same one, it is waited for and not done anew.
        nodes: Nodes to use, 0 for all that there are.
        without: Nodes that are not to be used.
        rate: Bytes that move in a second, at most.
        wait: Seconds.
    """

    number: int
    nodes: Annotated[int, Meta(ge=0)]
    without: tuple[NodeName, ...]
    rate: Annotated[int, Meta(gt=0)]
    wait: Annotated[float, Meta(ge=0, le=60)]


class RebalanceReply(Struct, tag=9, array_like=True, frozen=True):
    """The reply to `Rebalance`: whether it is done.

    Attributes:
        done: Whether nothing is under way any more.
        error: Why not all of it was done, empty when it was.
    """

    done: bool
    error: str = ""


class RanksReply(Struct, tag=8, array_like=True, frozen=True):
    """The reply to `AwaitRanks`: the ranks that are present, and those that never were."""

    present: tuple[int, ...]
    missing: tuple[int, ...]


class LoopBlocked(Struct, tag=12, array_like=True, frozen=True):
    """Report that a client's event loop was blocked, to be added as an event.

    Attributes:
        detail: The client's process, and for how long.
    """

    detail: Annotated[str, Meta(max_length=1024)]


HostCommand: TypeAlias = (
    AttachRank
    | AwaitRanks
    | Describe
    | GetStatus
    | GetEvents
    | Shutdown
    | End
    | GetShardMap
    | Heartbeat
    | Rebalance
    | LoopBlocked
)


class ShardLocation(Struct, array_like=True, frozen=True):
    """The location of a shard's actor.

    Attributes:
        name: Its name.
        machine: The machine that it is on, as `environment.machine` names it.
        path: Its Unix socket, for clients on the same machine.
        host: Where all others reach it, empty for nowhere.
        port: Its TCP port.
        lost: Why there is none, empty when there is one, or soon will be.
        retired: Whether its slots are other shards' now, and it has ended.
    """

    name: str
    machine: str
    path: str
    host: str = ""
    port: int = 0
    lost: str = ""
    retired: bool = False


class ShardMap(Struct, tag=6, array_like=True, frozen=True):
    """The shard map: the location of each shard.

    Attributes:
        version: Grows with every change.
        table: Where each key lives.
        locations: Of each shard.
        certificate: What its actors prove to other machines: the same for all.
        closing: Why there are none any more, once all have ended in order.
        closed: Whether the host ends as well, so that no question is answered any more.
    """

    version: int
    table: SlotTable
    locations: tuple[ShardLocation, ...]
    certificate: str = ""
    closing: str = ""
    closed: bool = False

    def route(self, location: ShardLocation, here: str) -> Address | None:
        """The address at which a process reaches a shard, None while there is none.

        Args:
            location: One of these.
            here: The machine of the process.
        """
        if location.path and location.machine == here:
            return location.path
        if not location.port:
            return None
        return TcpAddress(location.host, location.port, self.certificate)


class Description(Struct, tag=1, array_like=True, frozen=True):
    """The reply to `Describe`: how to reach the actors.

    Attributes:
        spawner: Who started them.
        shard_map: Where they are.
        max_message_bytes: Largest message they take.
        changes: Whether the places can change, so that it is worth asking again.
        host: Where other nodes reach the host, None for nowhere.
        shared: What the opener decided for all programs, and its memory remembers.
        found: Name of the cluster that had the memory before, empty for a new memory.
        memory: The memory's folder.
    """

    spawner: str
    shard_map: ShardMap
    max_message_bytes: int
    changes: bool = False
    host: TcpAddress | None = None
    shared: SharedSettings | None = None
    found: str = ""
    memory: str = ""


class EndNode(Struct, array_like=True, frozen=True):
    """An order to a node to end.

    Attributes:
        reason: Why.
        timeout: Seconds that it has for that.
    """

    reason: str
    timeout: float


class HeartbeatReply(Struct, tag=7, array_like=True, frozen=True):
    """The reply to a heartbeat.

    Attributes:
        lease: Seconds for which the node may answer, from when it sent the heartbeat.
        assignments: What it has to do from now on, None when that is what it knows.
        end: Whether to end its actors; said again and again until it has.
        leave: Whether to end altogether, and what becomes of what is stored there.
        events_to: Number of the first event that the host has not heard of.
        asks: Number of a question: the node shall ask its actors for their counters now.
    """

    lease: float
    assignments: NodeAssignments | None = None
    end: EndNode | None = None
    leave: Literal["keep", "remove"] | None = None
    events_to: int = 0
    asks: int = 0


class StatusReply(Struct, tag=2, array_like=True, frozen=True):
    """The reply to `GetStatus`."""

    status: ClusterStatus


class EventsReply(Struct, tag=3, array_like=True, frozen=True):
    """The reply to `GetEvents`: events in order, none if the wait passed without one."""

    events: tuple[ClusterEvent, ...]


class ShutdownReply(Struct, tag=4, array_like=True, frozen=True):
    """The reply to `Shutdown`: the actors have ended.

    Attributes:
        killed: What became of those that did not finish what they had accepted, by name.
    """

    killed: dict[str, str]


class Acknowledged(Struct, tag=5, array_like=True, frozen=True):
    """The reply to a command that was accepted and has no result."""


HostReply: TypeAlias = (
    Description
    | StatusReply
    | EventsReply
    | ShutdownReply
    | Acknowledged
    | ShardMap
    | HeartbeatReply
    | RanksReply
    | RebalanceReply
)
