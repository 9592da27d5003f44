"""The actor's end of the control connection to its supervisor.

It lives on a thread of its own, so it answers pings while the event loop is busy and ends the
process when the supervisor is gone, whatever the loop is doing.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from msgspec import Raw

from flowgentic_actors.actors.actor import Status
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import ActorStartError, FlowgenticError
from flowgentic_actors.silence import SilenceCounter
from flowgentic_actors.wire.channel import client_channel
from flowgentic_actors.wire.messages import (
    NIL,
    Admit,
    Deliver,
    Drain,
    Hello,
    Lease,
    Ping,
    Pong,
    Started,
    ToClient,
    ToServer,
    Welcome,
)
from flowgentic_actors.wire.sockets import check_peer

EXIT_ORPHANED: Final = 75
"""Exit code of an actor whose supervisor is gone."""

logger = logging.getLogger(__name__)

_GO_TIMEOUT = 30.0
_TICK = 0.1
_READ = 1 << 16


class SupervisorLink:
    """Connects to the supervisor; construct it, `await_admission`, then `watch`."""

    def __init__(self, spec: ActorSpec) -> None:
        self._spec = spec
        self._channel = client_channel(spec.secret, 1 << 20)
        self._lock = threading.Lock()  # the loop's thread and the link's both send
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self.status: Callable[[], Status] = lambda: Status(0.0, {}, NIL)
        self.on_drain: Callable[[str], None] = lambda _reason: None
        self.on_fence: Callable[[bool], None] = lambda _fenced: None
        self.on_news: Callable[[], None] = lambda: None
        self.lease = -math.inf
        self.told: Raw | None = None

    def await_admission(self) -> None:
        """Tell the supervisor that this process has started, and wait for its admission.

        Raises:
            ActorStartError: If the supervisor does not want this incarnation.
        """
        deadline = time.monotonic() + _GO_TIMEOUT
        try:
            self._sock.settimeout(_GO_TIMEOUT)
            self._sock.connect(self._spec.supervisor)
            check_peer(self._sock)
            self.send(Hello("link", os.urandom(16), os.getpid()))
            self.send(Started(self._spec.child.name, self._spec.epoch, socket.gethostname()))
            may_go = False
            while not may_go:
                for message in self._receive(deadline):
                    may_go = may_go or isinstance(message, Admit)
                    self._take_news(message)  # it may be in the same frame
        except (OSError, FlowgenticError) as error:
            self._sock.close()
            raise ActorStartError(
                f"the supervisor did not let this actor go on: {error}"
            ) from error

    def watch(self) -> None:
        """Answer pings from now on, and end this process when the link breaks."""
        self._sock.settimeout(None)
        threading.Thread(target=self._run, name="supervisor-link", daemon=True).start()

    def send(self, message: ToServer) -> None:
        """Send a message; callable from any thread."""
        with self._lock:
            self._channel.send(message)
            self._write()

    def _write(self) -> None:
        if self._channel.pending:
            self._sock.sendall(b"".join(self._channel.take()))

    def _receive(self, deadline: float | None = None) -> list[ToClient]:
        if deadline is not None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = self._sock.recv(_READ)
        if not data:
            raise ConnectionResetError("the supervisor closed the link")
        messages = [m for batch in self._channel.receive(data) for m in batch]
        with self._lock:
            self._write()  # the handshake's answer, if that is what came
        return messages

    def _take_news(self, message: ToClient) -> None:
        match message:
            case Lease(until):
                self.lease = until
                self.on_news()
            case Deliver(body):
                self.told = body.copy()
                self.on_news()

    def _await_supervisor(self) -> None:
        """Wait for the supervisor's next message: fenced while it is silent, and not for ever."""
        fenced, silence = False, SilenceCounter()
        while not self._poll.poll(_TICK * 1000):
            seconds = silence.tick(_TICK)
            if seconds > self._spec.settings.hang_timeout + self._spec.settings.rejoin_grace:
                logger.error("the supervisor has been silent for %.0f s", seconds)
                os._exit(EXIT_ORPHANED)
            if seconds > self._spec.settings.hang_timeout:
                if not fenced:
                    logger.warning("the supervisor is silent: nothing is answered for now")
                fenced = True
                self.on_fence(True)  # again and again: it may just have begun to serve
        if fenced:
            self.on_fence(False)

    def _run(self) -> None:
        try:
            while True:
                self._await_supervisor()
                for message in self._receive():
                    match message:
                        case Ping(number):
                            self.send(Pong(number, *self.status()))
                        case Drain(reason):
                            self.on_drain(reason)
                        case Lease() | Deliver():
                            self._take_news(message)
                        case Admit() | Welcome():
                            pass
                        case _:
                            os._exit(EXIT_ORPHANED)  # not our supervisor any more
        except (OSError, FlowgenticError):
            # Nothing to save: what was acknowledged is in the journal, and a supervisor that
            # comes later must not meet two incarnations.
            os._exit(EXIT_ORPHANED)
        except BaseException:
            # Without this thread, the end of the supervisor would not be noticed.
            logger.exception("the link to the supervisor broke")
            os._exit(EXIT_ORPHANED)
