"""What a host can be asked."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from flowgentic_actors.cluster.slots import SlotTable
from flowgentic_actors.cluster.status import ClusterEvent, ClusterStatus


class Describe(Struct, tag=1, array_like=True, frozen=True):
    """How to reach the actors. Answered once all of them serve."""


class GetStatus(Struct, tag=2, array_like=True, frozen=True):
    """The cluster's status."""


class GetEvents(Struct, tag=3, array_like=True, frozen=True):
    """The events from a number on; waits a while when there is none yet."""

    start: Annotated[int, Meta(ge=0)]
    wait: Annotated[float, Meta(ge=0, le=60)]


class Shutdown(Struct, tag=4, array_like=True, frozen=True):
    """End the cluster in order; only its owner may ask. Answered when all actors have ended."""

    timeout: Annotated[float, Meta(gt=0)]


class AreYouThere(Struct, tag=5, array_like=True, frozen=True):
    """The owner's heartbeat."""


class End(Struct, tag=6, array_like=True, frozen=True):
    """End the cluster's work in order, and stay to tell everybody why; for the owner alone."""

    reason: Annotated[str, Meta(max_length=1024)]


HostCommand: TypeAlias = Describe | GetStatus | GetEvents | Shutdown | AreYouThere | End


class Description(Struct, tag=1, array_like=True, frozen=True):
    """How to reach the actors.

    Attributes:
        spawner: Who started them.
        table: Where each key lives.
        names: Name of each shard's actor.
        addresses: Socket of each shard's actor.
        max_message_bytes: Largest message they take.
    """

    spawner: str
    table: SlotTable
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    max_message_bytes: int


class StatusReply(Struct, tag=2, array_like=True, frozen=True):
    """The status."""

    status: ClusterStatus


class EventsReply(Struct, tag=3, array_like=True, frozen=True):
    """Events in order, none if nothing happened in the time asked for."""

    events: tuple[ClusterEvent, ...]


class ShutdownReply(Struct, tag=4, array_like=True, frozen=True):
    """The actors have ended.

    Attributes:
        killed: What became of those that did not finish what they had accepted, by name.
    """

    killed: dict[str, str]


class Done(Struct, tag=5, array_like=True, frozen=True):
    """It was heard."""


HostReply: TypeAlias = Description | StatusReply | EventsReply | ShutdownReply | Done
