"""The owner: opens a cluster, owns it through one connection, and closes it.

Everything here blocks and none of it needs an event loop, so a cluster can be opened and closed
from any thread and its owner's loop may do what it likes in between.
"""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

from flowgentic_actors.actors.spec import SupervisorSettings
from flowgentic_actors.cluster.job_end import refuse_stale
from flowgentic_actors.cluster.opener.host_watchdog import HostWatchdog
from flowgentic_actors.cluster.persistence.cluster_folders import (
    DESCRIPTOR,
    HOST_SOCKET,
    MEMORY,
    PERSIST_LINK,
    claim_folder,
    remove_folder,
    retire,
    root_folder,
)
from flowgentic_actors.cluster.persistence.manifest import memory_path
from flowgentic_actors.cluster.persistence.stored_memory import await_free, check_index
from flowgentic_actors.cluster.protocol.handle import ClusterHandle, Descriptor
from flowgentic_actors.cluster.protocol.host import Description
from flowgentic_actors.cluster.protocol.host_spec import HostSpec, OrphanLimits
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.shard_limits import actor_settings, taken_from
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.deadlines import Patience
from flowgentic_actors.environment import machine, scheduler_job
from flowgentic_actors.errors import ClusterOpenError, PersistError
from flowgentic_actors.platform import Platform
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.handshake import new_secret
from flowgentic_actors.wire.sockets import let_go_after_fork

_ONE_NODE = (
    "replicas=2 needs a second node, and there is this one alone: neither a Dragon runtime nor a "
    "job with more nodes. Open it with replicas=1, or in an allocation of several nodes"
)

_STUCK = 25.0  # seconds beyond a deadline of its own after which closing counts as stuck


class Owner:
    """Owns one distributed cluster from `open` to `close`.

    Args:
        config: Its configuration.
        platform: How its processes are started.
    """

    def __init__(self, config: MemoryConfig, platform: Platform) -> None:
        self._config = config
        self._platform = platform
        self._instance = secrets.token_hex(8)
        self._folder = Path()
        self._lock: FileLock | None = None
        self._watchdog: HostWatchdog | None = None
        self._one_at_a_time = threading.Lock()
        self._trouble = ""
        self.descriptor: Descriptor | None = None
        self.host_log = ""
        """After an `open` that failed: what the host's log ended with."""

    @property
    def handle(self) -> ClusterHandle:
        """The cluster's handle."""
        return ClusterHandle(self._folder.name, str(self._folder / DESCRIPTOR))

    def open(self) -> Description:
        """Start the host and wait until its actors serve.

        Raises:
            ClusterOpenError: If that failed; nothing is left running then.
            PersistError: If what is at `persist_path` cannot be opened.
        """
        config = self._config
        deadline = time.monotonic() + config.open_timeout
        refuse_stale(config.stop_file)
        root = root_folder(config.scratch)
        self._check_persist_path(root, deadline)
        limits = OrphanLimits(config.orphan_ttl, config.orphan_bytes)
        try:
            self._folder, self._lock = claim_folder(root, config.name, limits, deadline)
        except OSError as error:
            raise _unusable(root, error) from error
        let_go_after_fork(self)
        try:
            return self._bring_up(deadline)
        except OSError as error:
            self._clean_up()
            raise _unusable(root, error) from error
        except BaseException as error:
            self.host_log = self._watchdog.log_tail() if self._watchdog else ""
            self._clean_up()
            if isinstance(error, ClusterOpenError):
                self._check_persist_path(root, deadline)  # another cluster may have been faster
            raise

    def close(self) -> str:
        """Close the cluster: drain, flush, stop, and kill what is left after `close_timeout`.

        Returns:
            What did not end in order, empty if everything did.
        """
        # A signal may end the cluster while its program leaves it.
        if not self._one_at_a_time.acquire(timeout=self._config.close_timeout + _STUCK):
            return "another thread that closes it is stuck"
        try:
            if self._lock is None:
                return self._trouble  # closed already, or a forked child's copy
            self._trouble = self._clean_up(clean=True)
            return self._trouble
        finally:
            self._one_at_a_time.release()

    def end(self, reason: str) -> None:
        """Have the host drain and end the actors; the cluster stays open, and refuses requests."""
        watchdog = self._watchdog
        if watchdog is not None:
            watchdog.end(reason)

    def after_fork(self) -> None:
        """Close a forked child's copies of the connection and the lock."""
        self._one_at_a_time = threading.Lock()  # another thread may have held the old one
        if self._watchdog is not None:
            self._watchdog.after_fork()
            self._watchdog = None
        if self._lock is not None:
            self._lock.forget()
            self._lock = None

    def _check_persist_path(self, root: Path, deadline: float) -> None:
        path = self._config.persist_path
        if path is None:
            return
        folder = memory_path(path)
        if folder.is_relative_to(root):
            raise PersistError(
                f"persist_path={path} is in {root}, where clusters keep what ends with them"
            )
        await_free(folder, deadline)
        check_index(folder, SharedSettings.of(self._config).index, self._config.reindex)

    def _bring_up(self, deadline: float) -> Description:
        config, secret = self._config, new_secret()
        nodes = self._platform.nodes(config.n_nodes)
        if config.replicas > 1 and nodes == 1:
            raise ClusterOpenError(_ONE_NODE)
        memory = self._folder / MEMORY
        if config.persist_path is not None:
            memory = memory_path(config.persist_path)
            (self._folder / PERSIST_LINK).symlink_to(memory)
        job = scheduler_job()
        spec = taken_from(
            config,
            HostSpec,
            name=self._folder.name,
            folder=str(self._folder),
            memory=str(memory),
            persist=config.persist_path is not None,
            instance=self._instance,
            job=f"{job.scheduler} {job.job_id}" if job else "",
            secret=secret,
            spawner=self._platform.name,
            actors=config.actors_per_node,
            actor=actor_settings(config, self._platform.tier(config)),
            supervision=taken_from(config, SupervisorSettings),
            shared=SharedSettings.of(config),
            opened=time.time(),
            stop_file=str(config.stop_file.absolute()) if config.stop_file else None,
            nodes=nodes,
            asked_nodes=config.n_nodes or 0,
            scratch=str(config.scratch or ""),
            identity=new_identity() if nodes != 1 else None,
            orphans=OrphanLimits(config.orphan_ttl, config.orphan_bytes),
            owns_runtime=self._platform.owns_runtime(),
        )
        self._watchdog = HostWatchdog(spec, self._platform)
        description = self._watchdog.open(Patience(deadline - time.monotonic()))
        self.descriptor = Descriptor(
            name=self._folder.name,
            host=str(socket_folder(self._folder) / HOST_SOCKET),
            secret=secret,
            max_message_bytes=config.max_message_bytes,
            machine=machine(),
            remote=description.host,
        )
        self.descriptor.write(self._folder / DESCRIPTOR)
        return description

    def _clean_up(self, *, clean: bool = False) -> str:
        """End all processes, in order where possible; returns those that could not be ended.

        Args:
            clean: Whether the memory, too, is to end with the cluster if that ends in order.
        """
        assert self._lock is not None  # what is removed below is this cluster's
        watchdog, self._watchdog = self._watchdog, None
        trouble = "" if watchdog is None else watchdog.close(self._config.close_timeout)
        self._platform.end_tiers(self._folder)
        drained = watchdog is None or watchdog.drained
        if clean and drained and self._config.persist_path is None:
            remove_folder(self._folder)
        else:
            retire(self._folder)
        self._lock.release()
        self._lock = None
        return trouble

    def __del__(self) -> None:
        if self._watchdog is not None:
            # Dropped without close(): let the host see the end of its owner now.
            self._watchdog.abandon()
        if self._lock is not None:
            self._lock.release()


def _unusable(root: Path, error: OSError) -> ClusterOpenError:
    return ClusterOpenError(
        f"cannot use {root}, where clusters keep sockets and journals: {error} (setting: scratch)"
    )
