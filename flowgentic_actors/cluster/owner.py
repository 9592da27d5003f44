"""The opener's side: brings a cluster up, owns it through one connection, takes it down.

Everything here blocks and none of it needs an event loop, so a cluster can be opened and closed
from any thread and its owner's loop may do what it likes in between.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec

from flowgentic_actors.actors.spec import write_private
from flowgentic_actors.cluster.folders import (
    DESCRIPTOR,
    HOST_SOCKET,
    claim_folder,
    root_folder,
)
from flowgentic_actors.cluster.handle import ClusterHandle, Descriptor
from flowgentic_actors.cluster.host import HostSpec
from flowgentic_actors.cluster.launch import HostProcess, launch_host
from flowgentic_actors.cluster.protocol import Describe, Description, Shutdown, ShutdownReply
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.errors import (
    ClusterOpenError,
    DragonUnavailableError,
    FlowgenticError,
    RequestError,
)
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.wire.blocking import BlockingConnection
from flowgentic_actors.wire.handshake import new_secret
from flowgentic_actors.wire.sockets import check_path, let_go_after_fork

_ATTEMPT = 1.0  # one try to reach a host that is coming up
_AFTER_DRAIN = 10.0  # from drained actors to a host, or a Dragon launcher, that is gone
_LOG_TAIL = 3000


class Owner:
    """Owns one distributed cluster from `open` to `close`."""

    def __init__(self, config: MemoryConfig, spawner: str) -> None:
        self._config = config
        self._spawner = spawner
        self._folder = Path()
        self._lock: FileLock | None = None
        self._process: HostProcess | None = None
        self._connection: BlockingConnection | None = None
        self.descriptor: Descriptor | None = None

    @property
    def handle(self) -> ClusterHandle:
        """The cluster's handle."""
        return ClusterHandle(self._folder.name, str(self._folder / DESCRIPTOR))

    def open(self) -> Description:
        """Start the host and wait until its actors serve.

        Raises:
            ClusterOpenError: If that failed; nothing is left running then.
        """
        config = self._config
        deadline = time.monotonic() + config.open_timeout
        self._folder, self._lock = claim_folder(root_folder(config.scratch), config.name)
        let_go_after_fork(self)
        try:
            return self._bring_up(deadline)
        except DragonUnavailableError:
            self._clean_up()
            raise
        except (FlowgenticError, OSError) as error:
            tail = self._log_tail()
            self._clean_up()
            if isinstance(error, ClusterOpenError):
                raise
            raise ClusterOpenError(
                f"the cluster did not come up within {config.open_timeout:g} s (setting: "
                f"open_timeout): {error}{tail}"
            ) from error
        except BaseException:
            self._clean_up()
            raise

    def close(self) -> bool:
        """End the cluster: drain, flush, stop, and kill what is left after `close_timeout`.

        Returns:
            Whether everything ended in order.
        """
        if self._lock is None:
            return True  # closed already, or a forked child's copy: nothing here is owned
        timeout = self._config.close_timeout
        orderly = False
        if self._connection is not None and self._process is not None and self._process.running():
            try:
                body = msgspec.msgpack.encode(Shutdown(timeout))
                answer = self._connection.request(body, timeout + 2.0)
                orderly = msgspec.msgpack.decode(answer, type=ShutdownReply).orderly
            except RequestError:
                orderly = False  # the host is gone or stuck: it is killed below
        ended = self._process is not None and self._process.wait(_AFTER_DRAIN if orderly else 0.5)
        self._clean_up()
        return orderly and ended

    def after_fork(self) -> None:
        """A forked child owns nothing: close its copies of the connection and the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _bring_up(self, deadline: float) -> Description:
        config, secret = self._config, new_secret()
        socket_path = str(self._folder / HOST_SOCKET)
        check_path(str(self._folder / f"shard-{config.actors_per_node}.sock"))
        spec = HostSpec(
            name=self._folder.name,
            folder=str(self._folder),
            secret=secret,
            spawner=self._spawner,
            actors=config.actors_per_node,
            namespace_depth=config.namespace_depth,
            ack=config.ack,
            close_timeout=config.close_timeout,
            start_timeout=config.open_timeout,
            heartbeat_interval=config.heartbeat_interval,
            hang_timeout=config.hang_timeout,
            busy_timeout=config.busy_timeout,
            restart_intensity=config.restart_intensity,
            restart_period=config.restart_period,
            mailbox_requests=config.mailbox_requests,
            mailbox_bytes=config.mailbox_bytes,
            max_message_bytes=config.max_message_bytes,
        )
        spec_file = self._folder / "host.spec"
        write_private(spec_file, msgspec.json.encode(spec))
        left = deadline - time.monotonic()
        self._process = launch_host(self._spawner, self._folder, spec_file, left)
        self._connection = BlockingConnection(
            socket_path, secret, "the host", config.max_message_bytes, role="owner"
        )
        while not Path(socket_path).exists():
            if not self._process.running() or time.monotonic() > deadline:
                raise ClusterOpenError(f"the host did not start{self._log_tail()}")
            time.sleep(0.01)
        body = msgspec.msgpack.encode(Describe())
        answer = self._connection.request(body, max(_ATTEMPT, deadline - time.monotonic()))
        self.descriptor = Descriptor(
            name=self._folder.name,
            host=socket_path,
            secret=secret,
            max_message_bytes=config.max_message_bytes,
        )
        self.descriptor.write(self._folder / DESCRIPTOR)
        return msgspec.msgpack.decode(answer, type=Description)

    def _log_tail(self) -> str:
        try:
            text = (self._folder / "host.log").read_text(errors="replace").strip()
        except OSError:
            return ""
        return f"\nThe host's log ends with:\n{text[-_LOG_TAIL:]}" if text else ""

    def _clean_up(self) -> None:
        if self._connection is not None:
            self._connection.close()  # a host that still lives ends when it sees this
            self._connection = None
        if self._process is not None and not self._process.wait(1.0):
            self._process.kill()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __del__(self) -> None:
        if self._lock is not None and self._connection is not None:
            # Dropped without close(): let the host see the end of its owner now.
            self.after_fork()
