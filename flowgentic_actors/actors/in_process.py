"""An actor in the supervisor's process: the last resort when its own processes keep dying.

It has a thread and an event loop of its own, so recovering a journal or a long batch does not keep
the supervisor from its work. What breaks it ends the thread and not the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Raw

from flowgentic_actors.actors.actor import Actor, Status
from flowgentic_actors.actors.serving import make_actor, serve
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import ActorStartError, FlowgenticError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.wire.messages import NIL, ActorEvent, Ready, Stopped, ToServer
from flowgentic_actors.wire.server import Server

_LAST_MOMENT = 0.02

logger = logging.getLogger(__name__)


class InProcessActor:
    """Makes and serves an actor in this process; made on the supervisor's loop.

    Args:
        spec: The incarnation; no other one may live.
        on_event: Told on the supervisor's loop what the actor tells: kind, detail.

    Attributes:
        ready: Set when it serves.
        ended: Set when it serves no more.
        stopped: Whether it finished what it had accepted.
        reason: Why it ended otherwise.
    """

    def __init__(self, spec: ActorSpec, on_event: Callable[[EventKind, str], None]) -> None:
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.stopped = False
        self.reason = ""
        self.status: Callable[[], Status] = lambda: Status(0.0, {}, NIL)
        self.on_drain: Callable[[str], None] = lambda _reason: None
        self.on_fence: Callable[[bool], None] = lambda _fenced: None
        self.on_news: Callable[[], None] = lambda: None
        self.lease = -math.inf
        self.told: Raw | None = None
        self.port = 0
        self._spec = spec
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        name = f"hosted-{spec.child.name}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def send(self, message: ToServer) -> None:
        """Receive a message of the actor for its supervisor."""
        match message:
            case Ready(_, port):
                self.port = port
                self._tell(self.ready.set)
            case ActorEvent(kind, detail):
                self._tell(lambda: self._on_event(kind, detail))
            case Stopped():
                self.stopped = True

    def tell(self, body: Raw) -> None:
        """Pass a message on to the actor."""
        self.told = body
        self.on_news()

    def extend(self, lease: float) -> None:
        """Extend the actor's lease."""
        self.lease = lease
        self.on_news()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            actor = make_actor(self._spec.child)
            Path(self._spec.child.address).unlink(missing_ok=True)  # a dead incarnation's
            try:
                asyncio.run(self._serve(actor, started))
            finally:
                if not self.stopped:
                    with contextlib.suppress(FlowgenticError, OSError):  # it is broken anyway
                        actor.close()
        except BaseException as error:  # a defect in an actor must not end the host
            logger.warning("the hosted actor %s ended", self._spec.child.name, exc_info=error)
            self.reason = f"{type(error).__name__}: {error}"
        self._tell(self.ended.set)

    async def _serve(self, actor: Actor, started: float) -> None:
        broken: asyncio.Future[tuple[str, Server]] = asyncio.get_running_loop().create_future()

        def on_broken(reason: str, server: Server) -> None:
            if not broken.done():
                broken.set_result((reason, server))

        serving = asyncio.ensure_future(serve(self._spec, actor, self, started, on_broken))
        both: list[asyncio.Future[Any]] = [serving, broken]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            return
        serving.cancel()
        reason, server = broken.result()
        await server.close()
        await asyncio.sleep(_LAST_MOMENT)  # what was being accepted just now is closed, too
        await server.close()
        raise ActorStartError(reason)

    def _tell(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the supervisor's loop is closed
            self._loop.call_soon_threadsafe(call)
