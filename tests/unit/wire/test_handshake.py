"""The handshake: both sides prove themselves before either decodes anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.errors import AuthenticationError, ProtocolError, WireError
from flowgentic_actors.wire.channel import server_channel
from flowgentic_actors.wire.frames import FrameWriter
from flowgentic_actors.wire.handshake import (
    GREETING,
    NONCE,
    PROOF,
    UNAUTHENTICATED_LIMIT,
    ClientHandshake,
    ServerHandshake,
    new_secret,
)

SECRET = new_secret()


def held(handshake: ClientHandshake | ServerHandshake) -> int:
    """Bytes that were received and not used yet."""
    return len(handshake._buffer)


@pytest.mark.parametrize("chunk", [1, 2, 31, 1000])
def test_both_sides_prove_themselves_whatever_the_chunking(chunk: int) -> None:
    client, server = ClientHandshake(SECRET), ServerHandshake(SECRET)
    to_server, to_client = client.greeting, b""
    while not server.done:
        assert to_server or to_client
        answer, rest = server.feed(to_server[:chunk])
        to_server, to_client = to_server[chunk:], to_client + answer
        assert rest == b""
        if not client.done:
            answer, rest = client.feed(to_client[:chunk])
            to_client, to_server = to_client[chunk:], to_server + answer
            assert rest == b""
    assert client.done


def test_what_follows_the_handshake_is_handed_on() -> None:
    client, server = ClientHandshake(SECRET), ServerHandshake(SECRET)
    challenge, _ = server.feed(client.greeting)
    proof, rest = client.feed(challenge + b"welcome")
    assert rest == b"welcome"
    assert server.feed(proof + b"hello") == (b"", b"hello")


def test_a_client_without_the_secret_is_refused() -> None:
    client, server = ClientHandshake(SECRET), ServerHandshake(new_secret())
    with pytest.raises(AuthenticationError):
        client.feed(server.feed(client.greeting)[0])
    with pytest.raises(AuthenticationError):
        server.feed(bytes(PROOF))
    assert not server.done


def test_a_server_without_the_secret_is_refused() -> None:
    client = ClientHandshake(SECRET)
    with pytest.raises(AuthenticationError, match="does not know the cluster's secret"):
        client.feed(bytes(NONCE + PROOF))
    assert not client.done


def test_a_proof_cannot_be_sent_back_to_its_maker() -> None:
    """Else a stranger could have one of the two sides answer the other's challenge."""
    client, server = ClientHandshake(SECRET), ServerHandshake(SECRET)
    challenge, _ = server.feed(client.greeting)
    with pytest.raises(AuthenticationError):
        server.feed(challenge[NONCE:])


def test_a_recorded_handshake_is_worthless() -> None:
    client, server = ClientHandshake(SECRET), ServerHandshake(SECRET)
    proof, _ = client.feed(server.feed(client.greeting)[0])
    later = ServerHandshake(SECRET)
    later.feed(client.greeting)
    with pytest.raises(AuthenticationError):
        later.feed(proof)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.booleans())
def test_a_stranger_cannot_make_the_server_hold_more_than_its_limit(
    chunks: list[bytes], greets: bool
) -> None:
    server = ServerHandshake(SECRET)
    if greets:
        chunks = [GREETING, *chunks]
    for chunk in chunks:
        try:
            server.feed(chunk)
        except WireError:
            return  # the connection ends here
        assert held(server) + len(server._nonces) <= UNAUTHENTICATED_LIMIT
    assert not server.done


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_stranger_is_refused_at_its_first_wrong_byte(chunk: int) -> None:
    server = ServerHandshake(SECRET)
    request = b"GET / HTTP/1.1\r\n\r\n"
    with pytest.raises(ProtocolError, match="greet"):
        server.feed(request[:chunk])
    assert held(server) <= len(request)


def test_nothing_is_sent_ahead_of_the_challenge() -> None:
    with pytest.raises(ProtocolError, match="before it was challenged"):
        ServerHandshake(SECRET).feed(ClientHandshake(SECRET).greeting + b"x")


def test_nothing_is_decoded_before_the_proof() -> None:
    channel = server_channel(SECRET, 1 << 20)
    list(channel.receive(ClientHandshake(SECRET).greeting))
    message = b"\xdd\x00\x00\x00\x01\x92\x03\x01"  # a list that holds Cancel(1)
    received = channel.receive(bytes(PROOF) + FrameWriter().header(len(message)) + message)
    with pytest.raises(AuthenticationError):
        next(received)
    assert not channel.established


def test_secrets_differ() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
