"""The program of a node that is not the host's: runs the actors that the host assigns.

It answers for them only with a lease of the host. What it hears of the host decides how it ends: in
order when it is told to; at once when the host is gone; and when the host is silent, as behind a
network that is cut, its actors answer nothing, and after `rejoin_grace` it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.logfile import log_to, send_streams_to
from flowgentic_actors.actors.process import ignore_job_signals, run_loop
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.actors.stats_query import query_stats
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.join_protocol import Join, NodeSpec, join, take_ticket
from flowgentic_actors.cluster.nodes.leases import HeldLease
from flowgentic_actors.cluster.nodes.replica_manager import ReplicaManager
from flowgentic_actors.cluster.nodes.shard_specs import NodeMemory
from flowgentic_actors.cluster.persistence.cluster_folders import (
    MEMORY,
    claim_node_folder,
    remove_folder,
    root_folder,
)
from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.protocol.host import EndNode, Heartbeat, HeartbeatReply
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import FlowgenticError, ProtocolError, RequestError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.storage.private_files import make_folder, make_folders, write_private
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.messages import ToServer
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

NODE_SOCKET: Final = "node.sock"
LOG_FILE: Final = "node.log"

_FILE_TIMEOUT: Final = 60.0
_PAUSE: Final = 0.1  # between two questions that were not answered
_PROBE: Final = 1.0
_HURRY: Final = 3.0  # to end when the host is gone
_MOST_EVENTS: Final = 1000
_HEARING: Final = 0.7
"""Seconds that a node waits for its actors' answers: less than the host waits for the node's."""

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HeartbeatReply).decode


def main() -> int:
    """Run the node's agent: join the cluster that the ticket names, and serve."""
    ignore_job_signals()
    allow_files()
    ticket = take_ticket()
    spec = join(ticket, Join(ticket.node, machine()))
    cluster = spec.cluster
    deadline = time.monotonic() + cluster.supervision.open_timeout
    if spec.folder:
        root, name = Path(spec.folder).parent, Path(spec.folder).name
        make_folders(root)
    else:
        scratch = Path(cluster.scratch) if cluster.scratch else None
        root, name = root_folder(scratch), cluster.name
    folder, lock = claim_node_folder(root, name, cluster.orphans, deadline)
    os.chdir(folder)  # Dragon writes files into the working directory
    send_streams_to(folder / LOG_FILE)
    log_to(folder / LOG_FILE, logging.INFO)
    logger.info("node %s of cluster %s on %s", ticket.node, cluster.name, socket.gethostname())
    ProcessRecord(folder).note("node", 1, os.getpid())
    removes = run_loop()(run_agent(ticket.node, spec, folder))
    platform = platform_named(cluster.spawner)
    platform.end_tiers(folder)
    if removes:
        remove_folder(folder)
    lock.release()
    if cluster.owns_runtime:
        platform.end_runtime()
    # Dragon's own farewell, at the interpreter's end, may hang with its runtime.
    os._exit(0)


async def run_agent(node: str, spec: NodeSpec, folder: Path) -> bool:
    """Run a node's actors until the host ends the node, or is gone for good.

    Args:
        node: The node's name.
        spec: What the host told.
        folder: The cluster's private folder on this node.

    Returns:
        Whether what was stored here goes with the cluster.
    """
    platform = platform_named(spec.cluster.spawner)
    ip = await on_daemon_thread(_FILE_TIMEOUT, platform.address, spec.cluster.network)
    memory = await on_daemon_thread(_FILE_TIMEOUT, _prepare_memory, spec, folder, ip)
    async with anyio.create_task_group() as tasks:
        agent = NodeAgent(node, spec, memory, tasks)
        await agent.serve()
        tasks.cancel_scope.cancel()
    return agent.removes


class NodeAgent:
    """Runs one node's actors as the host assigns them.

    Args:
        node: The node's name.
        spec: What the host told.
        memory: The memory on this node.
        tasks: The task group that owns what goes on.

    Attributes:
        removes: Whether what was stored here goes with the cluster.
    """

    def __init__(self, node: str, spec: NodeSpec, memory: NodeMemory, tasks: TaskGroup) -> None:
        self._node = node
        self._spec = spec
        self._tasks = tasks
        self._address = str(socket_folder(memory.folder) / NODE_SOCKET)
        self._lease = HeldLease(spec.lease)
        self._events: deque[tuple[EventKind, str, str]] = deque(maxlen=_MOST_EVENTS)
        self._events_from = 0
        self._changed = asyncio.Event()
        self._ending: asyncio.Future[None] | None = None
        self._ended: dict[str, str] | None = None
        self._known = 0
        self._asked = self._answered = 0  # questions of the host about the actors
        self._supervisor = Supervisor(
            memory.folder,
            self._address,
            spec.cluster.secret,
            platform_named(spec.cluster.spawner).spawner(
                uses_tier=spec.actor.tier is not None, on_event=self._event
            ),
            settings=spec.cluster.supervision,
            on_event=self._event,
            on_report=self._changed.set,
            identity=spec.identity,
        )
        self._replica_manager = ReplicaManager(
            self._supervisor,
            tasks,
            memory,
            spec.identity.certificate,
        )
        self.removes = False

    async def serve(self) -> None:
        """Obey the host until it ends this node, or is gone for good; then end the actors."""
        cluster = self._spec.cluster
        secret, max_bytes = cluster.secret, cluster.max_message_bytes
        server = Server(self, secret, self._node, 0, max_bytes)
        await server.listen(self._address)
        host = AsyncConnection(self._spec.host, secret, "the host", max_bytes)
        try:
            await self._obey(host)
        finally:
            if self._ending is not None:
                await self._ending
            else:
                with anyio.CancelScope(shield=True):
                    await self._supervisor.stop(_HURRY, "the host is gone")
        await server.close()
        await host.close()

    # ------------------------------------------------------------------ the host

    async def _obey(self, host: AsyncConnection) -> None:
        """Send heartbeats and carry out the replies, until this node is to leave."""
        granted_at = time.monotonic()
        while True:
            asked_at = time.monotonic()
            try:
                reply = await self._beat(host)
            except RequestError as error:
                logger.warning("no answer from the host: %s", error)
                if await self._is_hopeless(granted_at):
                    return
                await anyio.sleep(_PAUSE)
                continue
            if reply is None:
                continue  # there is news: ask again
            granted_at = time.monotonic()
            self._heard(reply)
            if reply.leave is not None:
                self.removes = reply.leave == "remove"
                return
            await self._take(reply, asked_at)
            if reply.end is not None:
                if self._ending is None:
                    self._ending = asyncio.ensure_future(self._end(reply.end))
                # Without leases meanwhile, its actors could not finish what they accepted.
                await asyncio.wait({self._ending}, timeout=_PAUSE)

    async def _end(self, end: EndNode) -> None:
        ended = await self._supervisor.stop(end.timeout, end.reason)
        self._ended = self._replica_manager.unclean_leaders(ended)

    async def _take(self, reply: HeartbeatReply, asked_at: float) -> None:
        """Carry out the host's reply to a heartbeat."""
        if reply.asks > self._asked:
            self._asked = reply.asks
            self._tasks.start_soon(self._hear, reply.asks)
        if reply.assignments is not None and self._ending is None:
            # First of all, what is not wanted any more ends: the lease is not for that.
            await self._replica_manager.carry_out(reply.assignments)
            self._known = reply.assignments.version
        if reply.lease > 0:
            self._supervisor.extend(self._lease.granted(asked_at))

    async def _hear(self, question: int) -> None:
        await query_stats(self._supervisor.children, _HEARING)
        self._answered = max(self._answered, question)
        self._changed.set()

    async def _is_hopeless(self, granted_at: float) -> bool:
        """Whether waiting for a host is of no use any more."""
        if await self._host_is_gone():
            logger.warning("the host is gone: this node ends")
            return True
        if time.monotonic() - granted_at > self._spec.lease + self._spec.rejoin_grace:
            logger.warning("the host is silent for good: this node ends")
            return True
        return False

    async def _beat(self, host: AsyncConnection) -> HeartbeatReply | None:
        """Send one heartbeat; None when there is something to report before it is answered."""
        self._changed.clear()
        heartbeat = Heartbeat(
            self._node,
            self._spec.host_id,
            self._known,
            self._replica_manager.replicas(),
            tuple(self._events),
            self._events_from,
            self._ended,
            self._asked,
            self._answered,
        )
        patience = self._spec.lease
        question = asyncio.ensure_future(host.request(_encode(heartbeat), patience, _decode))
        news = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({question, news}, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return question.result()
            return None
        finally:
            for future in (question, news):
                if not future.done():
                    future.cancel()
                    with contextlib.suppress(asyncio.CancelledError, FlowgenticError):
                        await future

    def _heard(self, reply: HeartbeatReply) -> None:
        """Drop the events that the host has received."""
        while self._events and self._events_from < reply.events_to:
            self._events.popleft()
            self._events_from += 1

    async def _host_is_gone(self) -> bool:
        """Whether the host's machine refuses connections to the host's port."""
        try:
            async with asyncio.timeout(_PROBE):
                _, writer = await asyncio.open_connection(
                    self._spec.host.host, self._spec.host.port
                )
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.close()
        return False

    # ------------------------------------------------------------------ actors

    def _event(self, kind: EventKind, actor: str, detail: str) -> None:
        if actor:
            detail = self._replica_manager.located(actor, detail, self._node)
        logger.info("%s %s %s", kind, actor, detail)
        if len(self._events) == _MOST_EVENTS:
            self._events_from += 1
        self._events.append((kind, actor, detail))
        self._changed.set()

    # ------------------------------------------------------------------ the server's handler

    def connected(self, connection: Connection) -> None:
        """Accept connections of this node's actors only."""
        if connection.role != "link":
            raise ProtocolError(f"only actors come here, not a {connection.role}")

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Pass messages of actors on to the supervisor."""
        for message in messages:
            self._supervisor.link_received(connection, message)

    def disconnected(self, connection: Connection) -> None:
        """Tell the supervisor that an actor's link is closed."""
        self._supervisor.link_lost(connection)


def _prepare_memory(spec: NodeSpec, folder: Path, ip: str) -> NodeMemory:
    """Write the manifest beside the shards, which identifies this node's memory later."""
    persist = spec.cluster.persist
    memory = Path(spec.cluster.memory) if persist else folder / MEMORY
    if not persist:
        make_folder(memory)
        write_private(memory / MANIFEST, spec.manifest)
    return NodeMemory(
        actor=spec.actor,
        replicated=spec.cluster.replicas > 1,
        generation=memory / spec.generation,
        folder=folder,
        ip=ip,
        leased=True,
    )
