"""Serving of one incarnation of an actor on an event loop, in any process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Raw

from flowgentic_actors.actors.actor import Actor, ActorContext, Status
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.actors.spec import ActorSpec, ChildSpec, named_callable
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.wire.identity import server_context
from flowgentic_actors.wire.messages import ActorEvent, Pong, Ready, Stopped, ToServer, sendable
from flowgentic_actors.wire.server import Server

_FILE_TIMEOUT = 30.0


class Link(Protocol):
    """The two-way link of an actor and its supervisor.

    Attributes:
        status: Tells how the actor is; any thread.
        on_drain: Called, on any thread, with the reason when the actor shall end.
        on_fence: Called, on any thread, when the actor shall answer nothing, and when it may again.
        on_news: Called, on any thread, when `lease` or `told` have changed.
        lease: Until when the actor may answer, on the monotonic clock, if it needs a lease.
        told: What the supervisor passed on last, None for nothing yet.
    """

    status: Callable[[], Status]
    on_drain: Callable[[str], None]
    on_fence: Callable[[bool], None]
    on_news: Callable[[], None]
    lease: float
    told: Raw | None

    def send(self, message: ToServer) -> None:
        """Send a message to the supervisor; callable from any thread."""


def make_actor(spec: ChildSpec) -> Actor:
    """Make an actor by its factory."""
    actor: Actor = named_callable(spec.factory)(spec.arguments)
    return actor


async def serve(
    spec: ActorSpec,
    actor: Actor,
    link: Link,
    started: float,
    on_broken: Callable[[str, Server], None],
    *,
    stay_awake: float = 0.0,
) -> None:
    """Serve until the supervisor ends it.

    Args:
        spec: The incarnation.
        actor: The actor.
        link: To its supervisor.
        started: When making it began, on the monotonic clock.
        on_broken: Called when the actor cannot go on, with the reason.
        stay_awake: As of `ActorRuntime`.
    """
    loop = asyncio.get_running_loop()
    draining: asyncio.Future[str] = loop.create_future()

    def drain(reason: str) -> None:
        if not draining.done():
            draining.set_result(reason)

    def broken(reason: str) -> None:
        on_broken(reason, server)

    child, settings = spec.child, spec.settings
    mailbox = Mailbox(settings.mailbox_requests, settings.mailbox_bytes)
    lease = -math.inf if child.leased else math.inf
    limit = settings.max_message_bytes
    runtime = ActorRuntime(actor, mailbox, broken, limit, lease, stay_awake=stay_awake)
    server = Server(runtime, spec.secret, child.name, spec.epoch, limit)

    def report() -> None:
        link.send(Pong(0, *runtime.status()))

    def tell(kind: EventKind, detail: str) -> None:
        report()
        link.send(ActorEvent(kind, sendable(detail)))

    max_bytes = settings.max_message_bytes
    actor.start(ActorContext(child.name, spec.secret, max_bytes, tell, report, runtime.wake))
    await server.listen(child.address)
    port = 0
    if spec.identity is not None:
        folder = Path(child.address).parent
        context = await on_daemon_thread(_FILE_TIMEOUT, server_context, spec.identity, folder)
        port = await server.listen_tcp(child.host, context)
    told: Raw | None = None

    def take_news() -> None:
        nonlocal told
        if link.told is not told and link.told is not None:
            told = link.told
            actor.on_message(told)
        if child.leased:
            runtime.extend(link.lease)

    link.status = runtime.status
    link.on_drain = lambda reason: _threadsafe(loop, lambda: drain(reason))
    link.on_fence = lambda fenced: _threadsafe(loop, lambda: runtime.fence(fenced=fenced))

    link.on_news = lambda: _threadsafe(loop, take_news)
    take_news()  # what came before
    link.send(Ready(time.monotonic() - started, port))
    reason = await draining
    await runtime.drain(server, reason)
    link.send(Stopped(runtime.stats()))


def _threadsafe(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
