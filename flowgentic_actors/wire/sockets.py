"""Unix sockets: checks of paths and peers, and release of sockets in forked children."""

from __future__ import annotations

import os
import socket
import struct
import weakref
from typing import Final, Protocol

from flowgentic_actors.errors import AuthenticationError, ClusterOpenError

MAX_PATH = 100
"""Longest socket path that every platform takes (Linux 107, macOS 103), with room to spare."""

SEND_BUFFER: Final = 2 << 20
"""Bytes that may be on their way to a peer that has not read them."""

_UCRED = struct.Struct("iII")  # pid, uid, gid
_PEER_KNOWN = hasattr(socket, "SO_PEERCRED")


def check_path(path: str) -> None:
    """Refuse a socket path that the operating system would cut.

    Raises:
        ClusterOpenError: If the path is too long.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise ClusterOpenError(
            f"the socket path {path!r} is longer than {MAX_PATH} bytes: choose a shorter folder "
            "with scratch= (or $TMPDIR)"
        )


def widen(sock: socket.socket) -> None:
    """Enlarge a socket's send buffer, so that a large message leaves in one write.

    With the usual 208 KiB, both ends wake each other up for every fifth of a megabyte. The system
    may give less than is asked for; that is slower, and no error.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def peer_pid(sock: socket.socket) -> int | None:
    """The pid at the other end of a Unix socket, where the platform tells."""
    return int(_UCRED.unpack(_credentials(sock))[0]) if _PEER_KNOWN else None


def check_peer(sock: socket.socket) -> None:
    """Check that the process at the other end belongs to this user.

    Of a server, it is the process that began to listen. A client checks before it sends anything.

    Raises:
        AuthenticationError: If it belongs to another user.
    """
    if not _PEER_KNOWN:
        return  # the folder's mode 0700 and the secret guard the socket there
    uid = _UCRED.unpack(_credentials(sock))[1]
    if uid != os.geteuid():
        raise AuthenticationError(f"the peer runs as user {uid}, this process as {os.geteuid()}")


def _credentials(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)


class ForkAware(Protocol):
    """An owner of sockets that a forked child must not share."""

    def after_fork(self) -> None:
        """Release everything inherited; runs first in the child."""


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def let_go_after_fork(holder: ForkAware) -> None:
    """Register an object whose `after_fork` is called in every child forked while it lives."""
    _fork_aware.add(holder)


def _after_fork_in_child() -> None:
    for holder in list(_fork_aware):
        holder.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
