"""The supervisor: starts actors, watches them, restarts them, ends them."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.child import Child, ChildState, Incarnation
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.file_shortage import FileShortage
from flowgentic_actors.actors.hang_detector import EventSink, HangDetector
from flowgentic_actors.actors.in_process import InProcessActor
from flowgentic_actors.actors.process_record import ProcessRecord
from flowgentic_actors.actors.process_watch import ProcessWatch
from flowgentic_actors.actors.refusing_server import RefusingServer, refuse
from flowgentic_actors.actors.restarts import RestartPolicy, was_killed
from flowgentic_actors.actors.spawn import Spawner
from flowgentic_actors.actors.spec import ActorSpec, ChildSpec, SupervisorSettings
from flowgentic_actors.actors.stats_query import first_of
from flowgentic_actors.errors import ActorFailedError, ActorStartError, ProtocolError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.secret import Secret, revealed
from flowgentic_actors.storage.private_files import overwrite
from flowgentic_actors.wire.file_limits import is_out_of_files
from flowgentic_actors.wire.identity import Identity
from flowgentic_actors.wire.messages import (
    NIL,
    ActorEvent,
    Admit,
    Deliver,
    Drain,
    Fatal,
    Lease,
    Pong,
    Ready,
    Started,
    Stopped,
    ToServer,
)
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

_EXIT_TIMEOUT = 10.0  # from SIGKILL to a confirmed exit; the kernel takes milliseconds
_FILE_TIMEOUT = 30.0
_FIRST_ATTEMPTS = 2  # restarts of an actor that has never run: what fails then is not a crash


class Supervisor:
    """Keeps a set of actors alive.

    An actor's process connects to the supervisor's socket first and opens nothing before it is let
    go on; the next incarnation is spawned only once the last one's exit is confirmed. So no two
    incarnations ever touch one journal.

    Args:
        folder: Private folder for spec and log files.
        address: Path of the socket where actors' links arrive; its server must pass them on to
            `link_received` and `link_lost`.
        secret: The cluster's secret.
        spawner: Starts the processes.
        settings: Times and bounds.
        on_event: Told what happens.
        on_report: Called when an actor has reported how it is without being asked.
        identity: What actors prove to other nodes.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        secret: Secret[bytes],
        spawner: Spawner,
        *,
        settings: SupervisorSettings,
        on_event: EventSink,
        on_report: Callable[[], None] = lambda: None,
        identity: Identity | None = None,
    ) -> None:
        self._folder = folder
        self._address = address
        self._secret = secret
        self._spawner = spawner
        self._settings = settings
        self._on_event = on_event
        self._on_report = on_report
        self._identity = identity
        self._hang_detector = HangDetector(
            settings.heartbeat_interval, settings.hang_timeout, settings.busy_timeout, on_event
        )
        self._lease = -math.inf
        self._children: dict[str, Child] = {}
        self._links: dict[Connection, tuple[Child, Incarnation]] = {}
        self._stopping = asyncio.Event()
        self._record = ProcessRecord(folder)
        self._refusing: list[Server] = []
        self._shortage = FileShortage(self._stopping, partial(on_event, EventKind.OUT_OF_FILES, ""))

    @property
    def settings(self) -> SupervisorSettings:
        """The settings of the supervisor."""
        return self._settings

    @property
    def children(self) -> list[Child]:
        """The supervised actors, in the order they were added."""
        return list(self._children.values())

    async def start(self, tasks: TaskGroup, specs: list[ChildSpec]) -> None:
        """Start actors and wait until each of them serves.

        Args:
            tasks: The task group that owns their watching.
            specs: The actors.

        Raises:
            ActorFailedError: If one of them failed for good.
        """
        epochs = await self._epochs()
        for child in [self._add(tasks, spec, epochs, None) for spec in specs]:
            await child.settled.wait()
            if child.state is ChildState.FAILED:
                raise ActorFailedError(f"{child.spec.name} does not start: {child.reason}")

    async def add(self, tasks: TaskGroup, spec: ChildSpec, told: Raw | None = None) -> Child:
        """Start an actor, without waiting for it.

        Args:
            tasks: The task group that owns its watching.
            spec: The actor.
            told: What each incarnation of it is told first; see `tell`.
        """
        epochs = await self._epochs()
        return self._add(tasks, spec, epochs, told)

    async def _epochs(self) -> dict[str, int]:
        return await self._shortage.outlast(
            lambda: on_daemon_thread(_FILE_TIMEOUT, self._record.epochs)
        )

    def _add(
        self, tasks: TaskGroup, spec: ChildSpec, epochs: Mapping[str, int], told: Raw | None
    ) -> Child:
        policy = RestartPolicy(self._settings.restart_intensity, self._settings.restart_period)
        child = Child(spec, policy, epochs.get(spec.name, 0))
        child.told = told
        self._children[spec.name] = child
        tasks.start_soon(self._keep_alive, child, name=spec.name)
        return child

    async def remove(self, name: str) -> None:
        """Kill an actor and forget it; returns when its process is gone."""
        child = self._children[name]
        child.unwanted.set()
        if child.hosted is not None:
            child.hosted.extend(-math.inf)
            child.hosted.on_drain("it is not wanted here any more")
        elif child.life is not None:
            child.life.reason = "it is not wanted here any more"
            child.life.ended.set()
        with anyio.move_on_after(_EXIT_TIMEOUT if child.hosted is not None else None):
            await child.over.wait()
        self._children.pop(name, None)

    def tell(self, name: str, body: Raw) -> None:
        """Send a message to an actor: to its current incarnation, and to all later ones."""
        child = self._children[name]
        child.told = body
        child.tell(Deliver(body))

    def extend(self, lease: float) -> None:
        """Extend the lease of the actors that need one, on the monotonic clock."""
        self._lease = lease
        for child in self.children:
            if child.spec.leased and not child.unwanted.is_set():
                child.tell(Lease(lease))

    async def stop(self, timeout: float, reason: str = "") -> dict[str, str]:
        """End all actors: drain each, wait within a bound, kill what is left.

        Args:
            timeout: Seconds.
            reason: Why, for callers who come too late.

        Returns:
            What became of those that did not end in order, by name.
        """
        self._stopping.set()
        deadline = time.monotonic() + timeout
        for rank in sorted({child.spec.rank for child in self.children}, reverse=True):
            group = [child for child in self.children if child.spec.rank == rank]
            async with anyio.create_task_group() as tasks:
                for child in group:
                    tasks.start_soon(self._stop_child, child, deadline, reason)
        for server in self._refusing:
            await server.close()
        return {
            child.spec.name: child.reason
            for child in self.children
            if child.state is not ChildState.STOPPED
        }

    # ------------------------------------------------------------------ links

    def link_received(self, connection: Connection, message: ToServer) -> None:
        """Process a message of an actor from its link."""
        if isinstance(message, Started):
            self._link_started(connection, message)
            return
        if connection not in self._links:
            raise ProtocolError(f"{type(message).__name__} on a link that has not started")
        child, life = self._links[connection]
        child.last_heard = time.time()
        match message:
            case Ready(_, port):
                life.port = port
                life.ready.set()
            case Pong(number, busy, stats, report):
                life.busy = busy
                child.note(stats, report.copy())
                life.heard(number)
                if not number:
                    self._on_report()
            case ActorEvent(kind, detail):
                self._on_event(kind, child.spec.name, detail)
            case Fatal(reason):
                life.reason = reason
            case Stopped(stats):
                child.note(stats, child.report)
                life.stopped.set()
            case _:
                raise ProtocolError(f"{type(message).__name__} is not a message for a supervisor")

    def link_lost(self, connection: Connection) -> None:
        """React to an actor's closed link: it is dead, or about to end."""
        if connection in self._links:
            _, life = self._links.pop(connection)
            life.ended.set()

    def _link_started(self, connection: Connection, message: Started) -> None:
        child = self._children.get(message.name)
        life = child.life if child else None
        if child is None or life is None or life.epoch != message.epoch or life.link is not None:
            raise ProtocolError(f"{message.name} of epoch {message.epoch} is not wanted any more")
        life.link, life.node = connection, message.node
        life.watch = life.watch or ProcessWatch(connection.pid)
        self._links[connection] = (child, life)
        life.started.set()

    # ------------------------------------------------------------------ one actor's life

    async def _keep_alive(self, child: Child) -> None:
        try:
            await self._live(child)
        finally:
            child.over.set()

    async def _live(self, child: Child) -> None:
        while not (self._stopping.is_set() or child.unwanted.is_set()):
            child.epoch += 1
            life = child.life = Incarnation(child.epoch)
            child.stats, child.report, child.as_of = {}, NIL, None
            in_vain = False
            try:
                await self._bring_up(child, life)
                await self._hang_detector.watch(child.spec.name, life, *life.ends)
                reason = life.reason
            except (ActorStartError, TimeoutError) as error:
                reason = life.reason or str(error) or type(error).__name__
            except OSError as error:
                in_vain = is_out_of_files(error)
                reason = life.reason or f"cannot use {self._folder}: {error} (setting: scratch)"
            finally:
                code = await self._confirm_exit(child, life)
            if self._stopping.is_set() or child.unwanted.is_set():
                break
            if in_vain:  # that is no death of the actor
                child.in_vain += 1
                await self._shortage.wait(child.unwanted)
                continue
            child.reason = reason or _describe_exit(code)
            self._on_event(EventKind.ACTOR_EXITED, child.spec.name, child.reason)
            now = time.monotonic()
            killed = life.ready.is_set() and not reason and was_killed(code)
            delay = child.policy.next_delay(now, now - life.served_from, killed=killed)
            attempts = child.epoch - child.in_vain
            if not child.has_run and (delay is None or attempts > _FIRST_ATTEMPTS):
                self._failed(child, child.reason)
                return
            if delay is None:
                await self._host(child)
                break
            child.state = ChildState.RESTARTING
            child.restarts += 1
            with anyio.move_on_after(delay):
                await child.unwanted.wait()
        child.settled.set()  # what became of it, `stop` says

    async def _host(self, child: Child) -> None:
        """Serve an actor in this process, the last resort, until it fails here as well."""
        name, cause = child.spec.name, child.reason
        child.epoch += 1
        hosted = child.hosted = InProcessActor(
            self._spec_of(child), lambda kind, detail: self._on_event(kind, name, detail)
        )
        if child.told is not None:
            hosted.tell(child.told)
        hosted.extend(self._lease)
        await first_of(hosted.ready, hosted.ended, self._stopping)
        if hosted.ready.is_set():
            child.state, child.pid, child.node = ChildState.DEGRADED, os.getpid(), _node()
            self._on_event(
                EventKind.ACTOR_HOSTED,
                name,
                f"degraded: it is in the supervisor's process now, after {child.restarts} restarts;"
                f" the last reason: {cause}",
            )
            await self._hang_detector.watch_hosted(child, hosted, self._stopping)
        if self._stopping.is_set() or child.unwanted.is_set():
            return
        self._failed(child, f"{cause}; and in the supervisor's process: {hosted.reason}")
        text = (
            f"it has failed and is not restarted: {child.reason}. Other shards serve; close the "
            "cluster and open it again (settings: restart_intensity, restart_period)"
        )
        size = self._settings.max_message_bytes
        address = child.spec.address
        refusal = RefusingServer("failed", text)
        self._refusing.append(
            await self._shortage.outlast(lambda: refuse(address, name, self._secret, size, refusal))
        )

    def _failed(self, child: Child, reason: str) -> None:
        child.state, child.reason = ChildState.FAILED, reason
        child.settled.set()
        detail = f"given up after {child.restarts} restarts; the last reason: {reason}"
        self._on_event(EventKind.ACTOR_FAILED, child.spec.name, detail)

    def _spec_of(self, child: Child) -> ActorSpec:
        return ActorSpec(
            child=child.spec,
            epoch=child.epoch,
            supervisor=self._address,
            secret=self._secret,
            settings=self._settings,
            identity=self._identity if child.spec.host else None,
        )

    async def _bring_up(self, child: Child, life: Incarnation) -> None:
        settings = self._settings
        spec_file = self._folder / f"{child.spec.name}.spec"
        encoded = Secret(msgspec.json.encode(self._spec_of(child), enc_hook=revealed))
        await on_daemon_thread(_FILE_TIMEOUT, overwrite, spec_file, encoded)
        log_file = self._folder / f"{child.spec.name}.log"
        life.spawned = await self._spawner.spawn(spec_file, log_file, settings.open_timeout)
        if life.watch is None and life.spawned.pid is not None:
            life.watch = ProcessWatch(life.spawned.pid, life.spawned.reap)
        with anyio.move_on_after(settings.open_timeout):
            await first_of(life.started, *life.ends)
        life.expect(life.started, "connect")
        assert life.link is not None
        child.pid, child.node = life.link.pid, life.node
        noted = (child.spec.name, life.epoch, child.pid)
        await on_daemon_thread(_FILE_TIMEOUT, self._record.note, *noted)
        life.link.send(Admit())
        life.may_go = True
        if child.told is not None:
            life.link.send(Deliver(child.told))
        if child.spec.leased:
            life.link.send(Lease(self._lease))
        # Recovering a large journal takes as long as it takes, as long as pings are answered.
        await self._hang_detector.watch(child.spec.name, life, life.ready, *life.ends)
        life.expect(life.ready, "serve")
        child.state = ChildState.RUNNING
        child.has_run = True
        life.served_from = time.monotonic()
        self._on_event(
            EventKind.ACTOR_RUNNING,
            child.spec.name,
            f"epoch {life.epoch}, pid {child.pid} on {child.node}",
        )
        child.settled.set()

    async def _confirm_exit(self, child: Child, life: Incarnation) -> int | None:
        # Without a watch the process never showed up; when it does, it is not let go on.
        life.ended.set()
        if life.link is not None:
            life.link.abort()
        if life.watch is not None:
            life.watch.kill()
            with anyio.move_on_after(_EXIT_TIMEOUT, shield=True):
                await life.watch.gone.wait()
            if not life.watch.gone.is_set():
                # Stuck in the kernel, on a file system that does not answer perhaps. Another one
                # beside it would be two.
                child.state = ChildState.RESTARTING
                self._on_event(EventKind.ACTOR_LINGERS, child.spec.name, "killed, and not gone yet")
                await first_of(life.watch.gone, self._stopping)
            life.watch.close()
        return life.spawned.reap() if life.spawned else None

    async def _stop_child(self, child: Child, deadline: float, reason: str) -> None:
        life, hosted = child.life, child.hosted
        if child.state is ChildState.FAILED:
            return
        if hosted is not None:
            hosted.on_drain(reason)
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
                await hosted.ended.wait()
            self._stopped(child, orderly=hosted.stopped, served=hosted.ready.is_set())
            return
        if life is None:
            child.state = ChildState.STOPPED
            return
        served = life.link is not None and not life.ended.is_set() and life.ready.is_set()
        if life.link is not None and served:
            life.link.send(Drain(reason))
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
                await first_of(life.stopped, life.ended)
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
                await first_of(life.watch.gone if life.watch else life.ended)
        orderly = life.stopped.is_set()
        life.ended.set()
        if life.watch is not None:
            life.watch.kill()
            with anyio.move_on_after(_EXIT_TIMEOUT):
                await life.watch.gone.wait()
        self._stopped(child, orderly=orderly, served=served)

    def _stopped(self, child: Child, *, orderly: bool, served: bool) -> None:
        child.state = ChildState.STOPPED if orderly else ChildState.FAILED
        kind = EventKind.ACTOR_STOPPED if orderly else EventKind.ACTOR_KILLED
        reason = "it did not drain in time" if served else "it did not serve"
        if not orderly:
            child.reason = reason
        self._on_event(kind, child.spec.name, "" if orderly else reason)


def _node() -> str:
    return socket.gethostname()


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "its process ended"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
