"""What the speed of distributed mode rests on, as counts: a clock would only test the machine."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.bench.subjects import Graph, messages, subject
from flowgentic_actors.bench.workloads import AT_ONCE
from flowgentic_actors.wire.async_connection import TOGETHER
from flowgentic_actors.wire.frames import FrameReader, FrameWriter

pytestmark = pytest.mark.anyio

HEARTBEAT = 0.05

FEW_FRAMES = {"sent": 1 + AT_ONCE // TOGETHER, "received": 1 + AT_ONCE // TOGETHER}
"""Of that many requests in one tick: the first leaves at once, the others in groups."""

LOCAL = {"mode": "local"}
SUBPROCESS = {"mode": "distributed", "spawner": "subprocess", "heartbeat_interval": HEARTBEAT}


@pytest.fixture(params=[LOCAL, SUBPROCESS], ids=["local", "subprocess"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[MemoryCluster]:
    async with MemoryCluster(**request.param) as cluster:
        yield cluster


@pytest.fixture
async def distributed() -> AsyncIterator[MemoryCluster]:
    async with MemoryCluster(**SUBPROCESS) as cluster:
        yield cluster


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the frames of the event loop's thread; another one pings the host meanwhile."""
    counted: Counter[str] = Counter()
    header, feed, whole = FrameWriter.header, FrameReader.feed, FrameReader.whole
    loops = threading.current_thread()

    def counting_header(self: FrameWriter, length: int) -> bytes:
        counted["sent"] += threading.current_thread() is loops
        return header(self, length)

    def counting_feed(self: FrameReader, data: bytes) -> Iterator[bytes | memoryview]:
        for payload in feed(self, data):
            counted["received"] += threading.current_thread() is loops
            yield payload

    monkeypatch.setattr(FrameWriter, "header", counting_header)

    def counting_whole(self: FrameReader, data: bytes) -> memoryview | None:
        payload = whole(self, data)
        counted["received"] += payload is not None and threading.current_thread() is loops
        return payload

    monkeypatch.setattr(FrameReader, "feed", counting_feed)
    monkeypatch.setattr(FrameReader, "whole", counting_whole)
    return counted


async def _run(graph: Graph, thread_id: str) -> None:
    await graph.ainvoke({"messages": messages(4, 100)}, {"configurable": {"thread_id": thread_id}})


async def requests(cluster: MemoryCluster, at_least: int) -> int:
    """The requests handled so far, once the heartbeats that count them have come."""
    for _ in range(200):
        if sum(actor.requests for actor in (await cluster.status()).actors) >= at_least:
            break
        await asyncio.sleep(HEARTBEAT)
    await asyncio.sleep(4 * HEARTBEAT)  # one too many would show only now
    return sum(actor.requests for actor in (await cluster.status()).actors)


async def test_a_graph_of_three_nodes_makes_ten_requests(cluster: MemoryCluster) -> None:
    graph = subject(cluster.checkpointer, cluster.store).graph
    for number in (1, 2, 3):
        await _run(graph, str(number))
        # one get; a checkpoint of the input, of the start and after each node, and the writes
        # of the start and of each node
        assert await requests(cluster, 10 * number) == 10 * number


async def test_a_new_value_is_sent_once(cluster: MemoryCluster) -> None:
    """No second request because a value was missing, however long the thread grows."""
    graph = subject(cluster.checkpointer, cluster.store).graph
    for number in range(1, 6):
        await _run(graph, "the same")
        assert await requests(cluster, 10 * number) == 10 * number


async def test_requests_of_one_tick_share_a_frame_and_so_do_their_replies(
    distributed: MemoryCluster, frames: Counter[str]
) -> None:
    store = distributed.store
    await store.aput(("notes",), "first", {"text": "opens the connection"})
    frames.clear()
    puts = [store.aput(("notes",), str(n), {"text": "words"}) for n in range(AT_ONCE)]
    await asyncio.gather(*puts)
    assert frames == FEW_FRAMES
    frames.clear()
    found = await asyncio.gather(*(store.aget(("notes",), str(n)) for n in range(AT_ONCE)))
    assert all(found)
    assert frames == FEW_FRAMES


async def test_graphs_side_by_side_share_frames(
    distributed: MemoryCluster, frames: Counter[str]
) -> None:
    graph = subject(distributed.checkpointer, distributed.store).graph
    await _run(graph, "first")
    frames.clear()
    await asyncio.gather(*(_run(graph, str(number)) for number in range(AT_ONCE)))
    assert 0 < frames["sent"] <= 10 * AT_ONCE / 8  # of 640 requests
