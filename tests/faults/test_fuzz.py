"""Rubbish on the sockets of a live cluster: it is refused, and everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec import Raw

from flowgentic_actors import MemoryCluster
from flowgentic_actors.engine.commands import (
    DeleteItem,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    Match,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import ItemPosition, Position, Write
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.channel import ClientChannel, client_channel
from flowgentic_actors.wire.frames import HEADER, MAGIC, VERSION
from flowgentic_actors.wire.handshake import GREETING
from flowgentic_actors.wire.messages import Cancel, Hello, Pong, Request, Started, ToServer

pytestmark = pytest.mark.anyio

STRINGS = 1000
"""Of each kind."""

GROWTH = 64 << 20
"""Bytes by which rubbish may make an actor's process grow for good."""

encode = msgspec.msgpack.encode

COMMANDS = [
    PutCheckpoint(
        "fuzz",
        "",
        "1",
        None,
        ("msgpack", encode({"v": 1})),
        ("msgpack", encode({"step": 1})),
        {"step": 1, "source": "loop"},
        {"c": 1, "d": "2.1"},
        {"c": ("msgpack", b"x"), "d": ("bytes", b"yy")},
        ("c", "d"),
    ),
    PutWrites("fuzz", "", "1", "task", "path", (Write(0, "c", ("msgpack", b"v")),)),
    GetCheckpoint("fuzz", "", None),
    ListCheckpoints("fuzz", "", None, "2", {"step": 1}, 5, Position("1", "fuzz", "")),
    PutItem(("fuzz", "b"), "k", ("msgpack", encode({"f": 1, "g": {"h": [1, 2]}}))),
    GetItem(("fuzz", "b"), "k"),
    DeleteItem(("fuzz", "b"), "k"),
    SearchItems(("fuzz",), encode({"f": {"$gt": 0}, "g": {"h": [1, 2]}}), 10, 0),
    SearchItems(("fuzz",), b"", 10, 0, ItemPosition(("fuzz",), "k")),
    ListNamespaces((Match("prefix", ("fuzz", "*")), Match("suffix", ("b",))), 2, 10, 0),
]

SPICE = [
    struct.pack("!BI", 0xDD, 2**32 - 1),  # an array of 4 billion
    struct.pack("!BI", 0xDF, 2**32 - 1),  # a map
    struct.pack("!BI", 0xDB, 2**32 - 1),  # a text
    struct.pack("!BI", 0xC6, 2**32 - 1),  # bytes
    struct.pack("!Bd", 0xCB, float("nan")),
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xc7\x0c\xff" + b"\xff" * 12,  # a time outside time
    b"\xa1\xff",  # text that is not UTF-8
    b"\x91" * 2000,
]


# ---------------------------------------------------------------------- what is sent


def framed(payload: bytes, counter: int = 0) -> bytes:
    return HEADER.pack(MAGIC, VERSION, counter, len(payload)) + payload


def batch(*messages: ToServer) -> bytes:
    return struct.pack("!BI", 0xDD, len(messages)) + b"".join(map(encode, messages))


def hello() -> Hello:
    return Hello("client", os.urandom(16), os.getpid())


def conversation(rng: random.Random) -> bytes:
    """What a client might send after the handshake: its hello, then requests."""
    requests: list[ToServer] = [
        Request(seq, 0, 1000, Raw(encode(rng.choice(COMMANDS)))) for seq in range(3)
    ]
    others: list[ToServer] = [Cancel(1), Started("shard-0", 1, "n"), Pong(1, 0.0, {"a": 1})]
    return framed(batch(hello())) + framed(batch(*requests, rng.choice(others)), 1)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The data with a few bytes changed, removed, or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[position : position + 1] = rng.randbytes(1)
            case 1:
                changed[position:position] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del changed[position : position + rng.randint(1, 8)]
            case 3:
                changed[position : position + rng.randrange(9)] = rng.choice(SPICE)
    return bytes(changed)


def well_framed_rubbish(rng: random.Random) -> bytes:
    """Good frames, so that the rubbish in them gets as far as the actor."""
    bodies = [mutated(rng, encode(rng.choice(COMMANDS))) for _ in range(3)]
    requests: list[bytes] = [
        b"\x95\x02" + encode(seq) + encode(0) + encode(1000) + body
        for seq, body in enumerate(bodies)
    ]
    frames = [
        framed(struct.pack("!BI", 0xDD, 1) + request, n) for n, request in enumerate(requests, 1)
    ]
    return framed(batch(hello())) + b"".join(frames)


def rubbish(rng: random.Random) -> Iterator[tuple[bool, bytes]]:
    """Whether to shake hands first, and what to send then."""
    for number in range(STRINGS):
        data = rng.randbytes(rng.choice([1, 12, 100, 5000]))
        # Frames of random bytes, and a stranger who greets well, are rubbish of a better kind.
        yield bool(number % 2), rng.choice([data, framed(data), GREETING + data[:50]])
    for number in range(STRINGS):
        if number % 2:
            conversed = mutated(rng, conversation(rng))
            yield True, rng.choice([conversed, well_framed_rubbish(rng)])
        else:
            yield False, mutated(rng, GREETING + rng.randbytes(32) + conversation(rng))


def large_claims() -> Iterator[tuple[bool, bytes]]:
    """Little that says it is much."""
    for length in (2**32 - 1, 2**31, 513 << 20, 1 << 29):
        yield True, HEADER.pack(MAGIC, VERSION, 0, length) + b"x"
    for spice in SPICE:
        yield True, framed(spice)
        yield True, framed(b"\x91" + spice)
        yield True, framed(b"\x91\x92\x03" + spice)
        yield True, framed(batch(hello())) + framed(b"\x91\x95\x02\x01\x01\x01" + spice, 1)
        for command in map(encode, COMMANDS):
            for cut in range(2, len(command), 16):
                body = command[:cut] + spice
                request = b"\x91\x95\x02\x01\x01\xcd\x03\xe8" + body
                yield True, framed(batch(hello())) + framed(request, 1)


def dense_frames() -> Iterator[tuple[bool, bytes]]:
    """1 MB that becomes as many objects as the limits allow."""
    most = 65_536
    cancel, request = encode(Cancel(1)), b"\x95\x02\x01\x01\x01\xc0"
    for message in (cancel, request):
        dense = framed(struct.pack("!BI", 0xDD, most) + message * most, 1)
        yield True, framed(batch(hello())) + dense
    write = b"\x93\x01\xa0\x92\xa0\xc4\x00"
    writes = b"\x97\x02" + b"\xa1f" * 5 + struct.pack("!BI", 0xDD, 150_000) + write * 150_000
    yield (
        True,
        framed(batch(hello())) + framed(b"\x91\x95\x02\x01\x01\xcd\x03\xe8" + writes, 1),
    )


# ---------------------------------------------------------------------- how it is sent


def shake_hands(sock: socket.socket, secret: Secret[bytes]) -> ClientChannel:
    channel = client_channel(secret, 1 << 20)
    while not channel.established:
        sock.sendall(b"".join(channel.take()))
        list(channel.receive(sock.recv(1 << 16)))
    sock.sendall(b"".join(channel.take()))
    return channel


def throw(address: str, secret: Secret[bytes], thrown: Iterator[tuple[bool, bytes]]) -> int:
    """Send each in a connection of its own, and see that the server ends every one of them."""
    count = 0
    for shakes_hands, data in thrown:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(30.0)
            sock.connect(address)
            if shakes_hands:
                shake_hands(sock, secret)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
        count += 1
    return count


@asynccontextmanager
async def bystander(memory: MemoryCluster) -> AsyncIterator[Callable[[], int]]:
    """A client that goes on as if nothing was; tells how many of its calls were good."""
    good = 0

    async def use() -> None:
        nonlocal good
        while True:
            key = str(good % 100)
            await memory.store.aput(("bystander",), key, {"good": good})
            item = await memory.store.aget(("bystander",), key)
            assert item is not None
            assert item.value == {"good": good}
            good += 1
            await asyncio.sleep(0.001)

    task = asyncio.create_task(use())
    try:
        yield lambda: good
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task  # raises what went wrong


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    async with MemoryCluster(mode="distributed", spawner="subprocess") as memory:
        yield memory


async def assert_unmoved_by(
    memory: MemoryCluster, things: Callable[[], Iterator[tuple[bool, bytes]]], *targets: str
) -> str:
    """Throw things at sockets of the cluster, and see that all is as it was.

    Returns:
        The actor's log.
    """
    before = await memory.status()
    pids = (before.actors[0].pid, before.host_pid)
    secret = (await asyncio.to_thread(memory.handle.read)).secret
    sizes = [psutil.Process(pid).memory_info().rss for pid in pids]
    for target in targets:
        async with bystander(memory) as good:
            address = str(Path(before.folder, target))
            assert await asyncio.to_thread(throw, address, secret, things())
            during = good()
            await asyncio.sleep(0.1)
            assert good() > during > 0
    after = await memory.status()
    assert (after.actors[0].pid, after.host_pid) == pids
    assert after.actors[0].restarts == 0
    for pid, size in zip(pids, sizes, strict=True):
        assert psutil.Process(pid).memory_info().rss - size < GROWTH
    log = await asyncio.to_thread(Path(before.folder, "shard-0.log").read_text)
    assert "Traceback" not in log  # nothing of it came as a surprise
    return log


# ---------------------------------------------------------------------- the tests


ACTOR, HOST = "shard-0.sock", "host.sock"


async def test_rubbish_disturbs_nobody(cluster: MemoryCluster) -> None:
    log = await assert_unmoved_by(cluster, lambda: rubbish(random.Random(1)), ACTOR, HOST)
    assert "is ended: not a frame of this protocol" in log  # it says what it refused
    assert "does not greet" in log


async def test_little_that_claims_to_be_much_costs_little(cluster: MemoryCluster) -> None:
    await assert_unmoved_by(cluster, large_claims, ACTOR, HOST)


async def test_a_frame_as_dense_as_allowed_costs_an_actor_little(cluster: MemoryCluster) -> None:
    await assert_unmoved_by(cluster, dense_frames, ACTOR)
