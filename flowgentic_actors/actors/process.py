"""The program of an actor's process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.actors.actor import Actor
from flowgentic_actors.actors.link import SupervisorLink
from flowgentic_actors.actors.mailbox import Mailbox
from flowgentic_actors.actors.runtime import ActorRuntime
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import FlowgenticError
from flowgentic_actors.wire.messages import Broken, Ready, Stopped, sendable
from flowgentic_actors.wire.server import MAX_CONNECTIONS, Server

EXIT_BROKEN: Final = 70
"""Exit code of an actor that could not start or go on, after it told the supervisor why."""

logger = logging.getLogger(__name__)


def main() -> int:
    """Become the actor that the file named on the command line describes."""
    # Ctrl-C and a scheduler's SIGTERM reach every process of a job; the supervisor alone decides
    # when an actor ends, and its link tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _allow_files(MAX_CONNECTIONS + 64)
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ActorSpec)
    started = time.monotonic()
    link = SupervisorLink(spec)
    try:
        link.ask_to_go()
    except FlowgenticError:
        logger.exception("actor %s does not start", spec.name)
        return EXIT_BROKEN
    link.watch()
    try:
        actor = make_actor(spec.factory, spec.arguments)
    except Exception as error:
        logger.exception("actor %s cannot be made", spec.name)
        link.send(Broken(sendable(f"{type(error).__name__}: {error}")))
        return EXIT_BROKEN
    try:
        asyncio.run(_serve(spec, actor, link, started))
    except Exception as error:
        logger.exception("actor %s cannot go on", spec.name)
        link.send(Broken(sendable(f"{type(error).__name__}: {error}")))
        return EXIT_BROKEN
    return 0


def _allow_files(wanted: int) -> None:
    """Lift the soft limit on open files, often 1,024, towards what the connections may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def make_actor(factory: str, arguments: dict[str, str]) -> Actor:
    """Call a factory named `"module:callable"`."""
    module, _, name = factory.partition(":")
    actor: Actor = getattr(importlib.import_module(module), name)(**arguments)
    return actor


async def _serve(spec: ActorSpec, actor: Actor, link: SupervisorLink, started: float) -> None:
    loop = asyncio.get_running_loop()
    draining = asyncio.Event()

    def broken(reason: str) -> None:
        with contextlib.suppress(OSError):  # the supervisor may be gone; the end is the same
            link.send(Broken(sendable(reason)))
        os._exit(EXIT_BROKEN)

    def drain_soon() -> None:
        loop.call_soon_threadsafe(draining.set)

    mailbox = Mailbox(spec.mailbox_requests, spec.mailbox_bytes)
    runtime = ActorRuntime(actor, mailbox, broken, spec.max_message_bytes)
    server = Server(runtime, spec.secret, spec.name, spec.epoch, spec.max_message_bytes)
    await server.listen(spec.address)
    link.status = lambda: (runtime.busy(), runtime.stats())
    link.on_drain = drain_soon
    link.send(Ready(time.monotonic() - started))
    await draining.wait()
    await runtime.drain(server)
    link.send(Stopped(runtime.stats()))
