"""Writes that come faster than the memory takes them wait, and fail only at their deadline."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import BackpressureError, OutcomeUnknownError
from tests.conftest import mode_params, settings_of
from tests.support.faces import SaverFace, checkpoint_of, config_of

pytestmark = pytest.mark.anyio

BACKLOG = 1 << 20
MODES = pytest.mark.parametrize(
    "mode", mode_params("inline", "inline-journal", "subprocess", "dragon", slow=("dragon",))
)


class Documents(TypedDict, total=False):
    docs: Annotated[list[str], operator.add]
    size: int


def fan_out(tasks: int) -> StateGraph[Any, Any, Any, Any]:
    def load(state: Documents) -> Documents:
        return {"docs": ["x" * state["size"]]}

    builder: StateGraph[Any, Any, Any, Any] = StateGraph(Documents)
    builder.add_node("load", load)
    builder.add_conditional_edges(
        START, lambda state: [Send("load", {"size": state["size"]})] * tasks, ["load"]
    )
    return builder


@MODES
async def test_parallel_tasks_write_more_than_the_backlog_with_every_durability(mode: str) -> None:
    """24 tasks of a quarter of it each, and one step of three times as much."""
    many, one = fan_out(24), fan_out(1)
    async with MemoryCluster(**settings_of(mode), thread_backlog=BACKLOG) as memory:
        many_, one_ = (b.compile(checkpointer=memory.checkpointer) for b in (many, one))
        for durability in ("async", "sync", "exit"):
            for graph, size, found in ((many_, BACKLOG // 4, 24), (one_, 3 * BACKLOG, 1)):
                for blocking in (False, True):
                    config = config_of(f"{durability}-{found}-{blocking}")
                    if blocking:
                        result = await asyncio.to_thread(
                            graph.invoke, {"size": size}, config, durability=durability
                        )
                    else:
                        result = await graph.ainvoke({"size": size}, config, durability=durability)
                    assert list(map(len, result["docs"])) == [size] * found
                    assert (await graph.aget_state(config)).values == result


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_what_is_under_way_for_one_thread_is_bounded_and_the_rest_waits(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode), thread_backlog=BACKLOG) as memory:
        saver = SaverFace(memory.checkpointer, blocking=False)
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        config = await saver.put(config_of("busy"), checkpoint_of())
        other = await saver.put(config_of("other"), checkpoint_of())
        connection = memory.client._actors[0].connection()  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGSTOP)
        try:
            writes = [
                asyncio.ensure_future(saver.put_writes(config, [("a", "x" * 300_000)], str(n)))
                for n in range(10)
            ]
            writes.append(asyncio.ensure_future(saver.put_writes(other, [("a", "x" * 3_000_000)])))
            await asyncio.sleep(0.3)
            sizes = [len(pending.body) for pending in connection._session]
            assert not any(write.done() for write in writes)
            reading = asyncio.ensure_future(saver.found(config))  # reads do not wait in that line
            deleting = asyncio.ensure_future(saver.saver.adelete_thread("busy"))  # after all writes
            await asyncio.sleep(0.1)
            assert len(connection._session) == len(sizes) + 1
        finally:
            os.kill(pid, signal.SIGCONT)
        assert sum(size < 1_000_000 for size in sizes) == 4
        await asyncio.gather(*writes, reading, deleting)
        assert await saver.get(config) is None
        assert len((await saver.found(other)).pending_writes or ()) == 1


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_a_write_whose_turn_does_not_come_names_the_settings(mode: str) -> None:
    settings = {**settings_of(mode), "thread_backlog": BACKLOG, "request_timeout": 1.0}
    async with MemoryCluster(**settings) as memory:
        saver = SaverFace(memory.checkpointer, blocking=False)
        config = await saver.put(config_of("busy"), checkpoint_of())
        pid = (await memory.status()).actors[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            writes = [saver.put_writes(config, [("a", "x" * BACKLOG)], str(n)) for n in range(3)]
            async with asyncio.timeout(10):
                results = await asyncio.gather(*writes, return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert isinstance(results[0], OutcomeUnknownError)
        refused = [result for result in results if isinstance(result, BackpressureError)]
        assert refused
        assert "thread_backlog=1048576" in str(refused[0])
        assert "request_timeout" in str(refused[0])
        await saver.put_writes(config, [("a", "x")], "later")  # there is room again
