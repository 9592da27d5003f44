"""Which address of a node the others use."""

from __future__ import annotations

import ipaddress
import sys

import pytest

from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.wire import interfaces as module
from flowgentic_actors.wire.interfaces import choose_address, interfaces

FOUND = [
    ("lo", "127.0.0.1"),
    ("docker0", "172.17.0.1"),
    ("eth0", "10.1.2.3"),
    ("eth1", "10.2.2.3"),
    ("hsn1", "10.253.0.8"),
    ("ib0", "10.9.0.4"),
]


def there_are(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], default: str | None = None
) -> None:
    monkeypatch.setattr(module, "interfaces", lambda: found)
    monkeypatch.setattr(module, "_default_address", lambda: default)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are asked in another way")
def test_this_node_has_a_loopback_interface() -> None:
    assert ("lo", "127.0.0.1") in interfaces()
    assert all(ipaddress.ip_address(address).version == 4 for _, address in interfaces())
    assert choose_address("lo") == "127.0.0.1"
    assert choose_address("127.0.0.0/8") == "127.0.0.1"
    ipaddress.ip_address(choose_address(None))


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("hsn", "10.253.0.8"),
        ("eth", "10.1.2.3"),
        ("eth1", "10.2.2.3"),
        ("10.2.0.0/16", "10.2.2.3"),
        ("10.2.2.3/16", "10.2.2.3"),
        ("lo", "127.0.0.1"),
    ],
)
def test_a_network_is_chosen_by_name_or_number(
    network: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_are(monkeypatch, FOUND)
    assert choose_address(network) == address


def test_a_network_that_is_not_there_is_said_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there_are(monkeypatch, FOUND[:2])
    for network in ("eno", "192.168.0.0/24", "fe80::/10"):
        with pytest.raises(ClusterOpenError, match=r"lo 127\.0\.0\.1, docker0 172\.17\.0\.1"):
            choose_address(network)
    there_are(monkeypatch, [])
    with pytest.raises(ClusterOpenError, match="there are: none"):
        choose_address("eth")


def test_fast_networks_come_first_then_the_default_route_then_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there_are(monkeypatch, FOUND, "10.2.2.3")
    assert choose_address(None) == "10.253.0.8"
    there_are(monkeypatch, [pair for pair in FOUND if pair[0] != "hsn1"], "10.2.2.3")
    assert choose_address(None) == "10.9.0.4"
    there_are(monkeypatch, FOUND[:4], "10.2.2.3")
    assert choose_address(None) == "10.2.2.3"
    there_are(monkeypatch, FOUND[:4])
    assert choose_address(None) == "10.1.2.3"
    there_are(monkeypatch, FOUND[:2])
    assert choose_address(None) == "127.0.0.1"
    there_are(monkeypatch, [])
    assert choose_address(None) == "127.0.0.1"
