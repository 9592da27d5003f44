"""Guards against slow growth of the hot paths: Python instructions, counted, not timed.

A count is the same on every machine, busy or not. It differs between versions of Python, so each is
compared with what LangGraph's in-memory saver and store execute for the same call in the same run.
A bound is what was measured (Python 3.11) and some hundredths: a change that makes a path longer
than that has to say so here.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import isawaitable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointMetadata,
    empty_checkpoint,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from flowgentic_actors import MemoryCluster
from flowgentic_actors.actors.actor import Call
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.bench.subjects import messages, subject
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.secret import Secret
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.wire.channel import ClientChannel, client_channel, server_channel
from flowgentic_actors.wire.messages import NO_BODY, Request
from flowgentic_actors.wire.messages import Reply as ReplyMessage

pytestmark = pytest.mark.anyio

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode

SESSION = b"s" * 16
BODY = _encode(b"x" * 100)
NOTE = {"text": "x" * 1000}
STATE = [{"role": "user", "content": "x" * 200} for _ in range(4)]
THREAD: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


class Counter:
    """Instructions that were executed while it was on."""

    def __init__(self) -> None:
        self.instructions = 0

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped

    def _stepped(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        self.instructions += event == "opcode"
        return self._stepped

    @contextmanager
    def on(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)


async def instructions(call: Callable[[], Awaitable[object]], times: int = 20) -> float:
    """Instructions of one call, once it is warm."""
    for _ in range(3):
        await call()
    counter = Counter()
    with counter.on():
        for _ in range(times):
            await call()
    return counter.instructions / times


class Loopback:
    """A client whose shard is an actor that it calls: what travels is encoded, without a socket."""

    def __init__(self, folder: Path) -> None:
        self.table = even_table(1, 2)
        self.actor = ShardActor(str(folder))
        self.applied = Counter()
        self._seq = 0

    def shard_of(self, command: Command) -> int:
        return 0

    async def ask(self, command: Command) -> Reply:
        return self.ask_sync(command)

    async def ask_each(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        return self.ask_each_sync(asks)

    def ask_each_sync(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        return [self.ask_sync(command) for _, command in asks]

    def ask_sync(self, command: Command) -> Reply:
        body = msgspec.Raw(_encode(command))
        seq, self._seq = self._seq, self._seq + 1
        tracing = sys.gettrace()
        sys.settrace(None)  # counted apart
        with self.applied.on():
            reply = self.actor.handle(Call(SESSION, seq, seq, body))
            self.actor.commit()
        sys.settrace(tracing)
        assert isinstance(reply, bytes)
        return _decode(reply)


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    client = Loopback(tmp_path)
    yield client
    client.actor.close()


class Ratios:
    """What a call costs here, as a multiple of what it costs in memory."""

    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback

    async def __call__(
        self, ours: Callable[[], Awaitable[object]], reference: Callable[[], Awaitable[object]]
    ) -> tuple[float, float]:
        """(caller's part: encode and decode, actor's part: apply and commit)."""
        usual = await instructions(reference)
        for _ in range(3):
            await ours()
        self._loopback.applied.instructions = 0
        client = await instructions(ours)
        return client / usual, self._loopback.applied.instructions / 23 / usual


@pytest.fixture
def ratios(loopback: Loopback) -> Ratios:
    return Ratios(loopback)


def puts(saver: BaseCheckpointSaver[str]) -> Callable[[], Awaitable[object]]:
    """Checkpoints of one thread, one after the other; made beforehand, so only puts are counted."""
    made: list[Checkpoint] = []
    for number in range(60):
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"messages": STATE}
        checkpoint["channel_versions"] = {"messages": f"{number:04}"}
        made.append(checkpoint)
    made.reverse()

    def put() -> Awaitable[object]:
        checkpoint = made.pop()
        metadata: CheckpointMetadata = {"source": "loop", "step": len(made), "parents": {}}
        return saver.aput(THREAD, checkpoint, metadata, checkpoint["channel_versions"])

    return put


def writes(saver: BaseCheckpointSaver[str]) -> Callable[[], Awaitable[object]]:
    tasks = iter(range(1000))
    at: RunnableConfig = {"configurable": {**THREAD["configurable"], "checkpoint_id": "1"}}
    return lambda: saver.aput_writes(at, [("messages", STATE)], str(next(tasks)))


async def gets(saver: BaseCheckpointSaver[str]) -> Callable[[], Awaitable[object]]:
    await puts(saver)()
    return lambda: saver.aget_tuple(THREAD)


def store_puts(store: BaseStore) -> Callable[[], Awaitable[object]]:
    keys = iter(range(1000))
    return lambda: store.aput(("users", "a"), str(next(keys)), NOTE)


async def store_gets(store: BaseStore) -> Callable[[], Awaitable[object]]:
    await store.aput(("users", "a"), "k", NOTE)
    return lambda: store.aget(("users", "a"), "k")


def check(found: tuple[float, float], client: float, actor: float) -> None:
    """Compare (caller's, actor's) ratios with their bounds."""
    print(f"caller {found[0]:.2f}, actor {found[1]:.2f} times what memory takes")
    assert found[0] <= client, f"the caller's part has grown: {found[0]:.2f} > {client}"
    assert found[1] <= actor, f"the actor's part has grown: {found[1]:.2f} > {actor}"


async def test_a_checkpoint_is_stored(loopback: Loopback, ratios: Ratios) -> None:
    saver = AsyncCheckpointSaver(loopback)
    check(await ratios(puts(saver), puts(InMemorySaver())), client=2.8, actor=3.75)


async def test_writes_are_stored(loopback: Loopback, ratios: Ratios) -> None:
    saver = AsyncCheckpointSaver(loopback)
    check(await ratios(writes(saver), writes(InMemorySaver())), client=3.25, actor=8.1)


async def test_a_checkpoint_is_fetched(loopback: Loopback, ratios: Ratios) -> None:
    saver, reference = AsyncCheckpointSaver(loopback), InMemorySaver()
    check(await ratios(await gets(saver), await gets(reference)), client=1.4, actor=1.36)


async def test_an_item_is_stored(loopback: Loopback, ratios: Ratios) -> None:
    store = AsyncStore(loopback)
    check(await ratios(store_puts(store), store_puts(InMemoryStore())), client=0.96, actor=3.55)


async def test_an_item_is_fetched(loopback: Loopback, ratios: Ratios) -> None:
    store, reference = AsyncStore(loopback), InMemoryStore()
    check(
        await ratios(await store_gets(store), await store_gets(reference)), client=1.63, actor=1.62
    )


@pytest.mark.parametrize(
    ("work", "bound"),
    [
        ((puts, InMemorySaver, "checkpointer"), 3.7),
        ((writes, InMemorySaver, "checkpointer"), 4.5),
        ((gets, InMemorySaver, "checkpointer"), 2.1),
        ((store_puts, InMemoryStore, "store"), 1.57),
        ((store_gets, InMemoryStore, "store"), 2.2),
    ],
    ids=["put", "writes", "get", "store put", "store get"],
)
async def test_local_mode_calls(work: tuple[Any, Any, str], bound: float) -> None:
    made, reference, part = work

    async def of(memory: object) -> float:
        calls = made(memory)
        return await instructions(await calls if isawaitable(calls) else calls)

    usual = await of(reference())
    async with MemoryCluster(mode="local") as memory:
        found = await of(getattr(memory, part)) / usual
    print(f"{found:.2f} times what memory takes")
    assert found <= bound, f"a call has grown: {found:.2f} > {bound}"


async def test_a_graph_runs(loopback: Loopback, ratios: Ratios) -> None:
    """Three nodes: a get, five checkpoints and four times writes, with LangGraph around them."""

    def runs(saver: BaseCheckpointSaver[Any]) -> Callable[[], Awaitable[object]]:
        graph = subject(saver, InMemoryStore()).graph
        threads = iter(range(1000))
        return lambda: graph.ainvoke(
            {"messages": messages(4, 100)}, {"configurable": {"thread_id": f"run {next(threads)}"}}
        )

    usual = runs(InMemorySaver())
    check(await ratios(runs(AsyncCheckpointSaver(loopback)), usual), client=1.1, actor=0.22)
    async with MemoryCluster(mode="local") as memory:
        local = await instructions(runs(memory.checkpointer)) / await instructions(usual)
    print(f"local {local:.3f} times what memory takes")
    assert local <= 1.16, f"a run in local mode has grown: {local:.2f}"


def established() -> tuple[ClientChannel, Any]:
    """Two ends of a connection whose handshake is done."""
    secret = Secret(b"s" * 32)
    client, server = client_channel(secret, 1 << 20), server_channel(secret, 1 << 20)
    while not (client.established and server.established):
        list(server.receive(b"".join(client.take())))
        list(client.receive(b"".join(server.take())))
    return client, server


async def test_a_request_and_its_reply_travel(loopback: Loopback) -> None:
    """One by one, as a multiple of what a get from memory costs; and 64 of them together."""
    client, server = established()

    async def exchange(count: int) -> None:
        for seq in range(count):
            client.send(Request(seq, 0, 30_000, NO_BODY), BODY)
        (asked,) = server.receive(b"".join(client.take()))
        for request in asked:
            server.send(ReplyMessage(request.seq, NO_BODY), BODY)
        (answered,) = client.receive(b"".join(server.take()))
        assert len(answered) == count

    usual = await instructions(await store_gets(InMemoryStore()))
    alone = await instructions(lambda: exchange(1)) / usual
    together = await instructions(lambda: exchange(64)) / 64 / usual
    print(f"alone {alone:.2f}, together {together:.2f} times what a get from memory takes")
    assert alone <= 3.6, f"a frame has become more expensive: {alone:.2f}"
    assert together <= 0.82, f"a message in a frame has become more expensive: {together:.2f}"


def test_what_is_counted_is_counted() -> None:
    """A guard that sees nothing would guard nothing."""

    def work(times: int) -> int:
        return sum(number for number in range(times))

    few, many = Counter(), Counter()
    with few.on():
        work(10)
    with many.on():
        work(1000)
    assert few.instructions > 10
    assert many.instructions > 50 * few.instructions
