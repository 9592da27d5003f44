"""Choice of a node's network address for other nodes."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import Final

from flowgentic_actors.errors import ClusterOpenError

FAST: Final = ("hsn", "ib", "opa", "roce", "bond")
"""Beginnings of names that high-speed networks have, best first: Slingshot, InfiniBand, ..."""

_LAST: Final = ("docker", "br-", "virbr", "veth", "lo", "tun", "tap")
_SIOCGIFADDR: Final = 0x8915
_NOWHERE: Final = ("192.0.2.1", 9)  # reserved for documentation: nothing is sent by connecting


def interfaces() -> list[tuple[str, str]]:
    """List the network interfaces that have an IPv4 address: (name, address)."""
    try:
        import fcntl  # noqa: PLC0415 - not on every platform
    except ImportError:
        return []
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none, or this is no Linux
                continue
            found.append((name, socket.inet_ntoa(answer[20:24])))
    return found


def choose_address(network: str | None) -> str:
    """Choose the address at which other nodes reach this one.

    Args:
        network: Beginning of an interface's name (`"hsn"`) or a network (`"10.1.0.0/16"`). Default:
            a high-speed network if there is one, otherwise the one with the default route.

    Raises:
        ClusterOpenError: If no interface is like that.
    """
    found = interfaces()
    if network is not None:
        for name, address in found:
            if _matches(network, name, address):
                return address
        there = ", ".join(f"{name} {address}" for name, address in found) or "none"
        raise ClusterOpenError(
            f"no network interface of this node fits network={network!r}; there are: {there}"
        )
    return next(_preferred(found), "127.0.0.1")


def _matches(network: str, name: str, address: str) -> bool:
    if "/" in network:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    return name.startswith(network)


def _preferred(found: list[tuple[str, str]]) -> Iterator[str]:
    for beginning in FAST:
        yield from (address for name, address in found if name.startswith(beginning))
    default = _default_address()
    if default is not None:
        yield default
    yield from (address for name, address in found if not name.startswith(_LAST))


def _default_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_NOWHERE)
        except OSError:  # there is no route
            return None
        address: str = sock.getsockname()[0]
        return address
