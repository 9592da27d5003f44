"""Delta histories against the walk of LangGraph's base class, over the same saver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver

from tests.support.faces import SaverFace, checkpoint_of, config_of, unique

pytestmark = pytest.mark.anyio

PROFILE = settings(
    max_examples=8,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CHANNELS = ("a", "b", "c")
LONG = ["x" * 200 + str(number) for number in range(100)]  # stored in parts


class Step(NamedTuple):
    """One checkpoint of a thread.

    Attributes:
        parent: How many checkpoints before it its parent was put; 0 for none.
        values: Of its channels: the value, and whether it has a version.
        named: Whether its versions are said to be new.
        emptied: Channels that have a version and no value.
        writes: Pending writes on it, each a channel and a task.
    """

    parent: int
    values: Mapping[str, tuple[Any, bool]]
    named: bool
    emptied: frozenset[str]
    writes: list[tuple[str, str]]


values = st.sampled_from((None, 0, "text", ["x"], LONG))
steps = st.builds(
    Step,
    st.sampled_from((1, 1, 1, 2, 0)),
    st.dictionaries(st.sampled_from(CHANNELS), st.tuples(values, st.booleans()), max_size=2),
    st.booleans(),
    st.frozensets(st.sampled_from(CHANNELS), max_size=1),
    st.lists(st.tuples(st.sampled_from(CHANNELS), st.sampled_from(("t", "u"))), max_size=3),
)


async def put(saver: SaverFace, thread: str, step: Step, before: list[str]) -> str:
    parent = before[-step.parent] if 0 < step.parent <= len(before) else None
    checkpoint = checkpoint_of({channel: value for channel, (value, _) in step.values.items()})
    versions = checkpoint["channel_versions"]
    for channel, (_, versioned) in step.values.items():
        if not versioned:
            del versions[channel]
    versions |= {channel: unique() for channel in step.emptied - step.values.keys()}
    config = config_of(thread, checkpoint_id=parent)
    stored = await saver.put(config, checkpoint, new_versions=versions if step.named else {})
    for channel, task in step.writes:
        await saver.put_writes(stored, [(channel, f"{task} wrote")], task, f"~{task}")
    return checkpoint["id"]


async def expect_same(saver: SaverFace, config: Any) -> None:
    ours = await saver.channel_history(config, CHANNELS)
    walk = BaseCheckpointSaver.get_delta_channel_history
    walked = walk(saver.saver, config=config, channels=CHANNELS)
    if not saver.blocking:
        awalk = BaseCheckpointSaver.aget_delta_channel_history
        assert await awalk(saver.saver, config=config, channels=CHANNELS) == walked
    assert ours == walked


@PROFILE
@given(drawn=st.lists(steps, min_size=1, max_size=6))
async def test_histories_are_those_of_the_base_class(saver: SaverFace, drawn: list[Step]) -> None:
    thread = unique()
    ids: list[str] = []
    for step in drawn:
        ids.append(await put(saver, thread, step, ids))
    for checkpoint_id in (*ids, "", None, "missing"):
        await expect_same(saver, config_of(thread, checkpoint_id=checkpoint_id))
    await saver.delete_thread(thread)


async def test_a_value_without_a_version_is_a_seed(saver: SaverFace) -> None:
    thread = unique()
    first = checkpoint_of({"a": 1, "b": LONG})
    del first["channel_versions"]["a"]
    del first["channel_versions"]["b"]
    stored = await saver.put(config_of(thread), first)
    await saver.put_writes(stored, [("a", "written")])
    await saver.put(stored, checkpoint_of())
    for checkpoint_id in (None, ""):
        found = await saver.channel_history(
            config_of(thread, checkpoint_id=checkpoint_id), ["a", "b"]
        )
        assert found["a"] == {"seed": 1, "writes": [("task", "a", "written")]}
        assert found["b"] == {"seed": LONG, "writes": []}
    assert (await saver.found(stored)).checkpoint["channel_versions"] == {}


async def test_what_a_kept_checkpoint_is_made_from_ends_at_a_value_without_a_version(
    saver: SaverFace,
) -> None:
    """Pruning keeps the nearest ancestor that has a value, and none behind it."""
    thread = unique()
    delta = {"counters_since_delta_snapshot": {"a": (1, 1)}}
    config = await saver.put(config_of(thread), checkpoint_of(), delta)
    seed = checkpoint_of({"a": 1})
    del seed["channel_versions"]["a"]
    config = await saver.put(config, seed, delta)
    await saver.put_writes(config, [("a", "written")])
    latest = await saver.put(config, checkpoint_of(), delta)
    await saver.prune([thread])
    assert len(await saver.ids(config_of(thread))) == 2
    found = await saver.channel_history(latest, ["a"])
    assert found["a"] == {"seed": 1, "writes": [("task", "a", "written")]}
