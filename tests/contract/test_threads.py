"""Whole threads: copied, and followed back along their parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.types import ERROR

from flowgentic_actors.engine import thread_queries
from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import SaverFace, checkpoint_of, config_of, unique

pytestmark = pytest.mark.anyio


async def written(saver: SaverFace, thread: str) -> list[RunnableConfig]:
    """A thread with a fork, a child namespace, unchanged channels and writes of every kind."""
    first = await saver.put(config_of(thread), checkpoint_of({"a": 1, "b": "kept"}))
    left = checkpoint_of({"a": 2, "b": "kept"})
    left["channel_versions"]["b"] = (await saver.found(first)).checkpoint["channel_versions"]["b"]
    second = await saver.put(first, left, new_versions={"a": left["channel_versions"]["a"]})
    right = await saver.put(first, checkpoint_of({"a": 3, "c": [1, 2]}))
    child = await saver.put(config_of(thread, "child:1"), checkpoint_of({"a": 4}))
    await saver.put_writes(second, [("a", "w1"), ("b", "w2")], "task-1", "path-b")
    await saver.put_writes(second, [("a", "w3"), (ERROR, "bad")], "task-2", "path-a")
    await saver.put_writes(config_of(thread, checkpoint_id=checkpoint_of()["id"]), [("a", "early")])
    return [first, second, right, child]


async def contents(saver: SaverFace, thread: str) -> list[Any]:
    """Everything of a thread that its own name does not tell."""
    return [
        (
            {**found.config["configurable"], "thread_id": ""},
            found.checkpoint,
            found.metadata,
            found.parent_config and found.parent_config["configurable"]["checkpoint_id"],
            found.pending_writes,
        )
        async for found in saver.each(config_of(thread, None))
    ]


async def test_a_copied_thread_is_whole_and_goes_its_own_way(saver: SaverFace) -> None:
    source, target = unique(), unique()
    configs = await written(saver, source)
    before = await contents(saver, source)
    assert len(before) == 4

    await saver.copy_thread(source, target)
    await saver.copy_thread(source, target)  # once more changes nothing

    assert await contents(saver, target) == before
    await saver.put(config_of(target), checkpoint_of({"a": "of the copy"}))
    await saver.delete_thread(target)
    assert await contents(saver, source) == before
    assert (await saver.found(configs[1])).checkpoint["channel_values"] == {"a": 2, "b": "kept"}


async def test_a_copied_thread_keeps_the_writes_of_checkpoints_that_are_to_come(
    saver: SaverFace,
) -> None:
    source, target = unique(), unique()
    late = checkpoint_of({"a": 1})
    await saver.put_writes(config_of(source, checkpoint_id=late["id"]), [("a", "early")], "task")
    await saver.copy_thread(source, target)
    stored = await saver.put(config_of(target), late)
    assert (await saver.found(stored)).pending_writes == [("task", "a", "early")]


async def test_a_thread_is_copied_page_by_page(
    saver: SaverFace, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "inline":  # where the shard is in this process
        monkeypatch.setattr(thread_queries, "PAGE_BYTES", 300)
    source, target = unique(), unique()
    config = config_of(source)
    for step in range(12):
        config = await saver.put(config, checkpoint_of({"a": step, "text": "x" * 200_000}))
    await saver.copy_thread(source, target)
    assert await contents(saver, target) == await contents(saver, source)


async def test_copying_onto_itself_or_from_nothing_changes_nothing(saver: SaverFace) -> None:
    thread, nothing = unique(), unique()
    await written(saver, thread)
    before = await contents(saver, thread)
    await saver.copy_thread(thread, thread)
    await saver.copy_thread(nothing, thread)
    assert await contents(saver, thread) == before
    await saver.copy_thread(nothing, unique())


async def test_the_history_of_channels_is_that_of_the_default_walk(saver: SaverFace) -> None:
    thread = unique()
    config = await saver.put(config_of(thread), checkpoint_of({"seeded": "s", "other": 0}))
    configs = [config]
    for step in range(6):
        await saver.put_writes(config, [("seeded", step), ("delta", -step)], f"t{step}", "p")
        await saver.put_writes(config, [("delta", 100 + step)], f"u{step}", "a")
        if step == 3:  # a fork, whose writes are not on the way
            fork = await saver.put(config, checkpoint_of({"other": "fork"}))
            await saver.put_writes(fork, [("delta", "of the fork")], "f")
        config = await saver.put(config, checkpoint_of({"other": step}))
        configs.append(config)
    channels = ["delta", "seeded", "other", "none"]
    for config in [*configs, config_of(thread), config_of(unique())]:
        default = BaseCheckpointSaver.get_delta_channel_history(
            saver.saver, config=config, channels=channels
        )
        assert await saver.channel_history(config, channels) == default
    assert await saver.channel_history(config_of(thread), []) == {}
    found: Mapping[str, Any] = await saver.channel_history(config_of(thread), channels)
    assert found["seeded"]["seed"] == "s"
    assert "seed" not in found["delta"]
    assert [value for _, _, value in found["delta"]["writes"]][:2] == [100, 0]


async def test_parents_that_go_in_a_circle_end_the_walk(saver: SaverFace) -> None:
    thread = unique()
    one, two = checkpoint_of(), checkpoint_of()
    await saver.put(config_of(thread, checkpoint_id=two["id"]), one)
    await saver.put(config_of(thread, checkpoint_id=one["id"]), two)
    channels: Sequence[str] = ["a"]
    assert await saver.channel_history(config_of(thread), channels) == {"a": {"writes": []}}


# ---------------------------------------------------------------------- forgetting


async def test_what_a_pruned_checkpoint_shares_with_a_kept_one_stays(saver: SaverFace) -> None:
    thread = unique()
    config = config_of(thread)
    first = checkpoint_of({"static": "long", "step": 0})
    config = await saver.put(config, first)
    for step in range(1, 5):
        following = checkpoint_of({"static": "long", "step": step})
        following["channel_versions"]["static"] = first["channel_versions"]["static"]
        news = {"step": following["channel_versions"]["step"]}
        config = await saver.put(config, following, new_versions=news)
        await saver.put_writes(config, [("step", "pending")])

    await saver.prune([thread])

    (left,) = [found async for found in saver.each(config_of(thread))]
    assert left.checkpoint["channel_values"] == {"static": "long", "step": 4}
    assert left.pending_writes == [("task", "step", "pending")]
    await saver.prune([thread])  # nothing more to forget
    assert (await saver.found(config)).checkpoint == left.checkpoint


async def test_what_delta_channels_are_made_from_is_not_pruned(saver: SaverFace) -> None:
    thread = unique()
    config = await saver.put(config_of(thread), checkpoint_of({"other": "old"}))
    configs = [await saver.put(config, checkpoint_of({"delta": "snapshot"}))]
    for step in range(3):
        await saver.put_writes(configs[-1], [("delta", step)], f"t{step}")
        since = {"counters_since_delta_snapshot": {"delta": (step + 1, step + 1)}}
        configs.append(await saver.put(configs[-1], checkpoint_of({"other": step}), since))
    before = await saver.channel_history(configs[-1], ["delta"])
    assert [value for _, _, value in before["delta"]["writes"]] == [0, 1, 2]
    assert before["delta"]["seed"] == "snapshot"

    await saver.prune([thread])

    assert await saver.ids(config_of(thread)) == [
        c["configurable"]["checkpoint_id"] for c in configs[::-1]
    ]
    assert await saver.channel_history(configs[-1], ["delta"]) == before


async def test_runs_are_forgotten_over_all_threads_and_others_keep_what_they_share(
    saver: SaverFace,
) -> None:
    gone, kept = unique(), unique()
    threads_ = [unique() for _ in range(6)]
    for thread in threads_:
        old = checkpoint_of({"a": "old", "shared": "s"})
        config = await saver.put(config_of(thread), old, {"run_id": gone})
        await saver.put_writes(config, [("a", "w")])
        new = checkpoint_of({"a": "new", "shared": "s"})
        new["channel_versions"]["shared"] = old["channel_versions"]["shared"]
        news = {"a": new["channel_versions"]["a"]}
        await saver.put(config, new, {"run_id": kept}, news)

    await saver.delete_for_runs([gone, unique()])

    for thread in threads_:
        (left,) = [found async for found in saver.each(config_of(thread))]
        assert left.metadata["run_id"] == kept
        assert left.checkpoint["channel_values"] == {"a": "new", "shared": "s"}
    await saver.delete_for_runs([kept])
    for thread in threads_:
        assert await saver.ids(config_of(thread)) == []


async def test_pruning_in_an_unknown_way_is_refused(saver: SaverFace) -> None:
    with pytest.raises(InvalidRequestError, match="keep_latest"):
        await saver.prune([unique()], strategy="keep_some")
