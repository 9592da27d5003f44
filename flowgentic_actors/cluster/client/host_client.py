"""Client of a cluster's host, for the opener and for attached programs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from typing import Final, TypeVar

import msgspec

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.cluster.client.routing import unanswered_read
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import (
    Describe,
    Description,
    EventsReply,
    GetEvents,
    GetStatus,
    HostCommand,
    LoopBlocked,
    Rebalance,
    RebalanceReply,
    StatusReply,
)
from flowgentic_actors.cluster.protocol.status import ClusterEvent, ClusterStatus, blocked
from flowgentic_actors.errors import FlowgenticError, OutcomeUnknownError, RejectedError
from flowgentic_actors.wire.addresses import Unreachable

R = TypeVar("R", bound=msgspec.Struct)

_REBALANCE_WAIT: Final = 10.0  # one question whether it is done
_EVENT_WAIT: Final = 10.0  # one question for events, repeated while the events are iterated

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


class HostClient:
    """Sends commands to the host of one cluster.

    Args:
        descriptor: The cluster's descriptor.
        timeout: Deadline of each call, seconds.
    """

    def __init__(self, descriptor: Descriptor, timeout: float) -> None:
        self._timeout = timeout
        limit = descriptor.max_message_bytes
        self.ref = ActorRef("the host", descriptor.address, descriptor.secret, limit, 2)

    async def status(self) -> ClusterStatus:
        """The cluster's status."""
        return (await self._ask(GetStatus(), StatusReply, self._timeout)).status

    async def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Iterate over events from a number on, as they happen."""
        while True:
            command = GetEvents(start, _EVENT_WAIT)
            reply = await self._ask(command, EventsReply, _EVENT_WAIT + self._timeout)
            for event in reply.events:
                yield event
                start = event.number + 1

    async def recent_events(self) -> list[ClusterEvent]:
        """The past events that the host still keeps."""
        return list((await self._ask(GetEvents(0, 0.0), EventsReply, self._timeout)).events)

    def tell_blocked(self, seconds: float) -> None:
        """Report to the host that an event loop of this program was blocked."""
        with contextlib.suppress(FlowgenticError):  # closed just now
            body = _encode(LoopBlocked(blocked(seconds)))
            answer = self.ref.connection().begin(body, self._timeout).waiter
            answer.add_done_callback(_looked_at)

    async def rebalance(
        self, nodes: int, without: Collection[str], rate: int, timeout: float
    ) -> None:
        """Spread the slots over the given nodes; see `MemoryCluster.rebalance`."""
        number = secrets.randbits(62)
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            wait = max(0.0, min(left, _REBALANCE_WAIT))
            command = Rebalance(number, nodes, tuple(without), rate, wait)
            reply = await self._ask(command, RebalanceReply, wait + self._timeout)
            if reply.error:
                raise RejectedError(f"the cluster was not rebalanced: {reply.error}")
            if reply.done:
                return
            if left <= 0:
                raise OutcomeUnknownError(
                    f"rebalancing takes longer than timeout={timeout:g} s, and goes on: its end is "
                    "among the events. To wait for it, call again when it is over"
                )

    async def _ask(self, command: HostCommand, reply: type[R], timeout: float) -> R:
        while True:
            try:
                answer = await self.ref.ask(_encode(command), timeout)
            except OutcomeUnknownError as error:
                if isinstance(command, Rebalance):
                    raise
                if not isinstance(self.ref.address, Unreachable):
                    raise unanswered_read(error) from error
                # The cluster was closed meanwhile: asked again, it says so.
            else:
                return msgspec.msgpack.decode(answer, type=reply)


def _looked_at(answer: asyncio.Future[msgspec.Raw]) -> None:
    """Log a failure: an event that cannot be delivered fails no call."""
    if not answer.cancelled() and answer.exception() is not None:
        logger.info("the host does not take an event: %s", answer.exception())


def describe(descriptor: Descriptor, timeout: float) -> Description:
    """Ask a cluster's host how to reach its actors. Blocks.

    Raises:
        RequestError: If the host cannot be reached.
    """
    ref = HostClient(descriptor, timeout).ref
    try:
        answer = ref.ask_sync(_encode(Describe()), timeout)
    finally:
        ref.close_blocking()
    return msgspec.msgpack.decode(answer, type=Description)
