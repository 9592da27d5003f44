"""The connection to the host that shows, while it is open, that the owner or a rank lives.

One command at a time, from whichever thread has it. How long the host takes to answer is counted
in ticks (`silence`).
"""

from __future__ import annotations

import os
import select
import ssl
import time
from collections.abc import Callable

import msgspec
from msgspec import Raw

from flowgentic_actors.cluster.protocol.host import HostCommand
from flowgentic_actors.errors import ProtocolError, RejectedError, RequestExpiredError
from flowgentic_actors.secret import Secret
from flowgentic_actors.silence import SilenceCounter
from flowgentic_actors.wire.addresses import Address, connect
from flowgentic_actors.wire.channel import client_channel
from flowgentic_actors.wire.messages import Failure, Hello, Reply, Request, Role, Welcome

_TICK = 0.1
_READ = 1 << 16
_HANDSHAKE_TIMEOUT = 5.0

_encode = msgspec.msgpack.Encoder().encode


class HostConnection:
    """A connection of the owner, or of a rank, to the host. Blocks; needs no event loop.

    Args:
        address: Where the host is.
        secret: The cluster's secret.
        max_bytes: Largest message.
        role: Of the owner, whom the host lives as long as, or of a client.

    Raises:
        OSError: If the host cannot be reached.
        WireError: If it is not our host.
    """

    def __init__(
        self, address: Address, secret: Secret[bytes], max_bytes: int, role: Role = "owner"
    ) -> None:
        self._channel = client_channel(secret, max_bytes)
        self._seq = 0
        self._sock = connect(address, secret, _HANDSHAKE_TIMEOUT)
        try:
            self._sock.settimeout(_HANDSHAKE_TIMEOUT)
            self._channel.send(Hello(role, os.urandom(16), os.getpid()))
            self._write()
            deadline = time.monotonic() + _HANDSHAKE_TIMEOUT
            while not any(isinstance(message, Welcome) for message in self._read()):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no complete handshake within {_HANDSHAKE_TIMEOUT} s")
        except BaseException:
            self._sock.close()
            raise

    def ask(
        self, command: HostCommand, timeout: float, given_up: Callable[[], bool] = lambda: False
    ) -> Raw:
        """Send a command and wait for the answer.

        Args:
            command: What is asked.
            timeout: Seconds, counted in ticks.
            given_up: Asked at each tick; when it is true, waiting ends.

        Raises:
            TimeoutError: If there was no answer; the connection is of no use any more.
            OSError: If the connection broke.
            WireError: If what came is not our protocol.
            RequestExpiredError: If the host could not answer in time, and says why.
            RejectedError: If the host refused.
        """
        self._seq += 1
        body = Raw(_encode(command))
        self._channel.send(Request(self._seq, self._seq, max(1, round(timeout * 1000)), body))
        self._sock.settimeout(max(_TICK, timeout))
        self._write()
        silence = SilenceCounter()
        while True:
            if not self._pending() and not readable(_TICK, self._sock.fileno()):
                waited = silence.tick(_TICK)
                if waited >= timeout or given_up():
                    raise TimeoutError(f"the host did not answer for {waited:.1f} s")
                continue
            for message in self._read():
                match message:
                    case Reply(seq, answer) if seq == self._seq:
                        return answer
                    case Failure(seq, kind, text) if seq == self._seq:
                        raise (RequestExpiredError if kind == "expired" else RejectedError)(text)
                    case _:
                        raise ProtocolError(f"unexpected {type(message).__name__} from the host")

    def close(self) -> None:
        """Close the socket; the host ends when it sees that its owner's is closed."""
        self._sock.close()

    def wait(self, seconds: float, wake: int) -> None:
        """Wait for the end of the connection or for a file descriptor to become readable."""
        readable(seconds, self._sock.fileno(), wake)

    def _pending(self) -> bool:
        """Whether TLS holds bytes that it has read from the socket already."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def _write(self) -> None:
        if self._channel.pending:
            self._sock.sendall(b"".join(self._channel.take()))

    def _read(self) -> list[object]:
        data = self._sock.recv(_READ)
        if not data:
            raise ConnectionResetError("the host closed the connection")
        messages: list[object] = [m for batch in self._channel.receive(data) for m in batch]
        self._write()
        return messages


def readable(seconds: float, *descriptors: int) -> bool:
    """Whether one of the file descriptors becomes readable, or ends, in time. Blocks."""
    poll = select.poll()  # `select` takes no descriptor above 1,023
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
