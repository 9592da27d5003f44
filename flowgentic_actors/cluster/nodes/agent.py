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

from flowgentic_actors.actors.child import ChildSpec
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.logfile import log_to, send_streams_to
from flowgentic_actors.actors.process import ignore_job_signals, run_loop
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.actors.stats_query import query_stats
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.nodes.join_protocol import Join, NodeSpec, join, take_ticket
from flowgentic_actors.cluster.nodes.leases import HeldLease
from flowgentic_actors.cluster.nodes.replica_manager import ReplicaManager
from flowgentic_actors.cluster.nodes.stats_queries import HEARING
from flowgentic_actors.cluster.persistence.cluster_folders import (
    MEMORY,
    claim_node_folder,
    remove_folder,
    root_folder,
)
from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.protocol.assignments import actor_name
from flowgentic_actors.cluster.protocol.host import EndNode, Heartbeat, HeartbeatReply
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.dragon.ddict_sizing import end_tiers, tier_folder
from flowgentic_actors.dragon.runtime_cleanup import RUNTIME_VARIABLE, end_runtime
from flowgentic_actors.dragon.spawner import DragonSpawner
from flowgentic_actors.environment import inside_dragon, machine
from flowgentic_actors.errors import FlowgenticError, ProtocolError, RequestError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.storage.private_files import make_folder, make_folders, write_private
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.interfaces import choose_address
from flowgentic_actors.wire.messages import ToServer
from flowgentic_actors.wire.server import Connection, Server

NODE_SOCKET: Final = "node.sock"
LOG_FILE: Final = "node.log"

_FILE_TIMEOUT: Final = 60.0
_PAUSE: Final = 0.1  # between two questions that were not answered
_PROBE: Final = 1.0
_HURRY: Final = 3.0  # to end when the host is gone
_MOST_EVENTS: Final = 1000

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HeartbeatReply).decode


def main() -> int:
    """Run the node's agent: join the cluster that the ticket names, and serve."""
    ignore_job_signals()
    allow_files()
    ticket = take_ticket()
    spec = join(ticket, Join(ticket.node, machine()))
    deadline = time.monotonic() + spec.open_timeout
    if spec.folder:
        root, name = Path(spec.folder).parent, Path(spec.folder).name
        make_folders(root)
    else:
        root, name = root_folder(Path(spec.scratch) if spec.scratch else None), spec.name
    folder, lock = claim_node_folder(root, name, spec.orphans, deadline)
    os.chdir(folder)  # Dragon writes files into the working directory
    send_streams_to(folder / LOG_FILE)
    log_to(folder / LOG_FILE, logging.INFO)
    logger.info("node %s of cluster %s on %s", ticket.node, spec.name, socket.gethostname())
    ProcessRecord(folder).note("node", 1, os.getpid())
    agent = NodeAgent(ticket.node, spec, folder)
    run_loop()(agent.run())
    end_tiers(folder)
    if agent.removes:
        remove_folder(folder)
    lock.release()
    if spec.owns_runtime:
        end_runtime(os.environ.get(RUNTIME_VARIABLE, ""))
    # Dragon's own farewell, at the interpreter's end, may hang with its runtime.
    os._exit(0)


class NodeAgent:
    """Runs one node's actors as the host assigns them.

    Args:
        node: The node's name.
        spec: What the host told.
        folder: The cluster's private folder on this node.

    Attributes:
        removes: Whether what was stored here goes with the cluster.
    """

    def __init__(self, node: str, spec: NodeSpec, folder: Path) -> None:
        self._node = node
        self._spec = spec
        self._folder = folder
        self._lease = HeldLease(spec.lease)
        self._events: deque[tuple[EventKind, str, str]] = deque(maxlen=_MOST_EVENTS)
        self._events_from = 0
        self._changed = asyncio.Event()
        self._ending: asyncio.Future[None] | None = None
        self._ended: dict[str, str] | None = None
        self._known = 0
        self._asked = self._answered = 0  # questions of the host about the actors
        self.removes = False

    async def run(self) -> None:
        """Serve until the host ends this node, or is gone for good."""
        spec = self._spec
        address = str(socket_folder(self._folder) / NODE_SOCKET)
        self._ip = await on_daemon_thread(_FILE_TIMEOUT, choose_address, spec.network)
        self._supervisor = Supervisor(
            self._folder,
            address,
            spec.secret,
            self._spawner(),
            settings=spec.supervision,
            on_event=self._event,
            on_report=self._changed.set,
            identity=spec.identity,
        )
        await on_daemon_thread(_FILE_TIMEOUT, self._prepare_memory)
        server = Server(self, spec.secret, self._node, 0, spec.max_message_bytes)
        await server.listen(address)
        host = AsyncConnection(spec.host, spec.secret, "the host", spec.max_message_bytes)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._replica_manager = ReplicaManager(
                self._supervisor,
                tasks,
                self._child_spec,
                host=self._ip,
                certificate=spec.identity.certificate,
                replicated=spec.replicated,
            )
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
            tasks.cancel_scope.cancel()

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
        await query_stats(self._supervisor.children, HEARING)
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

    def _spawner(self) -> Spawner:
        if self._spec.spawner != "dragon" or not inside_dragon():
            return SubprocessSpawner()
        return DragonSpawner(
            uses_dragon=self._spec.uses_dragon,
            on_hung=lambda why: self._event(
                EventKind.DRAGON_HUNG, "", f"{why}: actors go on without it"
            ),
        )

    def _memory_folder(self) -> Path:
        return Path(self._spec.memory) if self._spec.memory else self._folder / MEMORY

    def _prepare_memory(self) -> None:
        """Write the manifest beside the shards, which identifies this node's memory later."""
        if self._spec.memory:
            return
        memory = self._memory_folder()
        make_folder(memory)
        write_private(memory / MANIFEST, self._spec.manifest)

    def _child_spec(self, shard: int) -> ChildSpec:
        name = actor_name(shard)
        folder = self._memory_folder() / self._spec.generation / name
        return ChildSpec(
            name=name,
            factory=self._spec.factory,
            arguments={
                **self._spec.arguments,
                "folder": str(folder),
                "tier_folder": str(tier_folder(self._folder, name)),
            },
            address=str(socket_folder(self._folder) / f"{name}.sock"),
            host=self._ip,
            leased=True,
        )

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
