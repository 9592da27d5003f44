"""A local cluster's memory on disk: locked and written by the process that uses it."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from flowgentic_actors.cluster.client.opening_log import tell_found, tell_new
from flowgentic_actors.cluster.persistence.manifest import reopening
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory, await_free
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings, SharedSettings
from flowgentic_actors.cluster.shard_limits import journal_settings, shard_settings
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.environment import scheduler_job
from flowgentic_actors.errors import MemoryFailedError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.embedded.journaled import JournaledShard
from flowgentic_actors.storage.group_commit_threads import Promise
from flowgentic_actors.storage.mounts import is_node_local


class LocalMemory:
    """The single shard of a local cluster, in the disk layout of distributed clusters.

    Args:
        config: The configuration.
        path: Its `persist_path`.
        name: Name of the cluster.
    """

    def __init__(self, config: MemoryConfig, path: Path, name: str) -> None:
        self.path = path.absolute()
        self.findings: list[tuple[EventKind, str]] = []
        """Events of the opening: kinds and details."""
        self.on_lost: Callable[[str], None] = lambda _: None
        """Told, on a thread, when another cluster took the memory away."""
        self.index: IndexSettings | None = None
        """How its items are embedded, known once it is open."""
        self._config = config
        self._name = name
        self._stored = StoredMemory(self.path)
        self._shard: JournaledShard | None = None
        self._lost: MemoryFailedError | None = None
        self._closing = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """Lock the memory and read it. Blocks.

        Raises:
            PersistError: If it cannot be opened.
            JournalError: If its journal cannot be read.
        """
        config = self._config
        await_free(self.path, time.monotonic() + config.open_timeout)
        job = scheduler_job()
        try:
            manifest, found = self._stored.open(
                name=self._name,
                instance=secrets.token_hex(8),
                shards=1,
                namespace_depth=config.namespace_depth,
                job=job.job_id if job else "",
                index=SharedSettings.of(config).index,
                reindex=config.reindex,
                on_lost=self._lose,
            )
            self.index = manifest.index
            if found is not None:
                self.findings += reopening(self.path, manifest, found)
            self._shard = JournaledShard(
                manifest.folders(self.path)[0],
                journal=replace(
                    journal_settings(config),
                    appends="direct" if is_node_local(self.path) else "thread",
                ),
                settings=shard_settings(config, 1),
            )
            if self._lost is not None:
                raise self._lost
            if found is None:
                tell_new(self.path)
            else:
                held = self._shard.stats()
                tell_found(self.path, found.name, held["threads"], held["items"])
        except BaseException:
            self.close()
            raise

    def stop_opening(self) -> None:
        """Cancel an opening that takes long, such as a re-sharding; does not block."""
        self._stored.announce_end()

    def ask(
        self, command: Command, loop: asyncio.AbstractEventLoop | None
    ) -> Reply | Promise[Reply]:
        """Have the shard carry out a command; see `JournaledShard.ask`."""
        assert self._shard is not None
        return self._shard.ask(command, loop)

    def stats(self) -> dict[str, int]:
        """Counters of what the shard holds."""
        assert self._shard is not None
        return self._shard.stats()

    def close(self) -> bool:
        """Seal the journal and unlock the memory. Blocks; callable from any thread.

        Returns:
            Whether all of it succeeded.
        """
        with self._closing:
            if self._closed:
                return True
            self._closed = True
            self._stored.announce_end()
            orderly = self._shard is not None and self._shard.close()
            self._stored.close(orderly=orderly)
            return orderly

    def after_fork(self) -> None:
        """Release the files and locks that a forked child has inherited."""
        self._stored.after_fork()
        if self._shard is not None:
            self._shard.after_fork()

    def _lose(self) -> None:
        reason = (
            f"another cluster took the memory in {self.path}, since this process gave no sign of "
            "life for too long (it was suspended, or its file system did not answer)"
        )
        self._lost = MemoryFailedError(
            f"{reason}. Close this cluster; what it acknowledged before that is kept"
        )
        if self._shard is not None:
            self._shard.lose(self._lost)
        self.on_lost(reason)
