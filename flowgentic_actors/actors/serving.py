"""Serving one incarnation of an actor on an event loop, in whichever process that runs."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable
from typing import Protocol

from flowgentic_actors.actors.actor import Actor
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.wire.messages import Noted, Ready, Stopped, ToServer, sendable
from flowgentic_actors.wire.server import Server


class Link(Protocol):
    """How an actor and its supervisor reach each other.

    Attributes:
        status: Tells how long the batch under way has taken, and the counters; any thread.
        on_drain: Called, on any thread, with the reason when the actor shall end.
        on_fence: Called, on any thread, when the actor shall answer nothing, and when it may again.
    """

    status: Callable[[], tuple[float, dict[str, int]]]
    on_drain: Callable[[str], None]
    on_fence: Callable[[bool], None]

    def send(self, message: ToServer) -> None:
        """Tell the supervisor; callable from any thread."""


def make_actor(factory: str, arguments: dict[str, str]) -> Actor:
    """Call a factory named `"module:callable"`."""
    module, _, name = factory.partition(":")
    actor: Actor = getattr(importlib.import_module(module), name)(**arguments)
    return actor


async def serve(
    spec: ActorSpec,
    actor: Actor,
    link: Link,
    started: float,
    on_broken: Callable[[str, Server], None],
) -> None:
    """Serve until the supervisor wants it to end.

    Args:
        spec: The incarnation.
        actor: The actor.
        link: To its supervisor.
        started: When making it began, on the monotonic clock.
        on_broken: Called when the actor cannot go on, with the reason.
    """
    loop = asyncio.get_running_loop()
    draining: asyncio.Future[str] = loop.create_future()

    def drain(reason: str) -> None:
        if not draining.done():
            draining.set_result(reason)

    def broken(reason: str) -> None:
        on_broken(reason, server)

    mailbox = Mailbox(spec.mailbox_requests, spec.mailbox_bytes)
    runtime = ActorRuntime(actor, mailbox, broken, spec.max_message_bytes)
    server = Server(runtime, spec.secret, spec.name, spec.epoch, spec.max_message_bytes)
    await server.listen(spec.address)
    link.status = lambda: (runtime.busy(), runtime.stats())
    link.on_drain = lambda reason: _threadsafe(loop, lambda: drain(reason))
    link.on_fence = lambda fenced: _threadsafe(loop, lambda: runtime.fence(fenced=fenced))
    actor.start(lambda kind, detail: link.send(Noted(kind, sendable(detail))), runtime.wake)
    link.send(Ready(time.monotonic() - started))
    reason = await draining
    await runtime.drain(server, reason)
    link.send(Stopped(runtime.stats()))


def _threadsafe(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
