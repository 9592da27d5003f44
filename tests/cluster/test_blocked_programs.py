"""Programs that read no answers for a while: blocked event loops, stopped processes."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph

from flowgentic_actors import MemoryCluster
from flowgentic_actors.deadlines import timeout
from tests.conftest import mode_params
from tests.support.processes import eventually, python

pytestmark = pytest.mark.anyio

TIMEOUT = 1.0
BLOCK = 1.6


def settings_of(mode: str, folder: Path) -> dict[str, Any]:
    """With a short deadline; a local cluster waits for a journal that a thread syncs."""
    if mode == "inline":
        return {"mode": "local", "request_timeout": TIMEOUT}
    if mode == "inline-journal":
        local = {"mode": "local", "persist_path": folder / "memory", "ack": "disk"}
        return {**local, "request_timeout": TIMEOUT}
    return {
        "mode": "distributed",
        "spawner": mode,
        "fallback_to_local": False,
        "request_timeout": TIMEOUT,
    }


MODES = pytest.mark.parametrize(
    "mode",
    # Without a journal a local call never waits: with one it goes the same way, and waits too.
    mode_params("inline", "inline-journal", "subprocess", "dragon", slow=("inline", "dragon")),
)


class Said(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def blocking_graph() -> StateGraph[Any, Any, Any, Any]:
    async def large(state: Said) -> Said:
        return {"said": ["a" * 200_000]}

    async def blocking(state: Said) -> Said:
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        return {"said": ["blocked"]}

    async def after(state: Said) -> Said:
        return {"said": ["after"]}

    builder: StateGraph[Any, Any, Any, Any] = StateGraph(Said)
    builder.add_node("large", large)
    builder.add_node("blocking", blocking)
    builder.add_node("after", after)
    builder.add_edge(START, "large")
    builder.add_edge("large", "blocking")
    builder.add_edge("blocking", "after")
    return builder


@MODES
async def test_a_node_that_blocks_longer_than_the_deadline_costs_no_run(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with MemoryCluster(**settings_of(mode, tmp_path)) as memory:
        graph = blocking_graph().compile(checkpointer=memory.checkpointer, store=memory.store)
        for durability in ("async", "sync"):
            config: Any = {"configurable": {"thread_id": durability}}
            with caplog.at_level(logging.WARNING, logger="flowgentic_actors"):
                result = await graph.ainvoke({"said": ["in"]}, config, durability=durability)
            assert len(result["said"]) == 4
            assert (await graph.aget_state(config)).values == result
        puts = [memory.store.aput(("a", "b"), str(n), {"v": "x" * 10_000}) for n in range(50)]
        searches = [memory.store.asearch(("a",), limit=100) for _ in range(5)]
        asked = [asyncio.ensure_future(call) for call in (*puts, *searches)]
        await asyncio.sleep(0)
        time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
        await asyncio.gather(*asked)
        assert len(await memory.store.asearch(("a",), limit=100)) == 50
        if mode == "inline":
            return  # nothing ever waits

        async def told() -> bool:
            return any(event.kind == "loop_blocked" for event in await memory.recent_events())

        await eventually(told)
        events = [e for e in await memory.recent_events() if e.kind == "loop_blocked"]
        assert len(events) == 1  # of three blocks within ten seconds
        assert f"pid {os.getpid()}" in events[0].detail
        assert "event loop was blocked" in caplog.text


async def test_a_blocked_loop_that_does_not_use_the_cluster_is_no_event_of_it() -> None:
    async def blocked() -> None:
        async with timeout(5):
            await asyncio.sleep(0.2)
            time.sleep(BLOCK)  # noqa: ASYNC251 - that is what is tested
            await asyncio.sleep(0.5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async with MemoryCluster(mode="distributed", spawner="subprocess") as memory:
        await memory.store.aput(("a",), "key", {})
        await asyncio.to_thread(asyncio.run, blocked())
        assert "loop_blocked" not in {event.kind for event in await memory.recent_events()}


PROGRAM = """
    import asyncio, json, sys, threading
    from flowgentic_actors import MemoryCluster

    errors, calls, over = [], 0, threading.Event()

    def noted(error):
        errors.append(f"{type(error).__name__}: {error}")

    def blocking(store):
        global calls
        while not over.is_set():
            try:
                store.put(("a",), "sync", {"v": "x" * 100_000})
                calls += 1
            except Exception as error:
                noted(error)

    async def main():
        global calls
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            threads = [threading.Thread(target=blocking, args=(memory.store,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline).add_done_callback(
                lambda _: over.set()
            )
            print("ready", flush=True)
            while not over.is_set():
                puts = [memory.store.aput(("a",), str(n), {"v": "x" * 100_000}) for n in range(8)]
                for result in await asyncio.gather(*puts, return_exceptions=True):
                    calls += 1
                    if isinstance(result, Exception):
                        noted(result)
            for thread in threads:
                thread.join()
        print(calls, len(errors), *errors[:3], flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "mode", mode_params("inline-journal", "subprocess", "dragon", slow=("dragon",))
)
def test_a_program_that_is_stopped_and_continued_loses_no_call(mode: str, tmp_path: Path) -> None:
    settings = json.dumps(settings_of(mode, tmp_path), default=str)
    with python(PROGRAM, settings) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        for _ in range(2):
            time.sleep(0.3)
            os.kill(program.pid, signal.SIGSTOP)
            time.sleep(BLOCK)
            os.kill(program.pid, signal.SIGCONT)
        time.sleep(0.2)
        result, _ = program.communicate("over\n", timeout=60)
    calls, errors, *what = result.split(" ", 2)
    assert int(calls) > 10
    assert int(errors) == 0, what
