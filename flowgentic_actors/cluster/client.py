"""How adapters reach the shards: over sockets, or in this process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

import msgspec

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.cluster.handle import Descriptor
from flowgentic_actors.cluster.protocol import (
    Describe,
    Description,
    EventsReply,
    GetEvents,
    GetStatus,
    HostCommand,
    StatusReply,
)
from flowgentic_actors.cluster.slots import SlotTable, even_table
from flowgentic_actors.cluster.status import ActorStatus, ClusterEvent, ClusterStatus
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import ClusterClosedError, ClusterClosingError, LocalClusterError
from flowgentic_actors.wire.sockets import let_go_after_fork

R = TypeVar("R", bound=msgspec.Struct)

_encode = msgspec.msgpack.Encoder().encode
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

_NOT_PICKLED = "a live connection to the memory: send memory.handle and attach instead"
_EVENT_WAIT = 10.0  # one question for events; asked again for as long as somebody iterates


class MemoryClient(Protocol):
    """Sends commands to shards.

    Attributes:
        table: Which shard a key belongs to.
    """

    table: SlotTable

    async def ask(self, shard: int, command: Command) -> Reply:
        """Have a shard carry out a command.

        Raises:
            RequestError: If it was not, or may not have been, carried out.
            ClusterClosedError: If the cluster is closed.
        """

    def ask_sync(self, shard: int, command: Command) -> Reply:
        """The same, blocking; allowed on any thread, an event loop's own included."""


class RemoteClient:
    """Reaches actors over their sockets.

    Args:
        descriptor: The cluster's descriptor.
        description: How to reach its actors.
        timeout: Deadline of each call, seconds.
        pool: Blocking connections to each actor.
    """

    def __init__(
        self, descriptor: Descriptor, description: Description, timeout: float, pool: int
    ) -> None:
        self.table = description.table
        self._timeout = timeout
        self._closed = False
        limit = descriptor.max_message_bytes
        self._host = ActorRef("the host", descriptor.host, descriptor.secret, limit, 2)
        self._actors = [
            ActorRef(name, address, descriptor.secret, limit, pool)
            for name, address in zip(description.names, description.addresses, strict=True)
        ]

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(_NOT_PICKLED)

    async def ask(self, shard: int, command: Command) -> Reply:
        """Have a shard carry out a command; see `MemoryClient.ask`."""
        self._check_open()
        return _replies.decode(await self._actors[shard].ask(_encode(command), self._timeout))

    def ask_sync(self, shard: int, command: Command) -> Reply:
        """Have a shard carry out a command, blocking; see `MemoryClient.ask_sync`."""
        self._check_open()
        return _replies.decode(self._actors[shard].ask_sync(_encode(command), self._timeout))

    async def status(self) -> ClusterStatus:
        """The cluster's status, from its host."""
        return (await self._ask_host(GetStatus(), StatusReply, self._timeout)).status

    async def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Events from a number on, as they happen."""
        while True:
            command = GetEvents(start, _EVENT_WAIT)
            reply = await self._ask_host(command, EventsReply, _EVENT_WAIT + self._timeout)
            for event in reply.events:
                yield event
                start = event.number + 1

    async def recent_events(self) -> list[ClusterEvent]:
        """The events so far that the host still keeps."""
        return list((await self._ask_host(GetEvents(0, 0.0), EventsReply, self._timeout)).events)

    async def close(self) -> None:
        """Close every connection of this process."""
        self._closed = True
        for ref in [self._host, *self._actors]:
            await ref.close()

    async def _ask_host(self, command: HostCommand, reply: type[R], timeout: float) -> R:
        self._check_open()
        return msgspec.msgpack.decode(await self._host.ask(_encode(command), timeout), type=reply)

    def _check_open(self) -> None:
        if self._closed:
            raise ClusterClosedError("this cluster was closed: use it inside its `async with`")


def describe(descriptor: Descriptor, timeout: float) -> Description:
    """Ask a cluster's host how to reach its actors. Blocks.

    Raises:
        RequestError: If the host cannot be reached.
    """
    ref = ActorRef("the host", descriptor.host, descriptor.secret, descriptor.max_message_bytes, 1)
    try:
        answer = ref.ask_sync(_encode(Describe()), timeout)
    finally:
        ref.close_blocking()
    return msgspec.msgpack.decode(answer, type=Description)


class InlineClient:
    """One shard in this process, called directly from any thread under a lock.

    Args:
        name: Name of the cluster, for status.
        namespace_depth: As in `MemoryConfig`.
    """

    def __init__(self, name: str, namespace_depth: int) -> None:
        self.table = even_table(1, namespace_depth)
        self._name = name
        self._shard = Shard()
        self._lock = threading.Lock()
        self._requests = 0
        self._opened = time.time()
        self._events: list[ClusterEvent] = []
        self._unusable: str | None = None
        self._end_reason: str | None = None
        let_go_after_fork(self)
        self.event("cluster_opened", "in this process")

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(_NOT_PICKLED)

    async def ask(self, shard: int, command: Command) -> Reply:
        """Have the shard carry out a command; see `MemoryClient.ask`."""
        return self.ask_sync(shard, command)

    def ask_sync(self, shard: int, command: Command) -> Reply:  # noqa: ARG002 - there is one
        """Have the shard carry out a command; see `MemoryClient.ask_sync`."""
        self._check_usable()
        if self._end_reason is not None:
            raise ClusterClosingError(f"the cluster has ended: {self._end_reason}")
        with self._lock:
            self._requests += 1
            return self._shard.apply(command, time.time_ns() // 1000).reply

    async def status(self) -> ClusterStatus:
        """The cluster's status."""
        self._check_usable()
        with self._lock:
            size = msgspec.structs.asdict(self._shard.size())
        actor = ActorStatus(
            name="shard-0",
            shard=0,
            node=os.uname().nodename,
            pid=os.getpid(),
            epoch=1,
            state="running",
            requests=self._requests,
            **size,
        )
        return ClusterStatus(
            name=self._name,
            mode="local",
            spawner="inline",
            host_pid=os.getpid(),
            uptime=time.time() - self._opened,
            folder="",
            actors=(actor,),
        )

    async def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Events from a number on, as they happen."""
        while True:
            self._check_usable()
            for event in self._events[start:]:
                yield event
                start = event.number + 1
            await asyncio.sleep(0.1)

    async def recent_events(self) -> list[ClusterEvent]:
        """The events so far."""
        self._check_usable()
        return list(self._events)

    def event(self, kind: str, detail: str) -> None:
        """Note that something happened."""
        self._events.append(
            ClusterEvent(
                number=len(self._events), time=time.time(), kind=kind, actor="", detail=detail
            )
        )

    def end(self, reason: str) -> None:
        """Take no more commands; callable from any thread."""
        if self._end_reason is None:
            self._end_reason = reason
            self.event("cluster_closing", reason)

    async def close(self) -> None:
        """Refuse everything from now on."""
        self._unusable = "closed"

    def after_fork(self) -> None:
        """A forked child has a copy that nobody else sees: refuse to write into it."""
        self._unusable = self._unusable or "forked"
        self._lock = threading.Lock()  # another thread may have held the old one

    def _check_usable(self) -> None:
        if self._unusable is None:
            return
        if self._unusable == "closed":
            raise ClusterClosedError("this cluster was closed: use it inside its `async with`")
        raise LocalClusterError(
            "this process is a fork of the one that a local cluster lives in, and would write into "
            "a copy that is lost: open the cluster with mode='distributed' to share it"
        )
