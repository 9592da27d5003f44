"""A process that floods TCP ports without knowing the cluster's secret; `testing.flood` starts it.

On its standard input come lines with a JSON list of ports; the last line counts, and with the end
of the input it ends. It runs at the lowest priority: an attacker has another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import ssl
import sys
from collections.abc import Sequence
from typing import Final

from flowgentic_actors.wire.file_limits import allow_files
from flowgentic_actors.wire.handshake import GREETING, KNOCK_BYTES

HOST: Final = "127.0.0.1"
SAYINGS: Final = ("nothing", "garbage", "TLS", "knock", "greeting")
"""What flooders send; the last ones are what a client of ours would send without the secret."""

_FILES: Final = 4096
_OPENED_AT_ONCE: Final = 100
_WAIT: Final = 0.01


def _said(what: str) -> bytes:
    match what:
        case "garbage":
            return b"\x16\x03\x01\x02\x00" + os.urandom(512)
        case "TLS":
            return _hello_of_tls()
        case "knock":
            return os.urandom(KNOCK_BYTES) + _hello_of_tls()
        case "greeting":
            return GREETING
    return b""


def _hello_of_tls() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


class Flooder:
    """Keeps many connections open, and opens another for each that is closed.

    Args:
        connections: How many.
        source: The address that it has.
    """

    def __init__(self, connections: int, source: str) -> None:
        self._most = connections
        self._source = source
        self._ports: Sequence[int] = ()
        self._open: dict[int, socket.socket] = {}
        self._said = [_said(what) for what in SAYINGS]
        self._poll = select.poll()
        self.opened = 0

    def run(self) -> None:
        """Flood until the standard input ends."""
        self._poll.register(sys.stdin.fileno(), select.POLLIN)
        os.set_blocking(sys.stdin.fileno(), False)
        while self._take_ports():
            for _ in range(_OPENED_AT_ONCE if self._ports else 0):
                if len(self._open) >= self._most:
                    break
                self._dial()
            for descriptor, _ in self._poll.poll(_WAIT * 1000):
                if descriptor in self._open:
                    self._hear(descriptor)
        for sock in self._open.values():
            sock.close()

    def _take_ports(self) -> bool:
        try:
            told = os.read(sys.stdin.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        lines = told.splitlines()
        if lines:
            self._ports = json.loads(lines[-1])
        return bool(told)

    def _dial(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # all numbers of the source's ports are taken, say
            sock.bind((self._source, 0))
            self.opened += 1
            with contextlib.suppress(BlockingIOError):
                sock.connect((HOST, random.choice(self._ports)))  # noqa: S311 - no secret
            self._poll.register(sock, select.POLLOUT)
            self._open[sock.fileno()] = sock
            return
        sock.close()

    def _hear(self, descriptor: int) -> None:
        """Send bytes on a new connection, and close it after the server has."""
        sock = self._open[descriptor]
        try:
            sock.getpeername()
            try:
                if not sock.recv(1 << 10):
                    raise ConnectionResetError
            except BlockingIOError:
                sock.send(random.choice(self._said))  # noqa: S311 - no secret
            self._poll.modify(sock, select.POLLIN)
        except OSError:
            self._poll.unregister(sock)
            del self._open[descriptor]
            sock.close()


def main() -> int:
    """Flood: arguments are the number of connections, and the address to come from."""
    os.nice(19)
    allow_files(_FILES)
    flooder = Flooder(int(sys.argv[1]), sys.argv[2])
    flooder.run()
    sys.stdout.write(f"{flooder.opened}\n")
    return 0
