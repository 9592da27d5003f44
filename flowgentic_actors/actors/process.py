"""The program of an actor's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from flowgentic_actors.actors.link import SupervisorLink
from flowgentic_actors.actors.logfile import log_to
from flowgentic_actors.actors.serving import make_actor, serve
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import FlowgenticError
from flowgentic_actors.secret import concealed
from flowgentic_actors.storage.private_files import read_private, trusted_path
from flowgentic_actors.wire.awake import time_awake
from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.messages import Fatal, sendable
from flowgentic_actors.wire.server import Server

T = TypeVar("T")

EXIT_BROKEN: Final = 70
"""Exit code of an actor that could not start or go on, after it told the supervisor why."""

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the actor that the file named on the command line describes."""
    ignore_job_signals()
    spec_file = trusted_path(Path(sys.argv[1]))
    log_to(spec_file.with_suffix(".log"))
    allow_files()
    spec = msgspec.json.decode(
        read_private(spec_file, secret=True), type=ActorSpec, dec_hook=concealed
    )
    stay_awake = time_awake(spec.settings.stay_awake)
    started = time.monotonic()
    link = SupervisorLink(spec)
    try:
        link.await_admission()
    except FlowgenticError:
        logger.exception("actor %s does not start", spec.child.name)
        return EXIT_BROKEN
    link.watch()

    def broken(reason: str, server: Server) -> None:  # noqa: ARG001 - it ends with the process
        with contextlib.suppress(OSError):  # the supervisor may be gone; the end is the same
            link.send(Fatal(sendable(reason)))
        os._exit(EXIT_BROKEN)

    try:
        actor = make_actor(spec.child)
    except Exception as error:
        logger.exception("actor %s cannot be made", spec.child.name)
        link.send(Fatal(sendable(f"{type(error).__name__}: {error}")))
        return EXIT_BROKEN
    try:
        run_loop()(serve(spec, actor, link, started, broken, stay_awake=stay_awake))
    except Exception as error:
        logger.exception("actor %s cannot go on", spec.child.name)
        link.send(Fatal(sendable(f"{type(error).__name__}: {error}")))
        return EXIT_BROKEN
    return 0


def run_loop() -> Callable[[Coroutine[Any, Any, T]], T]:
    """The function that runs an event loop: uvloop's, or asyncio's where there is no uvloop.

    For processes of this package: the loop of a program that uses it is the program's choice.
    """
    try:
        import uvloop  # noqa: PLC0415 - there are no packages of it for some systems
    except ImportError:
        return asyncio.run
    run: Callable[[Coroutine[Any, Any, T]], T] = uvloop.run
    return run


def ignore_job_signals() -> None:
    """Ignore the job's signals: the supervisor decides when this process ends.

    Ctrl-C, a closed terminal, a scheduler's SIGTERM and its warning before walltime (SIGUSR1 or
    SIGUSR2, as its user chose) reach every process of a job.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
