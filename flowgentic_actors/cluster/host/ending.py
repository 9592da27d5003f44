"""The end of a cluster's work: why and when, and whether its host ends as well."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.cluster.host.memory import FILE_TIMEOUT
from flowgentic_actors.cluster.job_end import watch_stop_file, watch_walltime
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.storage.private_files import read_private, write_private

ENDING_FILE: Final = "ending"
"""Holds the reason once the cluster's work is being ended by its host."""

logger = logging.getLogger(__name__)


class Ending:
    """Begins once, whatever happens first: an order, a signal, the job's end, or a lost owner.

    Args:
        spec: The host's.
        on_walltime_unknown: Called when the job's end cannot be found out.

    Attributes:
        reason: Why, empty before it has begun.
        timeout: Seconds that it may take.
        begun: Set when the actors are to end.
        leaving: Set when the host is to end, too: until then it stays to say why.
        owner_lost: Whether the owner is gone without having closed the cluster.
    """

    def __init__(self, spec: HostSpec, on_walltime_unknown: Callable[[], None]) -> None:
        self._spec = spec
        self._on_walltime_unknown = on_walltime_unknown
        self._file = Path(spec.folder) / ENDING_FILE
        self._unwatch = threading.Event()
        self.reason = ""
        self.timeout = spec.close_timeout
        self.begun = asyncio.Event()
        self.leaving = asyncio.Event()
        self.owner_lost = False

    async def resume(self) -> bool:
        """Continue the end that a host before this one has begun; False if there is none."""
        reason = await on_daemon_thread(FILE_TIMEOUT, self._noted)
        if reason is None:
            return False
        self.reason = reason
        self.begun.set()
        return True

    def _noted(self) -> str | None:
        try:
            return read_private(self._file).decode()
        except FileNotFoundError:
            return None

    def watch(self) -> None:
        """Begin at the signal, stop file or walltime that the settings name."""
        spec, loop = self._spec, asyncio.get_running_loop()

        def on_end(reason: str) -> None:
            loop.call_soon_threadsafe(self.begin, reason)

        def on_unknown() -> None:
            loop.call_soon_threadsafe(self._on_walltime_unknown)

        if spec.stop_signal is not None:  # a scheduler may send it to every process of the job
            number = signal.Signals[spec.stop_signal]
            loop.add_signal_handler(number, self.begin, f"signal {spec.stop_signal}")
        if spec.stop_file is not None:
            watch_stop_file(Path(spec.stop_file), self._unwatch, on_end)
        if spec.walltime_margin is not None:
            watch_walltime(spec.walltime_margin, self._unwatch, on_end, on_unknown)

    def unwatch(self) -> None:
        """Stop what `watch` has begun."""
        self._unwatch.set()

    def begin(self, reason: str) -> None:
        """End the cluster's work, but let the host stay until its owner leaves, to say why."""
        if self.begun.is_set():
            return
        self.reason = reason
        # A host that takes over must not begin anew. A few bytes to a node-local file.
        try:
            write_private(self._file, reason.encode(errors="replace"))
        except OSError as error:  # the disk is full, say: that is no reason not to end
            logger.warning("cannot note that this cluster ends: %s (setting: scratch)", error)
        self.begun.set()

    def leave(self, reason: str = "") -> None:
        """End the host as well.

        Args:
            reason: Why, unless the work is being ended for another one.
        """
        self.reason = self.reason or reason
        self.leaving.set()
        self.begun.set()

    def lose_owner(self) -> None:
        """End all: the cluster is not used any more."""
        self.owner_lost = True
        self.leave("the owner is gone")
