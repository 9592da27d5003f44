"""Channels: typed messages in both directions, under any chunking, with limits."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from flowgentic_actors.errors import LimitExceededError, ProtocolError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.channel import (
    Channel,
    ClientChannel,
    ServerChannel,
    client_channel,
    server_channel,
)
from flowgentic_actors.wire.frames import FRAME_TARGET, HEADER, FrameReader, FrameWriter
from flowgentic_actors.wire.messages import (
    MAX_MESSAGES,
    MAX_TEXT,
    Admit,
    Cancel,
    Drain,
    Failure,
    Fatal,
    Hello,
    Ping,
    Pong,
    Ready,
    Reply,
    Request,
    Started,
    Stopped,
    ToClient,
    ToServer,
    Welcome,
    sendable,
)

SECRET = Secret(bytes(32))
LIMIT = 4 << 20

numbers = st.integers(0, 2**62)
names = st.text(max_size=256)
stats = st.dictionaries(names, st.integers(-(2**63), 2**63 - 1), max_size=5)
bodies = st.binary(max_size=100).map(lambda data: Raw(msgspec.msgpack.encode(data)))

to_server: st.SearchStrategy[ToServer] = st.one_of(
    st.builds(
        Hello, st.sampled_from(["client", "owner", "link"]), st.binary(min_size=16, max_size=16),
        numbers,
    ),
    st.builds(Request, numbers, numbers, numbers, bodies),
    st.builds(Cancel, numbers),
    st.builds(Started, names, numbers, names),
    st.builds(Ready, st.floats(0, 1e6)),
    st.builds(Pong, numbers, st.floats(0, 1e6), stats),
    st.builds(Stopped, stats),
    st.builds(Fatal, st.text(max_size=300)),
)  # fmt: skip
to_client: st.SearchStrategy[ToClient] = st.one_of(
    st.builds(Welcome, names, numbers, numbers),
    st.builds(Reply, numbers, bodies),
    st.builds(
        Failure,
        numbers,
        st.sampled_from(["invalid", "expired", "storage", "internal", "closing"]),
        st.text(max_size=300),
    ),
    st.just(Admit()),
    st.builds(Ping, numbers),
    st.just(Drain()),
)


def connected(limit: int = LIMIT) -> tuple[ClientChannel, ServerChannel]:
    """Two ends after their handshake."""
    client, server = client_channel(SECRET, limit), server_channel(SECRET, limit)
    while not (client.established and server.established):
        list(server.receive(b"".join(client.take())))
        list(client.receive(b"".join(server.take())))
    return client, server


def receive(channel: Channel[Any, Any], data: bytes, chunk: int = 1 << 30) -> list[list[Any]]:
    """The messages of every frame in some bytes."""
    return [
        list(messages)
        for start in range(0, len(data), chunk)
        for messages in channel.receive(data[start : start + chunk])
    ]


def flat(frames: list[list[Any]]) -> list[Any]:
    return [message for frame in frames for message in frame]


def framed(payload: bytes) -> bytes:
    return FrameWriter().header(len(payload)) + payload


@settings(deadline=None)
@given(st.lists(to_server, max_size=10), st.lists(to_client, max_size=10), st.integers(1, 400))
def test_messages_make_the_round_trip_under_any_chunking(
    requests: list[ToServer], replies: list[ToClient], chunk: int
) -> None:
    client, server = connected()
    for request in requests:
        client.send(request)
    for reply in replies:
        server.send(reply)
    assert flat(receive(server, b"".join(client.take()), chunk)) == requests
    assert flat(receive(client, b"".join(server.take()), chunk)) == replies
    assert not any((client.pending, server.pending, client.buffered, server.buffered))


def test_messages_wait_for_the_handshake() -> None:
    client, server = client_channel(SECRET, LIMIT), server_channel(SECRET, LIMIT)
    client.send(Cancel(1))
    greeting = b"".join(client.take())
    assert not client.pending  # the message is still there, but not to be written yet
    assert receive(server, greeting) == []
    assert receive(client, b"".join(server.take())) == []
    assert receive(server, b"".join(client.take())) == [[Cancel(1)]]


def test_what_is_collected_leaves_in_one_frame() -> None:
    client, server = connected()
    for seq in range(100):
        client.send(Cancel(seq))
    assert receive(server, b"".join(client.take())) == [[Cancel(seq) for seq in range(100)]]


def test_frames_are_split_at_about_1_mb() -> None:
    client, server = connected()
    body = Raw(msgspec.msgpack.encode(bytes(FRAME_TARGET // 4)))
    sent = [Request(seq, 0, 0, body) for seq in range(10)]
    for request in sent:
        client.send(request)
    frames = receive(server, b"".join(client.take()))
    assert flat(frames) == sent
    assert [len(frame) for frame in frames] == [3, 3, 3, 1]


def test_a_message_above_the_target_travels_alone() -> None:
    client, server = connected()
    large = Request(1, 0, 0, Raw(msgspec.msgpack.encode(bytes(2 * FRAME_TARGET))))
    for message in (Cancel(0), large, Cancel(2)):
        client.send(message)
    frames = receive(server, b"".join(client.take()), 1 << 18)
    assert frames == [[Cancel(0)], [large], [Cancel(2)]]


def test_frames_are_split_at_the_most_messages() -> None:
    client, server = connected()
    for seq in range(MAX_MESSAGES + 1):
        client.send(Cancel(seq))
    assert [len(frame) for frame in receive(server, b"".join(client.take()))] == [MAX_MESSAGES, 1]


def test_the_largest_message_allowed_arrives() -> None:
    client, server = connected()
    body = Raw(msgspec.msgpack.encode(bytes(LIMIT - 5)))
    assert len(bytes(body)) == LIMIT
    client.send(Request(2**62, 2**62, 2**62, body))
    ((request,),) = receive(server, b"".join(client.take()), 1 << 18)
    assert request.body == body


def test_a_frame_above_the_limit_is_refused_before_it_is_read() -> None:
    _, server = connected(1 << 20)
    with pytest.raises(LimitExceededError, match="max_message_bytes"):
        receive(server, FrameWriter().header(LIMIT))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x93\x01",
        b"\x91\x92\x63\x01",  # no such tag
        b"\x91\x92\x03\xa1x",  # a text where a number belongs
        b"\x91\x92\x03\xff",  # below the least number allowed
        b"\x91\x93\x04\xa1\xff\x01",  # a name that is not UTF-8
        b"\x91\x95\x02\x01\x01\x01" + b"\x91" * 100_000,  # a body nested too deeply
        struct.pack("!BI", 0xDD, 2**32 - 1),  # 4 billion messages announced
        struct.pack("!BI", 0xDD, MAX_MESSAGES + 1) + b"\x92\x03\x01" * (MAX_MESSAGES + 1),
        b"\x91\x94\x06\x01\xcb" + bytes(8) + struct.pack("!BI", 0xDF, 2**32 - 1),  # so many stats
        b"\x91\x92\x08" + struct.pack("!BI", 0xDB, 2**32 - 1),  # so long a reason
        b"\x91\x93\x07\x80" + b"\x91" * 100_000,  # nested in a field that nobody knows
    ],
)
def test_a_frame_that_does_not_hold_messages_is_refused(payload: bytes) -> None:
    _, server = connected()
    with pytest.raises(ProtocolError, match="does not hold messages"):
        receive(server, framed(payload))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_frame_does_worse_than_a_protocol_error(payload: bytes) -> None:
    client, server = connected()
    for channel in (client, server):
        try:
            receive(channel, framed(payload))
        except ProtocolError:
            continue


@settings(deadline=None)
@given(st.text(st.characters(), max_size=50), st.integers(0, MAX_TEXT))
def test_any_text_of_an_error_can_be_sent(text: str, repeat: int) -> None:
    client, server = connected()
    client.send(Fatal(sendable(text * repeat)))
    ((broken,),) = receive(server, b"".join(client.take()))
    assert isinstance(broken, Fatal)


def test_sendable_keeps_ordinary_text_and_escapes_what_cannot_be_encoded() -> None:
    assert sendable("ärger: ☂") == "ärger: ☂"
    assert sendable("\udc80") == "\\udc80"


def test_an_end_of_stream_within_a_frame_is_told() -> None:
    client, server = connected()
    client.send(Cancel(1))
    data = b"".join(client.take())
    for end in range(1, len(data)):
        _, server = connected()
        receive(server, data[:end])
        assert server.buffered
    assert FrameReader(LIMIT).buffered == 0
    assert len(data) > HEADER.size
