"""Addresses of servers, and dialling: Unix sockets, or TCP with TLS between nodes.

Over TCP the certificate is part of the address: nothing is sent to a peer that does not prove that
it has the key. Names prove nothing, because addresses are found at run time, so every certificate
names `SERVER_NAME`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from flowgentic_actors.errors import AuthenticationError
from flowgentic_actors.foreign import is_foreign
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.handshake import knock
from flowgentic_actors.wire.sockets import check_peer, widen

SERVER_NAME: Final = "flowgentic-actors"
"""The name in every certificate, in the place of a host's."""

CLOSING: Final = 1.0
"""Seconds that a peer has to agree to the end of a TLS connection."""

_DENIAL = "TLSV1_ALERT_ACCESS_DENIED"
_UNREAD = 30_000
_KEEPALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
_RETRANSMITS, _PROBES = 2, 3  # offsets in Linux's tcp_info
_UNANSWERED = 4  # sent again after 0.2, 0.4, 0.8 and 1.6 s; a slower network gets more time


class TcpAddress(Struct, frozen=True, array_like=True):
    """A server on another node, or on this one.

    Attributes:
        host: Name or number of its node.
        port: Where it listens.
        certificate: The cluster's certificate, PEM. The one that is trusted there; no secret.
    """

    host: str
    port: Annotated[int, Meta(ge=1, le=65535)]
    certificate: str

    def __repr__(self) -> str:
        return f"<TcpAddress {describe_address(self)}>"


Address: TypeAlias = str | TcpAddress
"""The path of a Unix socket, or a host and port."""


class Unreachable(Struct, frozen=True):
    """In place of an address: there is no such actor, until it gets an address.

    Attributes:
        reason: Why.
        closing: Whether it has ended in order, with all others.
        moved: Whether it has ended in order, and other shards have what it had.
        closed: Whether its cluster is there no longer; the reason says so, and when that was.
    """

    reason: str
    closing: bool = False
    moved: bool = False
    closed: bool = False


Destination: TypeAlias = Address | Unreachable
"""What a reference may be told about an actor's place."""


class UnreachableError(ConnectionError):
    """There is no actor to dial now."""

    def __init__(self, unreachable: Unreachable) -> None:
        super().__init__(unreachable.reason)
        self.unreachable = unreachable


def describe_address(address: Destination) -> str:
    """An address as text for people."""
    if isinstance(address, Unreachable):
        return "nowhere"
    if isinstance(address, str):
        return address
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


@functools.lru_cache(maxsize=64)
def client_context(certificate: str) -> ssl.SSLContext:
    """A TLS context that trusts one certificate only.

    Raises:
        AuthenticationError: If it is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be an authority's
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError) as error:
        raise AuthenticationError(
            f"the cluster's certificate cannot be read ({error}): take the handle anew"
        ) from error
    return context


# ---------------------------------------------------------------------- dialling


def connect(
    address: Destination,
    secret: Secret[bytes],
    timeout: float,
    announce: Callable[[socket.socket], None] = lambda _: None,
) -> socket.socket:
    """Connect, and wait until the server is authenticated. Blocks.

    Args:
        address: Where.
        secret: The cluster's secret.
        timeout: Seconds for all of it, but for looking up the host's name.
        announce: Told of each socket before it is connected, for a later `hang_up` by a thread.

    Raises:
        AuthenticationError: If the server has not the certificate that is expected, or another
            user serves at the Unix socket.
        OSError: If it cannot be reached in time.
    """
    deadline = time.monotonic() + timeout
    if isinstance(address, Unreachable):
        raise UnreachableError(address)
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            widen(sock)
            announce(sock)
            sock.settimeout(timeout)
            sock.connect(address)
            check_peer(sock)
        except BaseException:
            sock.close()
            raise
        return sock
    context = client_context(address.certificate)
    failure: OSError | None = None
    for family, kind, protocol, _, where in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        secured = context.wrap_socket(
            socket.socket(family, kind, protocol),
            server_hostname=SERVER_NAME,
            do_handshake_on_connect=False,
        )
        try:
            keep_alive(secured)
            announce(secured)
            secured.settimeout(_left(deadline))
            secured.connect(where)
            socket.socket.send(secured, knock(secret))  # not through TLS; there is room for it
            secured.settimeout(_left(deadline))
            secured.do_handshake()
        except OSError as error:
            secured.close()
            if is_foreign(error):
                raise
            _check_trust(address, error)
            failure = error
        except BaseException:
            secured.close()
            raise
        else:
            return secured
    raise failure or OSError(f"{address.host} has no address")


async def dial(loop: asyncio.AbstractEventLoop, address: Destination) -> socket.socket:
    """Connect a socket; `secure` makes a transport of it.

    Raises:
        AuthenticationError: If another user serves at the Unix socket.
        OSError: If the server cannot be reached.
    """
    if isinstance(address, Unreachable):
        raise UnreachableError(address)
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        widen(sock)
        sock = await _connected(loop, sock, address)
        try:
            check_peer(sock)
        except BaseException:
            sock.close()
            raise
        return sock
    failure: OSError | None = None
    for family, kind, protocol, _, where in await resolve(loop, address.host, address.port):
        sock = socket.socket(family, kind, protocol)
        keep_alive(sock)
        try:
            return await _connected(loop, sock, where)
        except OSError as error:
            failure = error
    raise failure or OSError(f"{address.host} has no address")


async def resolve(
    loop: asyncio.AbstractEventLoop, host: str, port: int
) -> Sequence[tuple[int, int, int, str, Any]]:
    """Resolve a host to socket addresses; only names need a thread.

    Raises:
        OSError: If there is no such host.
    """
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _connected(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, where: Any
) -> socket.socket:
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def secure(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.Protocol,
    sock: socket.socket,
    address: Destination,
    secret: Secret[bytes],
) -> asyncio.BaseTransport:
    """Connect a protocol with a socket of `dial`, once the server is authenticated.

    Raises:
        AuthenticationError: If the server has not the certificate that is expected.
        OSError: If the connection broke.
    """
    file = os.fstat(sock.fileno()).st_ino
    try:
        if not isinstance(address, TcpAddress):
            transport, _ = await loop.create_unix_connection(lambda: protocol, sock=sock)
            return transport
        sock.send(knock(secret))  # there is room for it
        transport, _ = await loop.create_connection(
            lambda: protocol,
            sock=sock,
            ssl=client_context(address.certificate),
            server_hostname=SERVER_NAME,
            ssl_shutdown_timeout=CLOSING,
        )
    except BaseException as error:
        _forget_closed(sock, file)
        if isinstance(error, OSError) and isinstance(address, TcpAddress):
            _check_trust(address, error)
        raise
    return transport


def _forget_closed(sock: socket.socket, file: int) -> None:
    """Detach a socket whose descriptor belongs to another file now.

    uvloop closes it without telling the socket when connecting fails or is cancelled, and the
    number may be another file's by the time at which the socket is closed.
    """
    try:
        same = os.fstat(sock.fileno()).st_ino == file
    except OSError:
        same = False
    if not same:
        sock.detach()


def _check_trust(address: TcpAddress, error: OSError) -> None:
    """Distinguish a server of another cluster from a connection that broke."""
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"does not have the cluster's certificate ({error.verify_message})"
    elif isinstance(error, ssl.SSLError) and error.reason == _DENIAL:
        what = "does not know the cluster's secret"
    else:
        return
    raise AuthenticationError(
        f"the server at {describe_address(address)} {what}: the handle is of another cluster, "
        "or the address was taken over by another program. Take the handle of the cluster that "
        "runs now"
    ) from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    return left


# ---------------------------------------------------------------------- sockets that are connected


def keep_alive(sock: socket.socket) -> None:
    """Set up a TCP connection: no delay, and an end when an idle peer loses power.

    A time limit of the kernel's for what is on its way would hit a busy peer, which is there and
    reads later, as it does a dead one: see `unanswered`.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def limit_unread(sock: socket.socket) -> None:
    """Have an accepted TCP connection end when sent data stays unread for half a minute."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD)


def unanswered(sock: socket.socket) -> bool:
    """Whether the peer's kernel has repeatedly not acknowledged sent data.

    False as well on a Unix socket, and where the platform does not tell.
    """
    if sock.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return max(info[_RETRANSMITS], info[_PROBES]) >= _UNANSWERED


def hang_up(sock: socket.socket) -> None:
    """Shut down a socket that another thread uses, which sees an end of stream or an error.

    The owner of the socket closes it. A TLS socket's own `shutdown` would let that thread go on in
    the clear.
    """
    with contextlib.suppress(OSError):  # it is not connected, or not any more
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
