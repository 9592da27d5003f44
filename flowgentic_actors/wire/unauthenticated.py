"""Unauthenticated TCP peers, before their knock: bounded in number, time and cost.

A client that knows the secret sends a knock as its first bytes (`handshake.knock`), so they have
arrived when the connection is accepted. Each other peer costs a descriptor and some hundred bytes
until it is turned away: TLS, which costs memory and time, does not begin. A new peer replaces the
one that has waited longest, so a flood does not keep out a client that knocks a moment late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.handshake import DENIED, KNOCK_BYTES, is_knock

AT_ONCE: Final = 128
"""Unauthenticated peers that a server has at one time."""

OF_ONE_HOST: Final = 32
"""Of these, from one address."""

PATIENCE = 2.0
"""Seconds for an unauthenticated peer to knock."""

TOLD_EVERY: Final = 10.0
"""Seconds between two lines in the log."""

_RESET: Final = struct.pack("ii", 1, 0)


class Tally:
    """Logs a frequent occurrence: the first at once, then the count every few seconds.

    Args:
        logger: Gets the lines, as warnings.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._count = 0
        self._last = ""
        self._timer: asyncio.TimerHandle | None = None

    def note(self, text: str) -> None:
        """Count one occurrence."""
        if self._timer is None:
            self._logger.warning("%s", text)
            self._wait()
        else:
            self._count += 1
            self._last = text

    def close(self) -> None:
        """Log the remaining count."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell()
        self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TOLD_EVERY, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if self._count:
            told = "%d more within %g s; the last: %s"
            self._logger.warning(told, self._count, TOLD_EVERY, self._last)
            self._count = 0
            self._wait()


@dataclass(eq=False, slots=True)
class _Stranger:
    """One unauthenticated peer."""

    sock: socket.socket
    host: str
    port: int
    welcome: Callable[[socket.socket, str], None]
    heard: bytes = b""
    denied: bool = False
    welcomed: bool = False
    deadline: asyncio.TimerHandle | None = None

    @property
    def origin(self) -> str:
        return f"{self.host}:{self.port}"


class UnauthenticatedPeers:
    """The unauthenticated peers of one server.

    Args:
        secret: What they must know.
        tally: Told whom is turned away, and why.
    """

    def __init__(self, secret: Secret[bytes], tally: Tally) -> None:
        self._secret = secret
        self._tally = tally
        self._waiting: dict[_Stranger, None] = {}  # who has waited longest is first
        self._of_host: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(
        self,
        sock: socket.socket,
        host: str,
        port: int,
        welcome: Callable[[socket.socket, str], None],
    ) -> bool:
        """Watch an accepted socket for its knock.

        Args:
            sock: The socket, which does not block.
            host: Where it is from.
            port: Where it is from.
            welcome: Gets the socket, and where it is from, once that has knocked.

        Returns:
            Whether it has by now.
        """
        stranger = _Stranger(sock, host, port, welcome)
        if not self._hear(stranger):
            return stranger.welcomed
        self._make_room(host)
        self._waiting[stranger] = None
        self._of_host[host] += 1
        loop = asyncio.get_running_loop()
        if not stranger.denied:
            loop.add_reader(sock, self._hear, stranger)
        stranger.deadline = loop.call_later(PATIENCE, self._too_slow, stranger)
        return False

    def close(self) -> None:
        """Close all unauthenticated peers."""
        for stranger in list(self._waiting):
            self._turn_away(stranger, "this server ends")

    def _make_room(self, host: str) -> None:
        of_host = self._of_host[host] >= OF_ONE_HOST
        if of_host or len(self._waiting) >= AT_ONCE:
            oldest = next(s for s in self._waiting if not of_host or s.host == host)
            self._turn_away(oldest, "no knock before others came")

    def _hear(self, stranger: _Stranger) -> bool:
        """Read what has arrived; whether to keep the socket for a while."""
        try:
            data = stranger.sock.recv(KNOCK_BYTES - len(stranger.heard))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            self._turn_away(stranger, str(error))
            return False
        stranger.heard += data
        if data and len(stranger.heard) < KNOCK_BYTES:
            return True
        if is_knock(self._secret, stranger.heard):
            self._forget(stranger)
            stranger.welcomed = True
            stranger.welcome(stranger.sock, stranger.origin)
        elif data:
            self._deny(stranger)
            return True
        else:
            self._turn_away(stranger, "it left")
        return False

    def _deny(self, stranger: _Stranger) -> None:
        """Send the refusal, and keep the socket open for a moment so that it can be read."""
        stranger.denied = True
        asyncio.get_running_loop().remove_reader(stranger.sock)
        with contextlib.suppress(OSError):
            stranger.sock.send(DENIED)

    def _too_slow(self, stranger: _Stranger) -> None:
        self._turn_away(stranger, f"no knock within {PATIENCE:g} s")

    def _turn_away(self, stranger: _Stranger, why: str) -> None:
        self._forget(stranger)
        # With a reset nothing of it stays in the kernel, and what it sent is not read first.
        stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        stranger.sock.close()
        why = "a wrong knock" if stranger.denied else why
        self._tally.note(
            f"{stranger.origin} is turned away, which does not know the cluster's secret: {why}"
        )

    def _forget(self, stranger: _Stranger) -> None:
        if stranger in self._waiting:
            del self._waiting[stranger]
            self._of_host[stranger.host] -= 1
            if not self._of_host[stranger.host]:
                del self._of_host[stranger.host]
            asyncio.get_running_loop().remove_reader(stranger.sock)
        if stranger.deadline is not None:
            stranger.deadline.cancel()
