"""Addresses and certificates, and servers that have somebody else's."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import os
import ssl
import time
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from rich.pretty import pretty_repr

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.errors import ActorUnavailableError, AuthenticationError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import (
    Address,
    TcpAddress,
    client_context,
    connect,
    describe_address,
    dial,
    secure,
)
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.identity import Identity, server_context
from tests.support.blocking_calls import elsewhere, timed
from tests.support.counter import PATIENCE, SECRET
from tests.support.tls import (
    HOST,
    LIMIT,
    OURS,
    THEIRS,
    at,
    blocking_to,
    connection_to,
    nobody,
    pool_to,
    tls_peer,
    tls_serving,
)
from tests.support.wire_peer import SOON, body

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def other_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(THEIRS, tmp_path_factory.mktemp("identity"))


# ---------------------------------------------------------------------- addresses, certificates


@pytest.mark.parametrize("address", ["/tmp/a.sock", TcpAddress("node1", 4242, "pem")])
def test_an_address_travels(address: Address) -> None:
    encoded = msgspec.msgpack.encode({"address": address})
    assert msgspec.msgpack.decode(encoded, type=dict[str, Address]) == {"address": address}


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    encoded = msgspec.msgpack.encode(["node1", port, "pem"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(encoded, type=str | TcpAddress)


def test_addresses_are_readable() -> None:
    assert describe_address("/tmp/a.sock") == "/tmp/a.sock"
    assert describe_address(TcpAddress("node1", 4242, "pem")) == "node1:4242"
    assert describe_address(TcpAddress("fe80::1", 4242, "pem")) == "[fe80::1]:4242"
    assert repr(TcpAddress("node1", 4242, "pem")) == "<TcpAddress node1:4242>"


def test_an_identity_shows_nothing_of_itself() -> None:
    ref = ActorRef("counter", at(1), SECRET, LIMIT, 1)
    shown = f"{OURS!r} {OURS} {pretty_repr(OURS)} {ref!r}"
    for secret in (OURS.key.reveal(), OURS.certificate):
        assert secret.splitlines()[1] not in shown
    assert "BEGIN" not in shown


def test_a_certificate_is_valid_already_where_clocks_differ_and_for_as_long_as_a_job() -> None:
    certificate = x509.load_pem_x509_certificate(OURS.certificate.encode())
    now = time.time()
    assert certificate.not_valid_before_utc.timestamp() < now - 80_000
    assert certificate.not_valid_after_utc.timestamp() > now + 9 * 365 * 86400
    assert new_identity() != new_identity()


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
def test_the_key_does_not_stay_in_a_file(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def noting(context: ssl.SSLContext, file: str) -> None:
        named = list(tmp_path.iterdir())
        modes.extend(path.stat().st_mode & 0o777 for path in named)
        load(context, file)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noting)
    if not unnamed:  # not every kernel has such files
        monkeypatch.delattr(os, "memfd_create", raising=False)
    server_context(OURS, tmp_path)
    assert modes == ([] if unnamed else [0o600])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ssl.SSLError):
        server_context(Identity("no", Secret("key")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_trusted_is_one_certificate_and_its_name() -> None:
    context = client_context(OURS.certificate)
    assert context is client_context(OURS.certificate)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    with pytest.raises(AuthenticationError, match="cannot be read"):
        client_context("no certificate")


# ---------------------------------------------------------------------- somebody else's server


async def test_another_certificate_is_refused_before_anything_is_sent(
    other_context: ssl.SSLContext,
) -> None:
    async with tls_peer(other_context) as (peer, address):
        async with connection_to(address) as connection:
            with pytest.raises(ActorUnavailableError, match=r"another cluster.*Nothing was sent"):
                async with asyncio.timeout(PATIENCE):
                    await connection.request(body(1), 600)
        sock = await dial(asyncio.get_running_loop(), address)
        with pytest.raises(AuthenticationError, match="taken over"), sock:
            await secure(asyncio.get_running_loop(), asyncio.Protocol(), sock, address, SECRET)
        assert not peer.frames
        assert not peer._writers  # no connection ever got through TLS's handshake


def test_another_certificate_is_refused_by_blocking_calls(other_context: ssl.SSLContext) -> None:
    with elsewhere(tls_peer(other_context)) as (_, (peer, address)), pool_to(address) as pool:

        def ask() -> None:
            with pytest.raises(ActorUnavailableError, match=r"another cluster.*Nothing was sent"):
                pool.request(body(1), 600)

        assert timed(ask) < PATIENCE
        with pytest.raises(AuthenticationError, match="taken over"):
            connect(address, SECRET, PATIENCE)
        assert not peer._writers


async def test_a_wrong_secret_is_refused_as_it_is_on_a_unix_socket(
    path: Path, context: ssl.SSLContext
) -> None:
    async with (
        tls_serving(path, context, Secret(bytes(32))) as (_, _, address),
        connection_to(address) as connection,
    ):
        with pytest.raises(ActorUnavailableError, match="secret"):
            await connection.request(body(1), 600)


async def test_a_server_without_tls_is_out_of_reach() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(babble, HOST, 0)
    address = at(listener.sockets[0].getsockname()[1])
    async with connection_to(address) as connection:
        with pytest.raises(ActorUnavailableError, match="SSL"):
            await connection.request(body(1), SOON)
    with blocking_to(address) as other, pytest.raises(ActorUnavailableError, match="SSL"):
        await asyncio.to_thread(other.request, body(1), SOON)
    listener.close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("accepting", [True, False])
async def test_a_server_that_is_silent_is_out_of_reach(accepting: bool) -> None:
    with nobody(accepting) as address:
        async with connection_to(address) as connection:
            with pytest.raises(ActorUnavailableError):
                await connection.request(body(1), SOON)
        with blocking_to(address) as other, pytest.raises(ActorUnavailableError):
            await asyncio.to_thread(other.request, body(1), SOON)
