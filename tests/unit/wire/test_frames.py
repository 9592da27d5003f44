"""Frames: any chunking gives the same payloads, and what is not the next frame is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.errors import LimitExceededError, ProtocolError
from flowgentic_actors.wire.frames import HEADER, MAGIC, VERSION, FrameReader, FrameWriter

LIMIT = 1000


def stream(payloads: list[bytes]) -> bytes:
    writer = FrameWriter()
    return b"".join(writer.header(len(payload)) + payload for payload in payloads)


def feed(reader: FrameReader, data: bytes, chunk: int = 1 << 30) -> list[bytes]:
    """The payloads that are whole after all of the data, which comes in chunks."""
    chunks = (data[start : start + chunk] for start in range(0, len(data), chunk))
    return [bytes(payload) for data in chunks for payload in reader.feed(data)]


def frame(
    payload: bytes = b"payload",
    *,
    magic: bytes = MAGIC,
    version: int = VERSION,
    counter: int = 0,
    length: int | None = None,
) -> bytes:
    size = len(payload) if length is None else length
    return HEADER.pack(magic, version, counter, size) + payload


@settings(deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=60), max_size=8),
    cuts=st.lists(st.integers(0, 500), max_size=20),
)
def test_any_chunking_gives_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    data = stream(payloads)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = FrameReader(LIMIT)
    received: list[bytes] = []
    for start, end in pairwise(edges):
        received += feed(reader, data[start:end])
    assert received == payloads
    assert reader.buffered == 0


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 71))
def test_a_truncated_frame_gives_nothing_and_is_told(payload: bytes, cut: int) -> None:
    data = frame(payload)[: min(cut, HEADER.size + len(payload) - 1)]
    reader = FrameReader(LIMIT)
    assert feed(reader, data) == []
    assert reader.buffered == len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(magic=b"XYZ"), "wrong magic"),
        (b"GET / HTTP/1.1\r\n\r\n", "wrong magic"),
        (frame(version=VERSION + 1), "protocol version"),
        (frame(counter=1), "out of order"),
        (frame() + frame(), "replayed"),
        (frame() + frame(counter=2), "lost"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_frame_that_is_not_the_next_one_is_refused(data: bytes, reason: str, chunk: int) -> None:
    reader = FrameReader(LIMIT)
    with pytest.raises(ProtocolError, match=reason):
        feed(reader, data, chunk)


@pytest.mark.parametrize("length", [LIMIT + 1, 2**32 - 1])
@pytest.mark.parametrize("chunk", [1, 1000])
def test_an_oversized_frame_is_refused_by_its_header_alone(length: int, chunk: int) -> None:
    reader = FrameReader(LIMIT)
    data = frame(b"", length=length)
    with pytest.raises(LimitExceededError, match="max_message_bytes"):
        feed(reader, data, chunk)
    assert reader.buffered <= HEADER.size


def test_the_largest_frame_allowed_is_read() -> None:
    assert feed(FrameReader(LIMIT), frame(bytes(LIMIT))) == [bytes(LIMIT)]


def test_frames_before_a_bad_one_are_delivered() -> None:
    payloads = FrameReader(LIMIT).feed(frame(b"first") + b"rubbish that is long enough")
    assert bytes(next(payloads)) == b"first"
    with pytest.raises(ProtocolError):
        next(payloads)


def test_the_counter_goes_round() -> None:
    reader, writer = FrameReader(LIMIT), FrameWriter()
    reader._counter = writer._counter = 2**32 - 1
    for _ in range(3):
        assert feed(reader, writer.header(1) + b"x") == [b"x"]
