"""The watchdog: a thread of the opener's process that keeps the cluster's host alive.

The thread watches the owner's connection and the host's process. When the host is dead or silent it
makes sure that nothing of it is left, and starts another one in the same folder, with the same
secret and addresses, so clients find their way back by themselves. It needs no event loop, so the
opener's may block or be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final, Literal

import msgspec

from flowgentic_actors.actors.process_group import HostProcess
from flowgentic_actors.actors.process_logs import last_line, log_tail
from flowgentic_actors.actors.process_record import ProcessRecord, end_all
from flowgentic_actors.actors.refusing_server import RefusingServer, refuse
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.cluster.opener.host_connection import HostConnection, readable
from flowgentic_actors.cluster.persistence.cluster_folders import HOST_LOG, HOST_SOCKET, PID_FILE
from flowgentic_actors.cluster.protocol.host import (
    Describe,
    Description,
    End,
    EventsReply,
    GetEvents,
    HostCommand,
    Shutdown,
    ShutdownReply,
)
from flowgentic_actors.cluster.protocol.host_spec import HostSpec, actor_addresses
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.deadlines import Patience
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError, RequestExpiredError
from flowgentic_actors.platform import Platform
from flowgentic_actors.python import python_command
from flowgentic_actors.secret import Secret, revealed
from flowgentic_actors.storage.private_files import overwrite, read_private

HOST_MODULE: Final = "flowgentic_actors.cluster.host.host"
SPEC_FILE: Final = "host.spec"

_ACTOR_GRACE = 1.0  # from the host's death to actors that have ended by themselves; they take ms
_NODES_GRACE = 4.0  # the same, where other nodes have to be let go as well
_LAUNCHES = 2  # of a program that gives up, for one host
_EXIT_TIMEOUT = 10.0  # from SIGKILL to a confirmed exit
_AFTER_DRAIN = 10.0  # from drained actors to a host, or a Dragon launcher, that is gone
_NOT_OPENED = 3.0  # for a host that failed to open the cluster to end; it has next to nothing to do
_GOOD_LIFE, _MOST_SHORT_LIVES = 60.0, 3  # before a host is made without DDicts
_DIED = "has died"
_RUNTIME_DIED = "lost the runtime that it ran in"
_LONGEST_PAUSE = 5.0  # between two looks at processes that do not go

logger = logging.getLogger("flowgentic_actors")


class HostWatchdog:
    """Starts one cluster's host, restarts it and ends it.

    Args:
        spec: What the host is told.
        platform: How it is started.
    """

    def __init__(self, spec: HostSpec, platform: Platform) -> None:
        self._spec = spec
        self._platform = platform
        self._folder = Path(spec.folder)
        self._socket = socket_folder(self._folder) / HOST_SOCKET
        self._silence = spec.supervision.hang_timeout
        self._open_timeout = spec.supervision.open_timeout
        self._process: HostProcess | None = None
        self._connection: HostConnection | None = None
        supervision = spec.supervision
        self._policy = RestartPolicy(supervision.restart_intensity, supervision.restart_period)
        self._served_from = 0.0
        self._short_lives = 0  # hosts in a row
        self._closing = False
        self._closed_at = 0.0
        self._shut_down = False  # whether the host is to be asked to end, or just left
        self._trouble = ""  # what did not end in order
        self._given_up = False
        self._orders: deque[HostCommand] = deque()
        self._next_event = 0  # that is not in this program's log yet
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None

        self.drained = False
        """After `close`: whether every actor had finished and sealed its journal. A runtime that
        had to be killed afterwards takes nothing from that."""

    def open(self, patience: Patience) -> Description:
        """Start the host, wait until its actors serve, and watch it from then on.

        Raises:
            ClusterOpenError: If that failed, with the reason; `close` cleans up.
        """
        try:
            link = self._start(patience)
            answer = link.ask(Describe(), max(1.0, patience.left))
            description = msgspec.msgpack.decode(answer, type=Description)
        except (FlowgenticError, OSError) as error:
            raise self._not_opened(error) from error
        if description.shared is not None:  # later hosts get what the memory has on record
            self._spec = msgspec.structs.replace(self._spec, shared=description.shared)
        self._thread = threading.Thread(target=self._keep, name="flowgentic:keeper", daemon=True)
        self._thread.start()
        return description

    def end(self, reason: str) -> None:
        """Have the host drain and end the actors; callable from any thread."""
        if not self._given_up:
            self._orders.append(End(reason[:1024]))
            self._wake()

    def close(self, timeout: float) -> str:
        """End the host, in order if possible, and make sure that nothing of it is left.

        A host that died, with the memory that ends with the cluster, needs no successor for that;
        where the memory persists, one more host seals it.

        Args:
            timeout: Seconds for the orderly end.

        Returns:
            What did not end in order, empty if everything did.
        """
        self._shut_down = True
        self._stop()
        patience = _AFTER_DRAIN
        if self._thread is None:  # it never served
            patience = _NOT_OPENED if self._connection is not None else 0.0
            self._close_link()  # a host that runs ends when its owner's connection closes
        else:
            self._thread.join(timeout + _AFTER_DRAIN)
            if self._thread.is_alive():
                self._trouble = "the thread that looks after its host is stuck"
        trouble = self._trouble
        if self._process is not None and not self._process.wait(0.5 if trouble else patience):
            trouble = trouble or "its host did not end and was killed"
        left = self._end_processes()
        if left:
            trouble = f"processes {left} were killed and do not go"
        self.drained = not (self._trouble or left)
        self._close_descriptors()
        return trouble

    def abandon(self) -> None:
        """Close the connection that tells the host that its owner lives, without waiting."""
        self._stop()

    def after_fork(self) -> None:
        """Close a forked child's copies of the connection."""
        self._thread = None
        self._close_link()
        self._close_descriptors()

    def log_tail(self) -> str:
        """The end of the host's log, until `close`."""
        return log_tail(self._folder / HOST_LOG)

    # ------------------------------------------------------------------ the thread

    def _keep(self) -> None:
        try:
            while reason := self._watch():
                if not self._wants_host():
                    self._note_trouble(reason)
                    break
                logger.warning("cluster %s: its host %s; starting another", self._spec.name, reason)
                if not self._restart(reason):
                    break
        except Exception:
            logger.exception("cluster %s: watching its host failed; the host ends", self._spec.name)
        finally:
            if self._connection is not None:
                self._connection.close()  # a host that lives sees the end of its owner
            if self._closing and not self._shut_down:
                self._close_descriptors()

    def _watch(self) -> str:
        """Watch the host until it is dead or silent; returns how it ended.

        Empty when the cluster was closed.
        """
        assert self._connection is not None
        assert self._process is not None
        beats = 0
        try:
            while not self._closing:
                while self._orders:
                    self._connection.ask(self._orders[0], self._silence, self._is_hopeless)
                    self._orders.popleft()
                news = GetEvents(self._next_event, 0.0)
                self._log_events(self._connection.ask(news, self._silence, self._is_hopeless))
                if not self._process.running():
                    return _RUNTIME_DIED
                if beats % 20 == 0:
                    self._process.look()
                beats += 1
                self._connection.wait(self._spec.supervision.heartbeat_interval, self._wake_read)
                self._drain_wake()
            if self._shut_down:
                left = max(1.0, self._close_by() - time.monotonic())
                answer = self._connection.ask(Shutdown(left), left + 2.0)
                killed = msgspec.msgpack.decode(answer, type=ShutdownReply).killed
                self._trouble = "; ".join(f"{name}: {what}" for name, what in killed.items())
                self._process.let_go()
        except TimeoutError as error:
            return f"is silent: {error}"
        except OSError:
            return _DIED
        except FlowgenticError as error:
            return f"talks nonsense: {error}"
        return ""

    def _log_events(self, answer: msgspec.Raw) -> None:
        for event in msgspec.msgpack.decode(answer, type=EventsReply).events:
            event.log(self._spec.name, logger)
            self._next_event = event.number + 1

    def _restart(self, reason: str) -> bool:
        """Start another host; False when restarts are given up or no host is needed."""
        while self._wants_host():
            now = time.monotonic()
            delay = self._policy.next_delay(now, now - self._served_from)
            if delay is None:
                self._give_up(reason)
                return False
            try:
                while left := self._end_processes():
                    # Stuck in the kernel, perhaps. Others beside them would be two.
                    logger.error("cluster %s: processes %s do not end", self._spec.name, left)
                    self._pause(_LONGEST_PAUSE)
                    if not self._wants_host():
                        return self._note_trouble(reason)
                self._pause(delay)
                if not self._wants_host():
                    break
                self._spec = msgspec.structs.replace(
                    self._without_tier(now), restarts=self._spec.restarts + 1, reason=reason
                )
                self._start(Patience(self._open_timeout))
            except (FlowgenticError, OSError) as error:
                if not self._wants_host():
                    self._end_processes()  # what was being started has nothing yet to end in order
                    break
                reason = f"did not come up again: {error}"
                logger.warning("cluster %s: its host %s", self._spec.name, reason)
                self._served_from = time.monotonic()
                continue
            return True
        return self._note_trouble(_DIED)

    def _note_trouble(self, reason: str) -> Literal[False]:
        """Add events about a host that ended during the close and is not replaced."""
        if self._shut_down and (self._spec.persist or reason not in (_DIED, _RUNTIME_DIED)):
            self._trouble = f"its host {reason}; the memory's journals were not sealed"
        return False

    def _without_tier(self, now: float) -> HostSpec:
        """The next host's spec, without DDicts after several hosts in a row with short lives.

        What breaks in one may end the whole runtime, each time that there is one again; the
        journals have all that it had.
        """
        self._short_lives = self._short_lives + 1 if now - self._served_from < _GOOD_LIFE else 0
        actor = self._spec.actor
        if self._short_lives < _MOST_SHORT_LIVES or actor.tier is None:
            return msgspec.structs.replace(self._spec, tier_given_up="")
        return msgspec.structs.replace(
            self._spec,
            actor=msgspec.structs.replace(actor, tier=None),
            tier_given_up=f"{self._short_lives} hosts in a row did not live long",
        )

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._trouble = "it had failed before"
        self._end_processes()
        text = (
            f"the cluster {self._spec.name} has failed: its host was restarted "
            f"{self._spec.restarts} times and still {reason}. Its journals are in "
            f"{self._folder}; close it and open another (settings: restart_intensity, "
            "restart_period)"
        )
        logger.error("%s", text)
        self._drain_wake()
        asyncio.run(self._refuse(RefusingServer("failed", text)))

    async def _refuse(self, refusal: RefusingServer) -> None:
        """Refuse all requests on the cluster's addresses, with the reason, until it is closed."""
        spec = self._spec
        addresses = {"the host": str(self._socket), **actor_addresses(spec)}
        servers = [
            await refuse(address, name, spec.secret, spec.max_message_bytes, refusal)
            for name, address in addresses.items()
        ]
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._wake_read, stop.set)
        if not self._closing:
            await stop.wait()  # nothing else wakes this thread from now on
        asyncio.get_running_loop().remove_reader(self._wake_read)
        for server in servers:
            await server.close()

    # ------------------------------------------------------------------ starting and ending

    def _close_by(self) -> float:
        return self._closed_at + self._spec.close_timeout

    def _wants_host(self) -> bool:
        """Whether a host is needed: even while closing, one more to seal a persistent memory."""
        if not self._closing:
            return True
        return self._shut_down and self._spec.persist and time.monotonic() < self._close_by()

    def _is_hopeless(self) -> bool:
        """Whether to stop waiting for a host that is slow to answer while it is closed."""
        waited = time.monotonic() - self._closed_at
        return self._closing and (not self._shut_down or waited > self._spec.close_timeout / 2)

    def _start(self, patience: Patience) -> HostConnection:
        socket_path = self._socket
        socket_path.unlink(missing_ok=True)
        overwrite(self._folder / PID_FILE, b"")
        spec_file = self._folder / SPEC_FILE
        overwrite(spec_file, Secret(msgspec.json.encode(self._spec, enc_hook=revealed)))
        attempts = 0
        while not self._comes_up(socket_path, spec_file, patience):
            attempts += 1
            late = patience.left <= 0 or not self._wants_host()
            # What has run ended for a reason of its own.
            again = self._platform.gives_up and not read_private(self._folder / PID_FILE).strip()
            if late or not again or attempts == _LAUNCHES:
                raise ClusterOpenError(self._why_not_started(late=late))
            program = self._platform.host_program
            logger.warning("%s ended before the host ran: it is started once more", program)
            assert self._process is not None
            self._process.kill()
        self._connection = self._connect(patience)
        if self._process is not None:
            self._process.look()  # whatever becomes of it from now on, what it leaves is known
        self._served_from = time.monotonic()
        return self._connection

    def _why_not_started(self, *, late: bool) -> str:
        assert self._process is not None
        what, words = self._platform.host_program, _last_words(self.log_tail())
        if late and self._process.running():
            waited = f"{self._open_timeout:g} s (setting: open_timeout)"
            return f"{what} did not come up within {waited}{words}"
        return f"{what} did not start: its process {self._process.ending()}{words}"

    def _not_opened(self, error: FlowgenticError | OSError) -> FlowgenticError:
        """The error of a failed opening, with the reason first."""
        match error:
            case ClusterOpenError():
                return error
            case RequestExpiredError() | TimeoutError():
                return ClusterOpenError(
                    f"the cluster is not open after {self._open_timeout:g} s (setting: "
                    f"open_timeout): {error}"
                )
            case OSError() if self._process is not None and not self._process.running():
                return ClusterOpenError(self._why_not_started(late=False))
            case OSError():
                return ClusterOpenError(
                    f"the cluster cannot be opened in {self._folder}: {error} (setting: scratch)"
                )
        return ClusterOpenError(f"the cluster cannot be opened: {error}")

    def _comes_up(self, socket_path: Path, spec_file: Path, patience: Patience) -> bool:
        """Start the host and wait for its socket; False when it ended, or is not up in time."""
        process = self._platform.launch_host(
            python_command(HOST_MODULE, str(spec_file)),
            self._folder,
            self._folder / HOST_LOG,
            self._folder / PID_FILE,
            nodes=self._spec.nodes,
            timeout=patience.left,
        )
        self._process = process
        if not self._wants_host():  # and the closing thread may not wait for this one any more
            process.kill()
        while not socket_path.exists():
            if patience.left <= 0 or not self._wants_host() or not process.running():
                return False
            patience.sleep(0.01)
        return True

    def _connect(self, patience: Patience) -> HostConnection:
        while True:
            try:
                return HostConnection(
                    str(self._socket),
                    self._spec.secret,
                    self._spec.max_message_bytes,
                )
            except OSError:  # its socket is there a moment before it listens
                gone = self._process is not None and not self._process.running()
                if gone or patience.left <= 0 or not self._wants_host():
                    raise
                patience.sleep(0.01)

    def _close_link(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _end_processes(self) -> list[int]:
        """End host and actors; returns the pids of those that do not end."""
        self._close_link()
        process, self._process = self._process, None
        if process is not None and self._spec.nodes == 1:
            process.kill()
            process = None
        entries = ProcessRecord(self._folder).entries()
        grace = _ACTOR_GRACE if self._spec.nodes == 1 else _NODES_GRACE
        left = [entry.pid for entry in end_all(entries, grace, _EXIT_TIMEOUT)]
        if process is not None:
            process.kill()
        return left

    def _stop(self) -> None:
        self._closed_at = time.monotonic()
        self._closing = True
        self._wake()

    def _pause(self, seconds: float) -> None:
        """Wait, at most until the cluster is closed."""
        deadline = time.monotonic() + seconds
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            readable(left, self._wake_read)
            self._drain_wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            os.write(self._wake_write, b"\0")

    def _drain_wake(self) -> None:
        if readable(0.0, self._wake_read):
            os.read(self._wake_read, 4096)

    def _close_descriptors(self) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            return  # stuck in a call that was abandoned: it may still look at them
        for descriptor in (self._wake_read, self._wake_write):
            if descriptor >= 0:
                os.close(descriptor)
        self._wake_read = self._wake_write = -1


def _last_words(log: str) -> str:
    line = last_line(log)
    return f". The last line of its log: {line}" if line else ". It wrote nothing to its log"


def one_line(reason: str) -> str:
    """The first and the last line of an error's text, as one line."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else ""
