"""The host program: the supervisor as a process of its own.

It lives as long as its owner's connection does, so the opener's loop may block and the opener may
crash; when the owner is gone, the host drains the actors and ends. It holds the cluster's memory on
disk from before the first actor starts until after the last one has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.logfile import log_to
from flowgentic_actors.actors.process import ignore_job_signals, run_loop
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.actors.refusing_server import RefusingServer, refuse
from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.actors.supervisor import Supervisor, SupervisorSettings
from flowgentic_actors.cluster.host.event_log import EventLog
from flowgentic_actors.cluster.host.memory import FILE_TIMEOUT, OPEN_TIMEOUT, HostMemory
from flowgentic_actors.cluster.host.ranks import Ranks
from flowgentic_actors.cluster.host.reporter import StatusReporter
from flowgentic_actors.cluster.host.requests import RequestServer
from flowgentic_actors.cluster.job_end import WALLTIME_UNKNOWN, watch_stop_file, watch_walltime
from flowgentic_actors.cluster.nodes.controller import ClusterController
from flowgentic_actors.cluster.nodes.node_launcher import DragonNodeLauncher, LocalNodeLauncher
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.opener.host_launcher import LOG_FILE
from flowgentic_actors.cluster.persistence.cluster_folders import (
    HOST_LOCK,
    HOST_SOCKET,
    PID_FILE,
    PORT_FILE,
    RUNTIME_FILE,
    retire,
)
from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.process_logs import log_tail, with_last_line
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
    ShardLocation,
    ShardMap,
    Shutdown,
    ShutdownReply,
    StatusReply,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec, actor_addresses
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.cluster.protocol.status import ClusterEvent
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.dragon.ddict_sizing import end_tiers
from flowgentic_actors.dragon.runtime_cleanup import RUNTIME_VARIABLE, end_runtime
from flowgentic_actors.dragon.spawner import DragonSpawner
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import (
    ClusterOpenError,
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
    write_private,
)
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.identity import server_context
from flowgentic_actors.wire.interfaces import choose_address
from flowgentic_actors.wire.messages import Cancel, Request, ToServer
from flowgentic_actors.wire.server import Connection, Server

ENDING_FILE: Final = "ending"
"""Holds the reason once the cluster's work is being ended by its host."""

_OWNER_TIMEOUT = 30.0  # from start to the owner's connection

_NOT_SEVERAL = (
    "this cluster was opened on one node, and has nothing that others could join: open it with "
    "n_nodes=2 or more to add nodes to it, and to take them away, later"
)
_GATHER_SHARE = 0.6  # of start_timeout, for the other nodes to join

_FAREWELL = 3.0  # seconds for what Dragon does at the end of this process

logger = logging.getLogger(__name__)


def main() -> int:
    """Be the host that the file named on the command line describes."""
    ignore_job_signals()  # they reach the owner too, who decides
    spec_file = trusted_path(Path(sys.argv[1]))
    log_to(spec_file.with_name(LOG_FILE), logging.INFO)
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
    if spec.owns_runtime:
        runtime = os.environ.get(RUNTIME_VARIABLE, "")
        overwrite(Path(spec.folder, RUNTIME_FILE), runtime.encode())
    host = Host(spec)
    # By anyio, whose tasks are started by callbacks of the loop as well.
    anyio.run(host.run, backend_options={"use_uvloop": run_loop() is not asyncio.run})
    end_tiers(Path(spec.folder))
    host.close_memory()
    if host.owner_lost:
        retire(Path(spec.folder))
    if spec.owns_runtime and spec.nodes != 1:
        end_runtime(os.environ.get(RUNTIME_VARIABLE, ""))
    lock.release()
    # All is done. Dragon's own farewell, at the interpreter's end, may hang with its runtime.
    farewell = threading.Timer(_FAREWELL, os._exit, (0,))
    farewell.daemon = True
    farewell.start()
    return 0


class Host:
    """Supervises the actors of one cluster and answers questions about it."""

    def __init__(self, spec: HostSpec) -> None:
        self._spec = spec
        self._folder = Path(spec.folder)
        self._event_log = EventLog(self._folder)
        self._news = asyncio.Event()
        self._started = asyncio.Event()  # whoever attaches may go on
        self._brought_up = asyncio.Event()  # the actors serve, or will not
        self._start_error: str | None = None
        self._ending = asyncio.Event()
        self._end_reason = ""
        self._leaving = asyncio.Event()  # whether to end this process too, once the work is ended
        self._unwatch = threading.Event()
        self._shutdown_timeout = spec.close_timeout
        self._owner: Connection | None = None
        self._owner_gone = asyncio.Event()
        self._killed: dict[str, str] | None = None  # what did not end in order
        self._ended = asyncio.Event()
        self.owner_lost = False
        self._memory = HostMemory(spec, self._event)
        address = str(socket_folder(self._folder) / HOST_SOCKET)
        self._server = Server(self, spec.secret, spec.name, 0, spec.max_message_bytes)
        self._address = address
        self._supervisor = Supervisor(
            self._folder,
            address,
            spec.secret,
            self._spawner(spec),
            settings=SupervisorSettings(
                heartbeat_interval=spec.heartbeat_interval,
                hang_timeout=spec.hang_timeout,
                busy_timeout=spec.busy_timeout,
                restart_intensity=spec.restart_intensity,
                restart_period=spec.restart_period,
                rejoin_grace=spec.rejoin_grace,
                start_timeout=spec.start_timeout,
                mailbox_requests=spec.mailbox_requests,
                mailbox_bytes=spec.mailbox_bytes,
                max_message_bytes=spec.max_message_bytes,
                stay_awake=spec.stay_awake,
            ),
            on_event=self._actor_event,
            on_report=self._stir,
            identity=spec.identity,
        )
        epochs = ProcessRecord(self._folder).epochs()
        self._reporter = StatusReporter(spec, self._supervisor, epochs, self._ending.is_set)
        self._controller: ClusterController | None = None
        self._ip = ""
        self._remote: TcpAddress | None = None
        self._tasks: TaskGroup | None = None
        self._requests = RequestServer(self._answer, self._doing)
        self._ranks = Ranks()

    async def run(self) -> None:
        """Serve until the owner says so or is gone."""
        await self._server.listen(self._address)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._expect_owner)
            if await on_daemon_thread(FILE_TIMEOUT, self._was_ending):
                self._started.set()
                self._brought_up.set()
            else:
                tasks.start_soon(self._start_actors, tasks)
                self._watch_for_the_end()
            await self._ending.wait()
            deadline = time.monotonic() + self._shutdown_timeout
            self._unwatch.set()
            self._memory.announce_end()
            self._event(EventKind.CLUSTER_CLOSING, "", self._end_reason)
            if not self.owner_lost:  # a host that has just taken over: what it starts can be sealed
                with anyio.move_on_after(self._shutdown_timeout / 2):
                    await self._brought_up.wait()
            left = max(0.0, deadline - time.monotonic())
            self._killed = await self._end_actors(left)
            self._ended.set()
            if not self._leaving.is_set():
                await self._stay()
            if self._controller is not None:
                at = time.strftime("%Y-%m-%d %H:%M:%S")
                text = f"cluster {self._spec.name!r} was closed at {at}"
                await self._controller.tell_end(text, closed=True)
                if self._spec.owns_runtime:  # and its launcher, which has to end first
                    with anyio.move_on_after(_FAREWELL):
                        await self._owner_gone.wait()
                clean = not (self._killed or self.owner_lost or self._spec.persist)
                await self._controller.leave(remove=clean)
            await anyio.lowlevel.checkpoint()  # the answer to Shutdown is sent by its task
            await self._server.close()
            tasks.cancel_scope.cancel()

    # ------------------------------------------------------------------ the orderly end

    def _was_ending(self) -> bool:
        """Whether a host before this one died while, or after, it ended the cluster's work."""
        try:
            self._end_reason = read_private(self._folder / ENDING_FILE).decode()
        except FileNotFoundError:
            return False
        self._ending.set()
        return True

    def _watch_for_the_end(self) -> None:
        spec, loop = self._spec, asyncio.get_running_loop()

        def on_end(reason: str) -> None:
            loop.call_soon_threadsafe(self._begin_end, reason)

        def on_unknown() -> None:
            loop.call_soon_threadsafe(self._event, EventKind.WALLTIME_UNKNOWN, "", WALLTIME_UNKNOWN)

        if spec.stop_signal is not None:  # a scheduler may send it to every process of the job
            number = signal.Signals[spec.stop_signal]
            loop.add_signal_handler(number, self._begin_end, f"signal {spec.stop_signal}")
        if spec.stop_file is not None:
            watch_stop_file(Path(spec.stop_file), self._unwatch, on_end)
        if spec.walltime_margin is not None:
            watch_walltime(spec.walltime_margin, self._unwatch, on_end, on_unknown)

    def _begin_end(self, reason: str) -> None:
        """End the cluster's work, but stay until the owner leaves, to tell everybody why."""
        if self._ending.is_set():
            return
        self._end_reason = reason
        # A host that takes over must not begin anew. A few bytes to a node-local file.
        try:
            write_private(self._folder / ENDING_FILE, reason.encode(errors="replace"))
        except OSError as error:  # the disk is full, say: that is no reason not to end
            logger.warning("cannot note that this cluster ends: %s (setting: scratch)", error)
        self._ending.set()

    async def _end_actors(self, timeout: float) -> dict[str, str]:
        """End all actors; what became of those that did not end in order."""
        elsewhere: dict[str, str] = {}

        async def end_others(controller: ClusterController) -> None:
            elsewhere.update(await controller.end(timeout, self._end_reason))

        async with anyio.create_task_group() as tasks:
            if self._controller is not None:
                tasks.start_soon(end_others, self._controller)
            here = await self._supervisor.stop(timeout, self._end_reason)
        if self._controller is not None:
            here = self._controller.unclean_leaders(here)
        return here | elsewhere

    async def _stay(self) -> None:
        """Answer in the actors' place until the owner closes the cluster, or is gone."""
        await on_daemon_thread(OPEN_TIMEOUT, self.close_memory)
        text = f"the cluster has ended in order: {self._end_reason}"
        refusal = RefusingServer("closing", text)
        if self._controller is not None:
            await self._controller.tell_end(text)
        spec = self._spec
        servers = [
            await refuse(address, name, spec.secret, spec.max_message_bytes, refusal)
            for name, address in actor_addresses(spec).items()
        ]
        await self._leaving.wait()
        for server in servers:
            await server.close()

    async def _start_actors(self, tasks: TaskGroup) -> None:
        try:
            await self._bring_up(tasks)
        finally:
            self._brought_up.set()

    async def _bring_up(self, tasks: TaskGroup) -> None:
        if self._spec.restarts:
            self._event(EventKind.HOST_RESTARTED, "", f"the one before {self._spec.reason}")
            if self._spec.tier_given_up:
                self._event(EventKind.DDICT_GIVEN_UP, "", self._spec.tier_given_up)
            if self._spec.nodes == 1:
                self._started.set()  # whoever attaches now waits for the actors themselves
        try:
            nodes = await self._gather()
            await self._memory.open(nodes, ip=self._ip, several=self._controller is not None)
        except FlowgenticError as error:
            logger.exception("the memory does not open")
            self._start_error = str(error)
            self._started.set()
            if self._spec.restarts:
                self._leaving.set()  # nobody waits for the error: the owner tries another host
                self._ending.set()
            return
        try:
            await self._begin_actors(tasks, nodes)
        except FlowgenticError as error:
            if not self._spec.restarts:
                logs = (self._folder / f"{spec.name}.log" for spec in self._memory.specs)
                tail = await on_daemon_thread(FILE_TIMEOUT, log_tail, *logs)
                if tail:
                    logger.error("the actors' logs end with:\n%s", tail)  # noqa: TRY400 - theirs
                self._start_error = with_last_line(str(error), tail)
        self._started.set()

    async def _begin_actors(self, tasks: TaskGroup, nodes: list[str]) -> None:
        if self._controller is None:
            await self._supervisor.start(tasks, self._memory.specs)
        else:
            await self._open_federation(self._controller, tasks, nodes)
        if not self._spec.restarts:
            detail = f"{len(self._memory.specs)} actors by {self._spec.spawner}"
            if len(nodes) > 1:
                detail += f" on {len(nodes)} nodes"
            self._event(EventKind.CLUSTER_OPENED, "", detail)

    async def _gather(self) -> list[str]:
        """Take in the other nodes, if there are to be any; the names of all."""
        spec = self._spec
        if spec.nodes == 1 or spec.identity is None:
            if spec.asked_nodes > 1:
                detail = (
                    f"n_nodes={spec.asked_nodes}, and there is this one alone: neither a Dragon"
                )
                self._event(
                    EventKind.FEWER_NODES, "", f"{detail} runtime nor a job with more nodes"
                )
            return [_node()]
        self._ip = "127.0.0.1" if spec.spawner != "dragon" else choose_address(spec.network)
        dragon = spec.spawner == "dragon"
        launcher = DragonNodeLauncher() if dragon else LocalNodeLauncher(self._folder)
        node_pool = NodePool(spec, launcher, spec.identity, self._ip, self._event)
        before = await on_daemon_thread(FILE_TIMEOUT, PlanFile(Path(spec.memory)).read)
        nodes = await node_pool.gather(
            time.monotonic() + _GATHER_SHARE * spec.start_timeout,
            before.nodes if before is not None and not spec.persist else (),
        )
        if len(nodes) == 1:
            await node_pool.close()
            if spec.replicas > 1:
                found = node_pool.missing or "there is no other node in the Dragon runtime"
                raise ClusterOpenError(f"replicas=2 needs a second node: {found}")
            self._ip = ""
            return nodes
        context = await on_daemon_thread(FILE_TIMEOUT, server_context, spec.identity, self._folder)
        port = await self._listen(context)
        self._remote = TcpAddress(self._ip, port, spec.identity.certificate)
        self._controller = ClusterController(
            spec,
            node_pool=node_pool,
            identity=spec.identity,
            ip=self._ip,
            supervisor=self._supervisor,
            on_event=self._event,
        )
        return nodes

    async def _listen(self, context: ssl.SSLContext) -> int:
        """Listen where the host before this one did: whoever attached knows that port."""
        file = self._folder / PORT_FILE
        before = await on_daemon_thread(FILE_TIMEOUT, _read_number, file)
        try:
            port = await self._server.listen_tcp(self._ip, context, before)
        except OSError:
            if not before:
                raise
            logger.warning("port %d is taken: who attached from another node is cut off", before)
            port = await self._server.listen_tcp(self._ip, context)
        await on_daemon_thread(FILE_TIMEOUT, overwrite, file, str(port).encode())
        return port

    async def _open_federation(
        self, controller: ClusterController, tasks: TaskGroup, nodes: list[str]
    ) -> None:
        spec = self._spec
        assert self._remote is not None
        arguments = self._memory.actor_arguments
        memory = Path(spec.memory)
        assert self._memory.manifest is not None
        await controller.open(
            tasks,
            nodes,
            even_table(len(self._memory.specs), spec.namespace_depth),
            host=self._remote,
            generation=self._memory.manifest.subfolder,
            manifest=await on_daemon_thread(FILE_TIMEOUT, read_private, memory / MANIFEST),
            factory=self._memory.factory,
            arguments=arguments,
            child_spec=self._memory.child_spec,
            on_table=self._memory.note_table,
        )

    def close_memory(self) -> None:
        """Let go of the memory on disk, when its actors have ended; another cluster may take it."""
        self._memory.close(orderly=self._killed == {})

    async def _expect_owner(self) -> None:
        await anyio.sleep(_OWNER_TIMEOUT)
        if self._owner is None:
            self._lose_owner()

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
                    assert self._tasks is not None
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
        if self._controller is not None:
            self._controller.disconnected(connection)
        if connection is self._owner:
            self._owner_gone.set()
            if not (self._ended.is_set() and self._leaving.is_set()):
                self._lose_owner()

    def _lose_owner(self) -> None:
        self.owner_lost = True
        self._end_reason = self._end_reason or "the owner is gone"
        self._leaving.set()
        self._ending.set()

    def _doing(self) -> str:
        """Description of what attaching programs have to wait for."""
        if self._memory.manifest is None:
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
                reply = StatusReply(await self._reporter.status(self._controller))
            case GetEvents(start, wait):
                reply = EventsReply(await self._events_from(start, wait))
            case End() | Shutdown():
                if connection is not self._owner:
                    raise InvalidRequestError("only the cluster's owner may end it")
                reply = await self._answer_owner(command)
            case _:
                reply = await self._answer_about_places(connection, command)
        return reply

    async def _answer_owner(self, command: End | Shutdown) -> HostReply:
        if isinstance(command, End):
            self._begin_end(command.reason)
            return Acknowledged()
        self._shutdown_timeout = command.timeout
        self._end_reason = self._end_reason or "its owner closed it"
        self._leaving.set()
        self._ending.set()
        await self._ended.wait()
        return ShutdownReply(self._killed or {})

    async def _answer_about_places(
        self, connection: Connection, command: Describe | GetShardMap | Heartbeat | Rebalance
    ) -> HostReply | Raw:
        if isinstance(command, Heartbeat):
            if self._controller is None:
                raise InvalidRequestError("this host has no other nodes, or not yet")
            return await self._controller.heartbeat(connection, command)
        await self._started.wait()  # before that, nobody knows where the shards are
        if self._start_error is not None:
            raise RejectedError(self._start_error)
        if isinstance(command, Rebalance):
            if self._controller is None:
                raise InvalidRequestError(_NOT_SEVERAL)
            return await self._controller.rebalance(command)
        if isinstance(command, GetShardMap):
            if self._controller is None:
                return self._places()
            return await self._controller.shard_map(command.version, command.wait)
        shared = self._spec.shared
        if self._memory.manifest is not None:
            shared = msgspec.structs.replace(shared, index=self._memory.manifest.index)
        return Description(
            self._spec.spawner,
            self._places(),
            self._spec.max_message_bytes,
            changes=self._controller is not None,
            host=self._remote,
            shared=shared,
            found=self._memory.found,
            memory=self._spec.memory,
        )

    def _places(self) -> ShardMap:
        spec = self._spec
        if self._controller is not None:
            return self._controller.current_shard_map()
        table = even_table(spec.actors, spec.namespace_depth)
        here = machine()
        places = (ShardLocation(name, here, path) for name, path in actor_addresses(spec).items())
        return ShardMap(1, table, tuple(places))

    # ------------------------------------------------------------------ events and status

    def _spawner(self, spec: HostSpec) -> Spawner:
        if spec.spawner != "dragon":
            return SubprocessSpawner()
        return DragonSpawner(
            uses_dragon=spec.tier_bytes > 0,
            on_hung=lambda why: self._event(
                EventKind.DRAGON_HUNG, "", f"{why}: actors go on without it"
            ),
        )

    def _actor_event(self, kind: EventKind, actor: str, detail: str) -> None:
        """Note what happened to an actor of this node."""
        if self._controller is not None:
            detail = self._controller.located(actor, detail)
        self._event(kind, actor, detail)

    def _stir(self) -> None:
        if self._controller is not None:
            self._controller.request_publish()

    def _event(self, kind: EventKind, actor: str, detail: str) -> None:
        if actor:
            self._stir()
        logger.info("%s %s %s", kind, actor, detail)
        self._event_log.add(kind, actor, detail)
        self._news.set()
        self._news = asyncio.Event()

    async def _events_from(self, start: int, wait: float) -> tuple[ClusterEvent, ...]:
        if start >= self._event_log.next_number:
            with anyio.move_on_after(wait):
                await self._news.wait()
        return self._event_log.since(start)


def _node() -> str:
    return socket.gethostname()


def _read_number(path: Path) -> int:
    try:
        return int(read_private(path))
    except (OSError, ValueError):
        return 0
