"""The compactor: runs compaction in a process, with a thread that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flowgentic_actors.python import python_command, python_environ
from flowgentic_actors.shard.journaling.compaction import MODULE
from flowgentic_actors.storage.compacted_set import CompactedSet
from flowgentic_actors.storage.journal import Journal, Obsolete
from flowgentic_actors.storage.worker import Worker

_AFTER_FAILURE = 5.0

logger = logging.getLogger(__name__)


class Compactor:
    """Compacts one journal, one compaction at a time.

    Args:
        journal: The journal.
        folder: Its folder.
        worker: The journal's thread, which removes what is needless.
        call: Calls a function as the journal's owner, from another thread. Default: on the event
            loop on which `start` is called.
    """

    def __init__(
        self,
        journal: Journal,
        folder: Path,
        worker: Worker,
        call: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._journal = journal
        self._folder = folder
        self._worker = worker
        self._call = call
        self._not_before = 0.0
        self._compacting = False  # from `_begin` until the end is reported
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self.running = False
        self.done = 0

    @property
    def ready(self) -> bool:
        """Whether there is something to compact, and a compaction is due."""
        return (
            not self.running
            and time.monotonic() >= self._not_before
            and self._journal.sealed_to > self._journal.compacted_to
        )

    def start(self) -> None:
        """Start to compact the sealed part; called by the journal's owner."""
        call = self._call or asyncio.get_running_loop().call_soon_threadsafe
        # On the journal's thread: an exception of a signal handler may interrupt the caller, and
        # would leave a thread half started.
        self._worker.put(partial(self._begin, call, self._journal.sealed_to))
        self.running = True

    def _begin(self, call: Callable[[Callable[[], None]], object], sealed_to: int) -> None:
        if self._compacting:  # `start` was interrupted and called again
            return
        self._compacting = True
        thread = threading.Thread(
            target=self._run, args=(call, sealed_to), name="compaction", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # there are too many: the journal's thread has to go on
            logger.warning("no thread for the compaction up to %d: %s", sealed_to, error)
            self._tell(call, None)

    def close(self) -> None:
        """Cancel a running compaction; the journal does not need it."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _run(self, call: Callable[[Callable[[], None]], object], sealed_to: int) -> None:
        written: CompactedSet | None = None
        try:
            written = self._compact(sealed_to)
        except Exception:
            # The journal is whole without it; it is tried again when more has been written.
            if not self._closed:
                logger.exception("the compaction up to %d failed", sealed_to)
        self._tell(call, written)

    def _tell(
        self, call: Callable[[Callable[[], None]], object], written: CompactedSet | None
    ) -> None:
        self._compacting = False  # before: the next one may begin at once
        with contextlib.suppress(RuntimeError):  # the loop is closed: the actor has ended
            call(lambda: self._finish(written))

    def _compact(self, sealed_to: int) -> CompactedSet:
        command = python_command(MODULE, str(self._folder), str(sealed_to))
        with subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environ()
        ) as self._process:
            assert self._process.stdout is not None
            name = os.fsdecode(self._process.stdout.read()).strip()
            code = self._process.wait()
        if code != 0 or not name:
            raise OSError(f"the compaction process ended with code {code}")
        return self._journal.check(Path(name))

    def _finish(self, written: CompactedSet | None) -> None:
        self.running = False
        if written is None:
            self._not_before = time.monotonic() + _AFTER_FAILURE
            return
        if self._closed:
            written.close()
            return
        obsolete = self._journal.adopt(written)
        self.done += 1
        self.remove(obsolete)

    def remove(self, obsolete: Obsolete) -> None:
        """Have the journal's thread remove obsolete files."""

        def job() -> None:
            try:
                self._journal.remove(obsolete)
            except OSError as error:  # the files stay, and are removed after the next compaction
                logger.warning("what the journal does not need could not be removed: %s", error)

        self._worker.put(job)
