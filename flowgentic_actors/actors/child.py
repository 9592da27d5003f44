"""The supervisor's state of one actor, over all its incarnations."""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, field

from msgspec import Raw

from flowgentic_actors.actors.in_process import InProcessActor
from flowgentic_actors.actors.process_watch import ProcessWatch
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.actors.spawn import Spawned
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.errors import ActorStartError
from flowgentic_actors.silence import SilenceCounter
from flowgentic_actors.wire.messages import NIL, Deliver, Lease, Ping
from flowgentic_actors.wire.server_connection import Connection


class ChildState(enum.StrEnum):
    """Lifecycle state of a supervised actor."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    DEGRADED = "degraded"  # in the supervisor's own process
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass
class Incarnation:
    """One life of an actor, from its process's first message to its confirmed exit."""

    epoch: int
    spawned: Spawned | None = None
    link: Connection | None = None
    watch: ProcessWatch | None = None
    may_go: bool = False
    node: str = ""
    busy: float = 0.0
    silence: SilenceCounter = field(default_factory=SilenceCounter)  # without answers to pings
    silent: bool = False  # whether the event was emitted
    asked: int = 0  # number of the last ping
    answered: int = 0
    pong: asyncio.Event = field(default_factory=asyncio.Event)  # replaced with every answer
    served_from: float = float("inf")  # on the monotonic clock; never, so far
    reason: str = ""  # why it is being ended, when we know before the exit
    started: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # link lost, exit, or given up
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ends(self) -> list[asyncio.Event]:
        """The events of which one is set when this incarnation has ended."""
        return [self.ended, self.watch.gone] if self.watch else [self.ended]

    def ping(self) -> int:
        """Send a ping, which also asks for the counters; returns its number."""
        assert self.link is not None
        self.asked += 1
        self.link.send(Ping(self.asked))
        return self.asked

    def heard(self, number: int) -> None:
        """Process the answer to a ping; 0 for a message that answers none."""
        self.silence.heard()
        self.answered = max(self.answered, number)
        self.pong.set()
        self.pong = asyncio.Event()

    def expect(self, event: asyncio.Event, what: str) -> None:
        """Check that a step of starting was reached.

        Raises:
            ActorStartError: If it was not.
        """
        if event.is_set():
            return
        over = any(end.is_set() for end in self.ends)
        how = f"its process ended before it could {what}" if over else f"it did not {what} in time"
        raise ActorStartError(self.reason or how)


class Child:
    """A supervised actor over all its incarnations."""

    def __init__(self, spec: ChildSpec, policy: RestartPolicy, epoch: int) -> None:
        self.spec = spec
        self.policy = policy
        self.state = ChildState.STARTING
        self.epoch = epoch
        self.restarts = epoch  # under an earlier supervisor
        self.in_vain = 0  # epochs that began nothing, for there was no open file to spare
        self.pid = 0
        self.node = ""
        self.has_run = epoch > 0
        self.stats: dict[str, int] = {}
        self.report = NIL
        self.as_of: float | None = None  # of the counters, seconds since the Unix epoch
        self.last_heard: float | None = None
        self.reason = ""
        self.life: Incarnation | None = None
        self.hosted: InProcessActor | None = None
        self.settled = asyncio.Event()  # running for the first time, or failed
        self.told: Raw | None = None  # sent to every incarnation
        self.unwanted = asyncio.Event()
        self.over = asyncio.Event()  # its supervision has ended

    @property
    def port(self) -> int:
        """TCP port of the incarnation that serves, 0 for none."""
        if self.hosted is not None:
            return self.hosted.port
        return self.life.port if self.life is not None else 0

    def note(self, stats: dict[str, int], report: Raw) -> None:
        """Store the actor's current counters and report."""
        self.stats, self.report, self.as_of = stats, report, time.time()
        self.last_heard = self.as_of

    def ask_hosted(self) -> float:
        """Store the counters of an actor in this process; returns how long its batch has taken."""
        assert self.hosted is not None
        busy, stats, report = self.hosted.status()
        self.note(stats, report)
        return busy

    def tell(self, message: Deliver | Lease) -> None:
        """Send a message to the current incarnation, if there is one."""
        if self.hosted is not None:
            if isinstance(message, Deliver):
                self.hosted.tell(message.body)
            else:
                self.hosted.extend(message.until)
        elif self.life is not None and self.life.may_go and self.life.link is not None:
            self.life.link.send(message)
