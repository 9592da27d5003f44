"""Another kind of actor than the memory, and a supervisor to run it under."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
from anyio.abc import TaskGroup
from msgspec import Raw

from flowgentic_actors.actors.actor import ActorContext, Call
from flowgentic_actors.actors.child import Child
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.actors.spawn import Spawner, SubprocessSpawner
from flowgentic_actors.actors.spec import ChildSpec, SupervisorSettings
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.errors import InvalidRequestError, JournalError, ProtocolError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.messages import NIL, ToServer
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

REPOSITORY = Path(__file__).parents[2]
FACTORY = "tests.support.counter:make"
SECRET = Secret(bytes(range(32)))
PATIENCE = 30.0
"""Seconds that anything may take on a busy machine before a test gives up."""


def command(name: str, number: int = 0, padding: bytes = b"") -> bytes:
    """A request to a counter."""
    return msgspec.msgpack.encode((name, number, padding))


def number(reply: Raw | bytes) -> int:
    """What a counter answered."""
    return msgspec.msgpack.decode(reply, type=int)


class Counter:
    """Counts, and misbehaves on demand."""

    def __init__(self) -> None:
        self.total = 0
        self.commits = 0
        self.slow: list[float] = []
        self.commit_error: Exception | None = None
        self.commit_later: asyncio.Future[None] | None = None
        self.on_call: Callable[[Call], None] = lambda call: None
        self.tell: Callable[[EventKind, str], None] = lambda kind, detail: None

    def start(self, context: ActorContext) -> None:
        self.tell = context.tell

    async def drained(self) -> None:
        pass

    @property
    def takes_clients(self) -> bool:
        return True

    def on_message(self, body: Raw) -> None:
        self.total = number(body)

    def on_peer_request(self, body: Raw, answer: Callable[[bytes], None]) -> None:
        answer(msgspec.msgpack.encode(self.total))

    def handle(self, call: Call) -> bytes:
        name, number, _ = msgspec.msgpack.decode(call.body, type=tuple[str, int, bytes])
        self.on_call(call)
        match name:
            case "add":
                self.total += number
            case "pid":
                return msgspec.msgpack.encode(os.getpid())
            case "tell":
                self.tell(EventKind.SLOW_REQUEST, "it took long")
            case "large":
                return msgspec.msgpack.encode(bytes(number - 5))
            case "refuse":
                raise InvalidRequestError("no" * number)
            case "crash":
                raise RuntimeError("the counter is broken" + "\udc80" * number)
            case "exit":
                os._exit(number)
            case "busy":  # milliseconds
                time.sleep(number / 1000)
            case "spin":  # milliseconds
                end = time.monotonic() + number / 1000
                while time.monotonic() < end:
                    pass
            case "trap" if self.total:  # not for a successor, which begins at 0
                time.sleep(3600)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "full disk":
                self.commit_error = JournalError("no space left")
            case "bad commit":
                self.commit_error = ValueError("a defect in commit")
        return msgspec.msgpack.encode(self.total)

    def was_slow(self, call: Call, seconds: float) -> None:
        self.slow.append(seconds)

    def commit(self) -> asyncio.Future[None] | None:
        self.commits += 1
        if self.commit_error is not None:
            raise self.commit_error
        return self.commit_later

    def stats(self) -> dict[str, int]:
        return {"total": self.total}

    def report(self) -> Raw:
        return NIL

    def close(self) -> None:
        pass


class Stubborn(Counter):
    """Does not end: its last breath takes an hour."""

    def close(self) -> None:
        time.sleep(3600)


class Untold(Counter):
    """Cannot say how it is."""

    def stats(self) -> dict[str, int]:
        raise KeyError("stats")


def make(arguments: Raw) -> Counter:
    """The factory that actors' processes call.

    Args:
        arguments: JSON of what `make_counter` takes.
    """
    return make_counter(**msgspec.json.decode(arguments, type=dict[str, str]))


def make_counter(kind: str = "counter", lives: str = "", seconds: str = "0") -> Counter:
    """Make a counter.

    Args:
        kind: `counter`, `stubborn`, `untold`; `broken` cannot be made, `mortal` only once.
        lives: A file that gets the pid of every incarnation.
        seconds: How long making it takes.
    """
    before = ""
    if lives:
        with Path(lives).open("a+") as file:
            file.seek(0)
            before = file.read()
            file.write(f"{os.getpid()}\n")
    time.sleep(float(seconds))
    if kind == "broken" or (kind == "mortal" and before):
        raise ValueError("this counter cannot be made")
    return {"stubborn": Stubborn, "untold": Untold}.get(kind, Counter)()


def clear(path: Path) -> None:
    """Remove what an earlier server left; a server does it itself, which blocks for a moment."""
    path.unlink(missing_ok=True)


@asynccontextmanager
async def serving(
    path: Path, *, secret: Secret[bytes] = SECRET, limit: int = 1 << 20
) -> AsyncIterator[tuple[Server, Counter]]:
    """A counter that is served in this process, without a supervisor."""
    counter = Counter()
    broken: list[str] = []
    runtime = ActorRuntime(counter, Mailbox(1000, 16 << 20), broken.append, limit)
    server = Server(runtime, secret, "counter", 1, limit)
    clear(path)
    await server.listen(str(path))
    try:
        yield server, counter
    finally:
        await runtime.drain(server)
    assert not broken


def supervisor_settings(**changes: Any) -> SupervisorSettings:
    """Settings of a supervisor that looks often, some of them changed."""
    settings = {
        "heartbeat_interval": 0.05,
        "hang_timeout": 5.0,
        "busy_timeout": 60.0,
        "restart_intensity": 10,
        "restart_period": 60.0,
        "open_timeout": PATIENCE,
        "mailbox_requests": 1000,
        "mailbox_bytes": 1 << 20,
        "max_message_bytes": 1 << 20,
        "rejoin_grace": 60.0,
    }
    return SupervisorSettings(**(settings | changes))


class Office:
    """A supervisor with the server that its actors' links reach it by."""

    def __init__(self, folder: Path, tasks: TaskGroup, spawner: Spawner, **changes: Any) -> None:
        self.folder = folder
        self.tasks = tasks
        self.events: list[tuple[str, str, str]] = []
        self._address = str(folder / "office.sock")
        self._listening = False
        self.server = Server(self, SECRET, "office", 0, 1 << 20)
        self.supervisor = Supervisor(
            folder,
            self._address,
            SECRET,
            spawner,
            settings=supervisor_settings(**changes),
            on_event=lambda kind, actor, detail: self.events.append((kind, actor, detail)),
        )

    async def start(self, *names: str, rank: int = 0, **arguments: str) -> list[ActorRef]:
        """Start counters and return references to them."""
        if not self._listening:
            self._listening = True
            await self.server.listen(self._address)
        specs = [
            ChildSpec(
                name=name,
                factory=FACTORY,
                arguments=Raw(msgspec.json.encode(arguments)),
                address=str(self.folder / f"{name}.sock"),
                rank=rank,
            )
            for name in names
        ]
        await self.supervisor.start(self.tasks, specs)
        return [ActorRef(spec.name, spec.address, SECRET, 1 << 20, 64) for spec in specs]

    def child(self, name: str = "a") -> Child:
        """A counter as its supervisor knows it."""
        return next(child for child in self.supervisor.children if child.spec.name == name)

    def connected(self, connection: Connection) -> None:
        pass

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        if connection.role != "link":
            raise ProtocolError("only actors come here")
        for message in messages:
            self.supervisor.link_received(connection, message)

    def disconnected(self, connection: Connection) -> None:
        self.supervisor.link_lost(connection)


@asynccontextmanager
async def office(
    folder: Path, spawner: Spawner | None = None, **settings: Any
) -> AsyncIterator[Office]:
    """A supervisor, ended with all its actors."""
    async with anyio.create_task_group() as tasks:
        opened = Office(folder, tasks, spawner or SubprocessSpawner(), **settings)
        try:
            yield opened
        finally:
            with anyio.CancelScope(shield=True):
                await opened.supervisor.stop(PATIENCE)
                await opened.server.close()
            tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - any condition will do
            await anyio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
