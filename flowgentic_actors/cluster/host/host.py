"""The host program: the supervisor as a process of its own.

It lives as long as its owner's connection does, so the opener's loop may block and the opener may
crash; when the owner is gone, the host drains the actors and ends. It holds the cluster's memory on
disk from before the first actor starts until after the last one has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.logfile import log_to
from flowgentic_actors.actors.process import ignore_job_signals, run_loop
from flowgentic_actors.actors.process_logs import log_tail, with_last_line
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.actors.refusing_server import RefusingServer, refuse
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.host.ending import Ending
from flowgentic_actors.cluster.host.event_log import EventLog
from flowgentic_actors.cluster.host.joining import gather_nodes
from flowgentic_actors.cluster.host.memory import FILE_TIMEOUT, OPEN_TIMEOUT, HostMemory
from flowgentic_actors.cluster.host.ranks import Ranks
from flowgentic_actors.cluster.host.reporter import StatusReporter
from flowgentic_actors.cluster.host.requests import RequestServer
from flowgentic_actors.cluster.host.topology import SingleNode, Topology
from flowgentic_actors.cluster.job_end import WALLTIME_UNKNOWN
from flowgentic_actors.cluster.nodes.shard_specs import OpenMemory
from flowgentic_actors.cluster.persistence.cluster_folders import (
    HOST_LOCK,
    HOST_LOG,
    HOST_SOCKET,
    PID_FILE,
    retire,
)
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.protocol.host import (
    Acknowledged,
    AttachRank,
    AwaitRanks,
    Describe,
    Description,
    End,
    EventsReply,
    GetEvents,
    GetShardMap,
    GetStatus,
    Heartbeat,
    HostCommand,
    HostReply,
    LoopBlocked,
    Rebalance,
    Shutdown,
    ShutdownReply,
    StatusReply,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec, actor_addresses
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.errors import (
    FlowgenticError,
    InvalidRequestError,
    ProtocolError,
    RejectedError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.secret import concealed
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import (
    overwrite,
    read_private,
    trusted_path,
)
from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.messages import Cancel, Request, ToServer
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

_OWNER_TIMEOUT = 30.0  # from start to the owner's connection

_FAREWELL = 3.0  # seconds for what Dragon does at the end of this process

logger = logging.getLogger(__name__)


def main() -> int:
    """Be the host that the file named on the command line describes."""
    ignore_job_signals()  # they reach the owner too, who decides
    spec_file = trusted_path(Path(sys.argv[1]))
    log_to(spec_file.with_name(HOST_LOG), logging.INFO)
    allow_files()
    spec = msgspec.json.decode(
        read_private(spec_file, secret=True), type=HostSpec, dec_hook=concealed
    )
    lock = FileLock(Path(spec.folder) / HOST_LOCK)
    if not lock.acquire():
        logger.error("another host runs in %s", spec.folder)
        return 1
    os.chdir(spec.folder)  # Dragon writes files into the working directory
    overwrite(Path(spec.folder, PID_FILE), str(os.getpid()).encode())
    ProcessRecord(Path(spec.folder)).note("host", spec.restarts + 1, os.getpid())
    platform = platform_named(spec.spawner)
    if spec.owns_runtime:
        platform.note_runtime(Path(spec.folder))
    epochs = ProcessRecord(Path(spec.folder)).epochs()
    # By anyio, whose tasks are started by callbacks of the loop as well.
    uvloop = {"use_uvloop": run_loop() is not asyncio.run}
    event_log = EventLog(Path(spec.folder))
    host = anyio.run(run_host, spec, event_log, epochs, backend_options=uvloop)
    platform.end_tiers(Path(spec.folder))
    host.close_memory()
    if host.ending.owner_lost:
        retire(Path(spec.folder))
    if spec.owns_runtime and spec.nodes != 1:
        platform.end_runtime()
    lock.release()
    # All is done. Dragon's own farewell, at the interpreter's end, may hang with its runtime.
    farewell = threading.Timer(_FAREWELL, os._exit, (0,))
    farewell.daemon = True
    farewell.start()
    return 0


async def run_host(spec: HostSpec, event_log: EventLog, epochs: Mapping[str, int]) -> Host:
    """Be a cluster's host until the owner says so or is gone; its memory is still held then."""
    async with anyio.create_task_group() as tasks:
        host = Host(spec, tasks, event_log, epochs)
        await host.serve()
        tasks.cancel_scope.cancel()
    return host


class Host:
    """Supervises the actors of one cluster and answers questions about it.

    Args:
        spec: What its owner decided.
        tasks: The task group that owns what goes on.
        event_log: The cluster's events.
        epochs: Of the last incarnation of each actor under earlier hosts.

    Attributes:
        ending: The end of the cluster's work.
    """

    def __init__(
        self, spec: HostSpec, tasks: TaskGroup, event_log: EventLog, epochs: Mapping[str, int]
    ) -> None:
        self._spec = spec
        self._tasks = tasks
        self._folder = Path(spec.folder)
        self._event_log = event_log
        self._started = asyncio.Event()  # programs that attach may go on
        self._brought_up = asyncio.Event()  # the actors serve, or will not
        self._start_error: str | None = None
        self._owner: Connection | None = None
        self._owner_gone = asyncio.Event()
        self._ended = asyncio.Event()
        self._killed: dict[str, str] | None = None  # what did not end in order
        self.ending = Ending(
            spec, partial(self._event, EventKind.WALLTIME_UNKNOWN, "", WALLTIME_UNKNOWN)
        )
        self._memory = HostMemory(spec, self._event)
        self._address = str(socket_folder(self._folder) / HOST_SOCKET)
        self._server = Server(self, spec.secret, spec.name, 0, spec.max_message_bytes)
        self._supervisor = Supervisor(
            self._folder,
            self._address,
            spec.secret,
            platform_named(spec.spawner).spawner(
                uses_tier=spec.actor.tier is not None, on_event=self._event
            ),
            settings=spec.supervision,
            on_event=self._actor_event,
            on_report=self._request_publish,
            identity=spec.identity,
        )
        self._topology: Topology = SingleNode(spec, self._supervisor, tasks)
        self._reporter = StatusReporter(spec, epochs, self.ending.begun.is_set)
        self._requests = RequestServer(self._answer, self._doing)
        self._ranks = Ranks()

    async def serve(self) -> None:
        """Serve until the owner says so or is gone."""
        ending = self.ending
        await self._server.listen(self._address)
        self._tasks.start_soon(self._expect_owner)
        if await ending.resume():
            self._started.set()
            self._brought_up.set()
        else:
            self._tasks.start_soon(self._start_actors)
            ending.watch()
        await ending.begun.wait()
        deadline = time.monotonic() + ending.timeout
        ending.unwatch()
        self._memory.announce_end()
        self._event(EventKind.CLUSTER_CLOSING, "", ending.reason)
        if not ending.owner_lost:  # a host that has just taken over: what it starts can be sealed
            with anyio.move_on_after(ending.timeout / 2):
                await self._brought_up.wait()
        left = max(0.0, deadline - time.monotonic())
        self._killed = await self._topology.end(left, ending.reason)
        self._ended.set()
        if not ending.leaving.is_set():
            await self._stay()
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"cluster {self._spec.name!r} was closed at {at}"
        await self._topology.tell_end(text, closed=True)
        if self._spec.owns_runtime and self._topology.several:
            with anyio.move_on_after(_FAREWELL):  # its launcher has to end first
                await self._owner_gone.wait()
        clean = not (self._killed or ending.owner_lost or self._spec.persist)
        await self._topology.leave(remove=clean)
        await anyio.lowlevel.checkpoint()  # the answer to Shutdown is sent by its task
        await self._server.close()

    async def _stay(self) -> None:
        """Answer in the actors' place until the owner closes the cluster, or is gone."""
        await on_daemon_thread(OPEN_TIMEOUT, self.close_memory)
        spec, text = self._spec, f"the cluster has ended in order: {self.ending.reason}"
        refusal = RefusingServer("closing", text)
        await self._topology.tell_end(text)
        servers = [
            await refuse(address, name, spec.secret, spec.max_message_bytes, refusal)
            for name, address in actor_addresses(spec).items()
        ]
        await self.ending.leaving.wait()
        for server in servers:
            await server.close()

    def close_memory(self) -> None:
        """Let go of the memory on disk, when its actors have ended; another cluster may take it."""
        self._memory.close(orderly=self._killed == {})

    # ------------------------------------------------------------------ the start

    async def _start_actors(self) -> None:
        try:
            await self._bring_up()
        finally:
            self._brought_up.set()

    async def _bring_up(self) -> None:
        spec = self._spec
        if spec.restarts:
            self._event(EventKind.HOST_RESTARTED, "", f"the one before {spec.reason}")
            if spec.tier_given_up:
                self._event(EventKind.DDICT_GIVEN_UP, "", spec.tier_given_up)
            if spec.nodes == 1:
                self._started.set()  # programs that attach now wait for the actors themselves
        try:
            memory = await self._place()
        except FlowgenticError as error:
            logger.exception("the memory does not open")
            self._start_error = str(error)
            self._started.set()
            if spec.restarts:
                self.ending.leave()  # no caller waits for the error: the owner tries another host
            return
        try:
            await self._topology.start()
        except FlowgenticError as error:
            if not spec.restarts:
                self._start_error = await self._explained(error, memory)
        else:
            if not spec.restarts:
                nodes = len(self._topology.nodes())
                where = f" on {nodes} nodes" if nodes > 1 else ""
                detail = f"{len(memory.specs)} actors by {spec.spawner}{where}"
                self._event(EventKind.CLUSTER_OPENED, "", detail)
        self._started.set()

    async def _explained(self, error: FlowgenticError, memory: OpenMemory) -> str:
        """Why actors do not start, with the last line of their logs."""
        logs = (self._folder / f"{actor.name}.log" for actor in memory.specs)
        tail = await on_daemon_thread(FILE_TIMEOUT, log_tail, *logs)
        if tail:
            logger.error("the actors' logs end with:\n%s", tail)
        return with_last_line(str(error), tail)

    async def _place(self) -> OpenMemory:
        """Gather the nodes, open the memory, and place its actors on them."""
        joined = await gather_nodes(
            self._spec, self._supervisor, self._tasks, self._server, self._event
        )
        self._topology = joined
        memory = await self._memory.open(
            len(joined.names),
            ip=joined.address.host if joined.address is not None else "",
            several=joined.several,
        )
        self._topology = await joined.place(memory)
        return memory

    async def _expect_owner(self) -> None:
        await anyio.sleep(_OWNER_TIMEOUT)
        if self._owner is None:
            self.ending.lose_owner()

    # ------------------------------------------------------------------ the server's handler

    def connected(self, connection: Connection) -> None:
        """Tell the one owner from the others."""
        if connection.role == "owner":
            if self._owner is not None:
                raise ProtocolError("this cluster has an owner already")
            self._owner = connection

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Answer requests; pass on what actors say."""
        for message in messages:
            if connection.role == "link":
                self._supervisor.link_received(connection, message)
                continue
            match message:
                case Request():
                    self._requests.accept(self._tasks, connection, message)
                case Cancel():
                    pass  # every request here ends within its own time
                case _:
                    raise ProtocolError(f"{type(message).__name__} is not a message for a host")

    def disconnected(self, connection: Connection) -> None:
        """End when the owner is gone."""
        if connection.role == "link":
            self._supervisor.link_lost(connection)
            return
        self._ranks.leave(connection)
        self._topology.disconnected(connection)
        if connection is self._owner:
            self._owner_gone.set()
            if not (self._ended.is_set() and self.ending.leaving.is_set()):
                self.ending.lose_owner()

    def _doing(self) -> str:
        """Description of what attaching programs have to wait for."""
        if not self._memory.is_open:
            return self._memory.doing
        late = [c.spec.name for c in self._supervisor.children if not c.settled.is_set()]
        return f"{', '.join(late) or 'another node'} does not serve yet"

    async def _answer(self, connection: Connection, command: HostCommand) -> HostReply | Raw:
        reply: HostReply | Raw = Acknowledged()
        match command:
            case AttachRank(rank):
                self._ranks.enter(connection, rank)
            case AwaitRanks(size, wait):
                reply = await self._ranks.wait(size, wait)
            case LoopBlocked(detail):
                self._event(EventKind.LOOP_BLOCKED, "", detail)
            case GetStatus():
                reply = StatusReply(await self._reporter.status(self._topology))
            case GetEvents(start, wait):
                reply = EventsReply(await self._event_log.wait_since(start, wait))
            case End() | Shutdown():
                if connection is not self._owner:
                    raise InvalidRequestError("only the cluster's owner may end it")
                reply = await self._answer_owner(command)
            case _:
                reply = await self._answer_about_places(connection, command)
        return reply

    async def _answer_owner(self, command: End | Shutdown) -> HostReply:
        if isinstance(command, End):
            self.ending.begin(command.reason)
            return Acknowledged()
        self.ending.timeout = command.timeout
        self.ending.leave("its owner closed it")
        await self._ended.wait()
        return ShutdownReply(self._killed or {})

    async def _answer_about_places(
        self, connection: Connection, command: Describe | GetShardMap | Heartbeat | Rebalance
    ) -> HostReply | Raw:
        if isinstance(command, Heartbeat):
            return await self._topology.heartbeat(connection, command)
        await self._started.wait()  # before that, the places of the shards are unknown
        if self._start_error is not None:
            raise RejectedError(self._start_error)
        topology = self._topology
        if isinstance(command, Rebalance):
            return await topology.rebalance(command)
        if isinstance(command, GetShardMap):
            return await topology.shard_map(command.version, command.wait)
        return Description(
            self._spec.spawner,
            topology.current_shard_map(),
            self._spec.max_message_bytes,
            changes=topology.several,
            host=topology.address,
            shared=self._memory.shared,
            found=self._memory.found,
            memory=self._spec.memory,
        )

    # ------------------------------------------------------------------ events

    def _actor_event(self, kind: EventKind, actor: str, detail: str) -> None:
        """Note what happened to an actor of this node."""
        self._event(kind, actor, self._topology.located(actor, detail))

    def _request_publish(self) -> None:
        self._topology.request_publish()

    def _event(self, kind: EventKind, actor: str, detail: str) -> None:
        if actor:
            self._request_publish()
        self._event_log.add(kind, actor, detail)
