"""What LangGraph asks of a checkpointer, rule by rule."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- ids and order


@pytest.mark.parametrize("named", [None, ""])
async def test_no_id_means_the_latest_which_is_the_greatest(
    saver: SaverFace, named: str | None
) -> None:
    thread = unique()
    old, new = checkpoint_of({"a": "old"}), checkpoint_of({"a": "new"})
    await saver.put(config_of(thread), new)
    await saver.put(config_of(thread), old)  # arrives late

    found = await saver.found(config_of(thread, checkpoint_id=named))

    assert found.checkpoint["id"] == new["id"] > old["id"]
    assert found.checkpoint["channel_values"] == {"a": "new"}


async def test_a_checkpoint_comes_back_as_it_was_put(saver: SaverFace) -> None:
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of({"a": 1}))
    checkpoint = checkpoint_of({"a": 2, "b": {"nested": [1, "two", None]}})
    checkpoint["versions_seen"] = {"node": {"a": "1.0"}}
    stored = await saver.put(first, checkpoint, {"source": "update", "step": 7, "note": "x"})

    found = await saver.found(stored)

    assert found.checkpoint == checkpoint
    assert found.config == stored == config_of(thread, checkpoint_id=checkpoint["id"])
    assert found.parent_config == first
    assert found.metadata == {"source": "update", "step": 7, "note": "x", "parents": {}}
    assert found.pending_writes == []


async def test_what_is_not_there_is_none(saver: SaverFace) -> None:
    thread = unique()
    assert await saver.get(config_of(thread)) is None
    await saver.put(config_of(thread), checkpoint_of())
    assert await saver.get(config_of(thread, checkpoint_id=checkpoint_of()["id"])) is None
    assert await saver.get(config_of(thread, "child")) is None


async def test_a_missing_namespace_means_the_root_for_get_and_all_for_list(
    saver: SaverFace,
) -> None:
    thread = unique()
    root = await saver.put(config_of(thread), checkpoint_of())
    child = await saver.put(config_of(thread, "child:1"), checkpoint_of())

    assert (await saver.found(config_of(thread, None))).config == root
    assert await saver.ids(config_of(thread, None)) == [id_of(child), id_of(root)]
    assert await saver.ids(config_of(thread, "")) == [id_of(root)]
    assert await saver.ids(config_of(thread, "child:1")) == [id_of(child)]


# ---------------------------------------------------------------------- pending writes


async def test_the_first_write_of_an_index_wins(saver: SaverFace) -> None:
    config = await saver.put(config_of(unique()), checkpoint_of())
    await saver.put_writes(config, [("a", 1), ("b", 1)])
    await saver.put_writes(config, [("a", 2), ("b", 2), ("c", 2)])

    assert await writes_of(saver, config) == [("a", 1), ("b", 1), ("c", 2)]


@pytest.mark.parametrize("channel", [ERROR, SCHEDULED, INTERRUPT, RESUME])
async def test_the_last_write_of_a_special_channel_wins(saver: SaverFace, channel: str) -> None:
    config = await saver.put(config_of(unique()), checkpoint_of())
    await saver.put_writes(config, [(channel, "first")])
    await saver.put_writes(config, [(channel, "second")])

    assert await writes_of(saver, config) == [(channel, "second")]


async def test_a_mixed_batch_treats_each_write_by_its_own_rule(saver: SaverFace) -> None:
    config = await saver.put(config_of(unique()), checkpoint_of())
    await saver.put_writes(config, [("a", 1), (RESUME, 1), ("b", 1)])
    await saver.put_writes(config, [("a", 2), (RESUME, 2), ("b", 2), (ERROR, 2)])

    assert await writes_of(saver, config) == [(RESUME, 2), (ERROR, 2), ("a", 1), ("b", 1)]


async def test_writes_are_ordered_by_path_task_and_index(saver: SaverFace) -> None:
    config = await saver.put(config_of(unique()), checkpoint_of())
    for path, task in (("~b", "0"), ("~a", "2"), ("~a", "1"), ("", "9")):
        await saver.put_writes(config, [("x", 0), ("y", 1)], task, path)

    found = await saver.found(config)

    tasks = ["9", "1", "2", "0"]
    assert found.pending_writes == [(t, c, i) for t in tasks for i, c in enumerate("xy")]


async def test_writes_may_arrive_before_their_checkpoint(saver: SaverFace) -> None:
    thread, checkpoint = unique(), checkpoint_of({"a": 1})
    config = config_of(thread, checkpoint_id=checkpoint["id"])
    await saver.put_writes(config, [("a", "early")])

    assert await saver.get(config) is None
    assert await saver.get(config_of(thread)) is None
    assert await saver.ids(config_of(thread)) == []
    await saver.put(config_of(thread), checkpoint)

    assert await writes_of(saver, config) == [("a", "early")]


async def test_writes_belong_to_their_checkpoint_and_namespace_alone(saver: SaverFace) -> None:
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of())
    second = await saver.put(first, checkpoint_of())
    child = await saver.put(config_of(thread, "child"), checkpoint_of(id=id_of(first)))
    await saver.put_writes(first, [("a", 1)])
    await saver.put_writes(child, [("b", 1)])

    assert await writes_of(saver, first) == [("a", 1)]
    assert await writes_of(saver, second) == []
    assert await writes_of(saver, child) == [("b", 1)]


async def test_listings_carry_the_writes_too(saver: SaverFace) -> None:
    config = await saver.put(config_of(unique()), checkpoint_of())
    await saver.put_writes(config, [("a", 1)])

    assert [f.pending_writes async for f in saver.each(config)] == [[("task", "a", 1)]]


# ---------------------------------------------------------------------- configs


async def test_live_objects_in_a_config_never_travel(saver: SaverFace) -> None:
    config = config_of(unique())
    config["callbacks"] = [lambda: None]
    config["configurable"] |= {"__pregel_runtime": object(), "fn": lambda: None, "user": "ada"}
    config["metadata"] = {"live": object(), "team": "x"}

    stored = await saver.put(config, checkpoint_of())
    await saver.put_writes(config | stored, [("a", 1)])

    assert set(stored["configurable"]) == {"thread_id", "checkpoint_ns", "checkpoint_id"}
    found = await saver.found(config)
    assert found.metadata["user"] == "ada"  # type: ignore[typeddict-item]
    assert found.metadata["team"] == "x"  # type: ignore[typeddict-item]
    assert "live" not in found.metadata
    assert "fn" not in found.metadata


async def test_a_thread_id_may_be_a_number(saver: SaverFace) -> None:
    number = int(unique(), 16)
    config: Any = {"configurable": {"thread_id": number}}
    await saver.put(config, checkpoint_of({"a": 1}))

    assert (await saver.found(config)).checkpoint["channel_values"] == {"a": 1}
    assert await saver.get(config_of(str(number))) is not None


async def test_ids_may_hold_any_character(saver: SaverFace) -> None:
    thread = f"{unique()} /:.|*\N{SNOWMAN}\n\0'\""
    stored = await saver.put(config_of(thread, "ns:1|ns:2"), checkpoint_of({"a": 1}))

    assert (await saver.found(stored)).config == stored
    assert await saver.ids(config_of(thread, None)) == [id_of(stored)]


async def test_a_config_without_a_thread_is_refused(saver: SaverFace) -> None:
    with pytest.raises(InvalidRequestError, match="thread_id"):
        await saver.get({"configurable": {}})
    with pytest.raises(InvalidRequestError, match="thread_id"):
        await saver.put({}, checkpoint_of())
    with pytest.raises(InvalidRequestError, match="checkpoint_id"):
        await saver.put_writes(config_of(unique()), [("a", 1)])
    marker = unique()
    stored = await saver.put(config_of(unique()), checkpoint_of(), {"marker": marker})
    without: list[RunnableConfig] = [
        {"configurable": {}},
        {"configurable": {"checkpoint_ns": ""}},
        {"tags": ["a"]},
    ]
    for config in without:
        with pytest.raises(KeyError):  # as LangGraph's own
            list(InMemorySaver().list(config))
        with pytest.raises(InvalidRequestError, match="thread_id"):
            await saver.ids(config)
    all_threads: list[RunnableConfig | None] = [None, {}]
    for config_of_all in all_threads:
        assert await saver.ids(config_of_all, filter={"marker": marker}) == [id_of(stored)]


def test_versions_grow_and_differ_on_every_branch(memory: MemoryCluster) -> None:
    saver = memory.checkpointer
    first = saver.get_next_version(None, None)
    branches = {saver.get_next_version(first, None) for _ in range(100)}

    assert len(branches) == 100
    assert all(version > first for version in branches)
    assert all(saver.get_next_version(version, None) > version for version in branches)


# ---------------------------------------------------------------------- threads and many at once


async def test_delete_thread_forgets_all_of_it_and_nothing_else(saver: SaverFace) -> None:
    gone, kept = unique(), unique()
    for thread in (gone, kept):
        for ns in ("", "child"):
            config = await saver.put(config_of(thread, ns), checkpoint_of({"a": 1}))
            await saver.put_writes(config, [("a", 1)])

    await saver.delete_thread(gone)
    await saver.delete_thread(gone)  # it is not there any more, which is fine

    assert await saver.ids(config_of(gone, None)) == []
    assert await saver.get(config_of(gone)) is None
    assert len(await saver.ids(config_of(kept, None))) == 2
    again = await saver.put(config_of(gone), checkpoint_of({"a": 2}))
    found = await saver.found(again)
    assert found.checkpoint["channel_values"] == {"a": 2}
    assert found.pending_writes == []


async def test_many_calls_at_once_do_not_mix(memory: MemoryCluster) -> None:
    saver, marker = memory.checkpointer, unique()

    async def live(number: int) -> CheckpointTuple | None:
        config = config_of(f"{marker}-{number}")
        config = await saver.aput(config, checkpoint_of({"n": number}), {}, {})
        await saver.aput_writes(config, [("n", number)], "task")
        return await saver.aget_tuple(config)

    for number, found in enumerate(await asyncio.gather(*map(live, range(100)))):
        assert found is not None
        assert found.checkpoint["channel_values"] == {"n": number}
        assert found.pending_writes == [("task", "n", number)]


async def writes_of(saver: SaverFace, config: Any) -> list[tuple[str, Any]]:
    found = await saver.found(config)
    return [(channel, value) for _, channel, value in found.pending_writes or []]


async def test_writes_of_nothing_may_be_under_way_together(memory: MemoryCluster) -> None:
    """None takes no bytes when it is stored."""
    saver = memory.checkpointer
    config = await saver.aput(config_of(unique()), checkpoint_of(), {}, {})
    await asyncio.gather(*(saver.aput_writes(config, [("a", None)], f"t{n}") for n in range(5)))
    found = await saver.aget_tuple(config)
    assert found is not None
    assert len(found.pending_writes or ()) == 5


async def test_any_kind_of_text_is_an_id(saver: SaverFace) -> None:
    class Name(StrEnum):
        NS = "child"
        CHANNEL = "a"

    config = await saver.put(config_of(unique(), Name.NS), checkpoint_of({Name.CHANNEL: 1}))
    await saver.put_writes(config, [(Name.CHANNEL, 2)], Name.NS)
    found = await saver.found(config)
    assert found.config["configurable"]["checkpoint_ns"] == "child"
    assert found.checkpoint["channel_values"] == {"a": 1}
    assert found.pending_writes == [("child", "a", 2)]
