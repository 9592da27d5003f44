"""Mutual challenge-response: both sides prove that they know the secret. No I/O.

    client -> server   greeting, client nonce
    server -> client   server nonce, HMAC(secret, "server", both nonces)
    client -> server   HMAC(secret, "client", both nonces)

Nothing is decoded before a side has verified the other; the messages have fixed lengths, so an
unauthenticated peer can make a server hold 69 bytes and no more.

Over TCP a client knocks before all that, and before TLS: with a number that it chose and
HMAC(secret, "knock", number). It proves less, for who can read the network's traffic may repeat it,
but it costs a server microseconds to see that a peer does not have it.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Literal

from flowgentic_actors.errors import AuthenticationError, ProtocolError
from flowgentic_actors.secret import Secret

GREETING = b"flowgentic/1\n"
NONCE = 32
SECRET_BYTES = 32
PROOF = 32

_CLIENT_FIRST = len(GREETING) + NONCE
_SERVER_FIRST = NONCE + PROOF

UNAUTHENTICATED_LIMIT = 256
"""Bytes that a peer may send before it has proved itself."""

KNOCK_BYTES = NONCE + PROOF
"""Size of a knock."""

DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
"""What a client hears whose knock is of another secret: TLS's fatal alert `access_denied`."""


def new_secret() -> Secret[bytes]:
    """A fresh cluster secret."""
    return Secret(secrets.token_bytes(SECRET_BYTES))


def knock(secret: Secret[bytes]) -> bytes:
    """The first bytes of a client over TCP."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + _prove(secret, b"knock", nonce)


def is_knock(secret: Secret[bytes], data: bytes) -> bool:
    """Whether these bytes are of a client that knows the secret."""
    return hmac.compare_digest(data[NONCE:], _prove(secret, b"knock", data[:NONCE]))


def _prove(
    secret: Secret[bytes], side: Literal[b"client", b"server", b"knock"], nonces: bytes
) -> bytes:
    return hmac.digest(secret.reveal(), side + nonces, "sha256")


class ClientHandshake:
    """The dialling side. Send `greeting`, then feed what arrives until `done`."""

    def __init__(self, secret: Secret[bytes]) -> None:
        self._secret = secret
        self._nonce = secrets.token_bytes(NONCE)
        self._buffer = b""
        self.done = False

    @property
    def greeting(self) -> bytes:
        """The first bytes to send."""
        return GREETING + self._nonce

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Feed bytes from the peer.

        Returns:
            The bytes to send, and the bytes that follow the handshake.

        Raises:
            AuthenticationError: If the server does not know the secret.
        """
        self._buffer += data
        if len(self._buffer) < _SERVER_FIRST:
            return b"", b""
        nonces = self._nonce + self._buffer[:NONCE]
        proof, rest = self._buffer[NONCE:_SERVER_FIRST], self._buffer[_SERVER_FIRST:]
        if not hmac.compare_digest(proof, _prove(self._secret, b"server", nonces)):
            raise AuthenticationError(
                "the server at this address does not know the cluster's secret: the handle is of "
                "another cluster, or the address was taken over"
            )
        self.done = True
        return _prove(self._secret, b"client", nonces), rest


class ServerHandshake:
    """The accepting side. Feed what arrives until `done`."""

    def __init__(self, secret: Secret[bytes]) -> None:
        self._secret = secret
        self._nonces = b""
        self._buffer = b""
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Feed bytes from the peer.

        Returns:
            The bytes to send, and the bytes that follow the handshake.

        Raises:
            ProtocolError: If this is not our greeting.
            AuthenticationError: If the client does not know the secret.
        """
        self._buffer += data
        if not self._nonces:
            return self._answer_greeting(), b""
        if len(self._buffer) < PROOF:
            return b"", b""
        proof, rest = self._buffer[:PROOF], self._buffer[PROOF:]
        self._buffer = b""
        if not hmac.compare_digest(proof, _prove(self._secret, b"client", self._nonces)):
            raise AuthenticationError("the client does not know the cluster's secret")
        self.done = True
        return b"", rest

    def _answer_greeting(self) -> bytes:
        known = min(len(self._buffer), len(GREETING))
        if self._buffer[:known] != GREETING[:known]:
            raise ProtocolError("the peer does not greet as this protocol does")
        if len(self._buffer) > _CLIENT_FIRST:
            raise ProtocolError("the peer sent more than a greeting before it was challenged")
        if len(self._buffer) < _CLIENT_FIRST:
            return b""
        nonce = secrets.token_bytes(NONCE)
        self._nonces = self._buffer[len(GREETING) :] + nonce
        self._buffer = b""
        return nonce + _prove(self._secret, b"server", self._nonces)
