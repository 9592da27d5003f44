"""What LangGraph asks of a checkpointer, rule by rule."""

from __future__ import annotations

import asyncio
import copy
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from flowgentic_actors.engine import pace, thread_queries
from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique
from tests.support.shift_cipher import Shift

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


async def test_a_listing_is_newest_first_over_all_threads_and_namespaces(
    saver: SaverFace,
) -> None:
    marker = unique()
    put = []
    for step in range(24):
        config = config_of(f"{marker}-{step % 8}", ("", "child")[step % 2])
        put.append(id_of(await saver.put(config, checkpoint_of(), {"marker": marker})))

    assert await saver.ids(None, filter={"marker": marker}) == put[::-1]
    assert await saver.ids(None, filter={"marker": marker}, limit=5) == put[:-6:-1]
    listed = []
    async with aclosing(saver.each(None)) as listing:
        async for found in listing:  # up to ours: long conversations are older
            if found.metadata.get("marker") == marker:
                listed.append(id_of(found.config))
            if len(listed) == len(put):
                break
    assert listed == put[::-1]


async def test_before_is_strict_and_looks_at_the_id_alone(saver: SaverFace) -> None:
    thread = unique()
    ids = [id_of(await saver.put(config_of(thread), checkpoint_of())) for _ in range(4)]

    before = config_of("another thread", "another namespace", ids[2])

    assert await saver.ids(config_of(thread), before=before) == [ids[1], ids[0]]
    assert await saver.ids(config_of(thread), before=before, limit=1) == [ids[1]]
    assert await saver.ids(config_of(thread), before=config_of(thread)) == ids[::-1]


async def test_limit_counts_what_is_given_out(saver: SaverFace) -> None:
    thread = unique()
    ids = [id_of(await saver.put(config_of(thread), checkpoint_of())) for _ in range(3)]

    assert await saver.ids(config_of(thread), limit=0) == []
    assert await saver.ids(config_of(thread), limit=2) == [ids[2], ids[1]]
    assert await saver.ids(config_of(thread), limit=2**63 - 1) == ids[::-1]
    with pytest.raises(InvalidRequestError, match="limit"):
        await saver.ids(config_of(thread), limit=-1)


async def test_a_config_with_an_id_lists_that_checkpoint(saver: SaverFace) -> None:
    thread = unique()
    wanted = await saver.put(config_of(thread), checkpoint_of())
    await saver.put(config_of(thread), checkpoint_of())

    assert await saver.ids(wanted) == [id_of(wanted)]


async def test_filters_compare_scalars_and_nested_metadata(saver: SaverFace) -> None:
    thread = unique()
    described: list[dict[str, Any]] = [
        {"step": 1, "score": 0.5, "tags": ["a"]},
        {"step": 2, "score": 0.5, "tags": ["a", "b"], "by": {"name": "x", "n": 1}},
        {"step": 2, "flag": None, "by": {"name": "y", "n": 1}, "huge": 2**63},
    ]
    put = [
        id_of(await saver.put(config_of(thread), checkpoint_of(), metadata))
        for metadata in described
    ]

    async def matching(**wanted: Any) -> list[int]:
        return [put.index(i) for i in await saver.ids(config_of(thread), filter=wanted)]

    assert await matching(step=2) == [2, 1]
    assert await matching(step=2, score=0.5) == [1]
    assert await matching(tags=["a"]) == [0]
    assert await matching(by={"name": "x", "n": 1}) == [1]
    assert await matching(by={"name": "x"}) == []  # equal, not a part
    assert await matching(step=2, by={"name": "y", "n": 1}) == [2]
    assert await matching(huge=2**63) == [2]
    assert await matching(step="2") == []
    assert await matching(nowhere=1) == []
    assert await saver.ids(config_of(thread), filter={"tags": ["a"]}, limit=1) == [put[0]]


# ---------------------------------------------------------------------- pages


async def test_a_listing_of_many_checkpoints_is_whole(memory: MemoryCluster) -> None:
    saver, thread = memory.checkpointer, unique()
    checkpoints = [checkpoint_of() for _ in range(thread_queries.MAX_PAGE + 40)]
    await asyncio.gather(
        *(saver.aput(config_of(thread), checkpoint, {}, {}) for checkpoint in checkpoints)
    )
    expected = [checkpoint["id"] for checkpoint in reversed(checkpoints)]

    for blocking in (False, True):
        face = SaverFace(saver, blocking=blocking)
        assert await face.ids(config_of(thread)) == expected
        assert await face.ids(config_of(thread), limit=1030) == expected[:1030]


async def test_a_listing_of_large_checkpoints_is_whole(saver: SaverFace) -> None:
    marker = unique()
    put = []
    for step in range(6):
        config = config_of(f"{marker}-{step % 2}")
        value = {"a": bytes([step]) * 400_000}  # three fill a page
        put.append(id_of(await saver.put(config, checkpoint_of(value), {"marker": marker})))

    found = [f async for f in saver.each(None, filter={"marker": marker})]

    assert [id_of(f.config) for f in found] == put[::-1]
    assert [f.checkpoint["channel_values"]["a"][0] for f in found] == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("mode", ["inline"])
async def test_a_rare_match_is_found_behind_many_that_are_none(
    saver: SaverFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages are closed after so many, even empty ones.
    monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pace, "LOOKS", 3)
    thread = unique()
    rare = await saver.put(config_of(thread), checkpoint_of(), {"rare": True})
    for _ in range(10):
        await saver.put(config_of(thread), checkpoint_of())

    assert await saver.ids(config_of(thread), filter={"rare": True}) == [id_of(rare)]


async def test_a_listing_may_be_left_half_way(saver: SaverFace) -> None:
    thread = unique()
    ids = [id_of(await saver.put(config_of(thread), checkpoint_of())) for _ in range(3)]

    async for found in saver.each(config_of(thread)):
        assert id_of(found.config) == ids[-1]
        break

    await saver.put(config_of(thread), checkpoint_of())  # nothing is held
    assert len(await saver.ids(config_of(thread))) == 4


async def test_the_saver_may_be_used_inside_a_listing(saver: SaverFace) -> None:
    thread = unique()
    for number in range(3):
        await saver.put(config_of(thread), checkpoint_of({"n": number}))

    seen = []
    async for listed in saver.each(config_of(thread)):
        again = await saver.found(listed.config)
        await saver.put_writes(listed.config, [("a", 1)])
        await saver.put(listed.config, checkpoint_of())
        seen.append(again.checkpoint["channel_values"]["n"])

    assert seen == [2, 1, 0]


# ---------------------------------------------------------------------- channel values


async def test_put_without_new_versions_loses_nothing(saver: SaverFace) -> None:
    thread = unique()
    checkpoint = checkpoint_of({"a": [1, 2], "b": "text"})

    stored = await saver.put(config_of(thread), checkpoint, new_versions={})

    assert (await saver.found(stored)).checkpoint == checkpoint


async def test_values_that_are_not_new_are_found_again(saver: SaverFace) -> None:
    thread = unique()
    first = checkpoint_of({"a": "kept", "b": "old"})
    stored = await saver.put(config_of(thread), first)
    second = checkpoint_of({"a": "kept", "b": "new"})
    second["channel_versions"]["a"] = first["channel_versions"]["a"]

    again = await saver.put(stored, second, new_versions={"b": second["channel_versions"]["b"]})

    assert (await saver.found(again)).checkpoint == second
    assert (await saver.found(stored)).checkpoint == first


async def test_values_without_versions_are_kept(saver: SaverFace) -> None:
    checkpoint = checkpoint_of({"a": 1})
    checkpoint["channel_values"]["unversioned"] = {"x": [1]}

    stored = await saver.put(config_of(unique()), checkpoint)

    assert (await saver.found(stored)).checkpoint == checkpoint


async def test_a_channel_without_a_value_stays_without_one(saver: SaverFace) -> None:
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of({"a": 1}))
    emptied = checkpoint_of()
    emptied["channel_versions"] = {"a": "2.0"}

    stored = await saver.put(first, emptied)

    found = await saver.found(stored)
    assert found.checkpoint["channel_values"] == {}
    assert found.checkpoint["channel_versions"] == {"a": "2.0"}


async def test_versions_of_any_kind_come_back(saver: SaverFace) -> None:
    checkpoint = checkpoint_of({"a": 1, "b": 2, "c": 3})
    checkpoint["channel_versions"] = {"a": 7, "b": 1.5, "c": "3.x"}

    stored = await saver.put(config_of(unique()), checkpoint)

    assert (await saver.found(stored)).checkpoint == checkpoint


async def test_what_was_put_is_not_changed_by_its_owner_later(saver: SaverFace) -> None:
    thread = unique()
    live = [1]
    checkpoint = checkpoint_of({"a": live})
    stored = await saver.put(config_of(thread), checkpoint)

    live.append(2)
    checkpoint["channel_versions"]["a"] = "other"
    found = await saver.found(stored)
    found.checkpoint["channel_values"]["a"].append(3)

    assert (await saver.found(stored)).checkpoint["channel_values"] == {"a": [1]}


async def test_values_are_serialized_before_the_first_await(memory: MemoryCluster) -> None:
    saver, thread = memory.checkpointer, unique()
    live, metadata, written = [1], {"tags": ["a"]}, ["w"]
    checkpoint = checkpoint_of({"a": live})
    version = checkpoint["channel_versions"]["a"]
    config = config_of(thread, checkpoint_id=checkpoint["id"])
    putting = asyncio.gather(
        saver.aput(config_of(thread), checkpoint, metadata, {"a": version}),  # type: ignore[arg-type]
        saver.aput_writes(config, [("a", written)], "task"),
    )
    await asyncio.sleep(0)

    live.append(2)
    written.append("changed")
    metadata["tags"].append("changed")
    checkpoint["channel_versions"]["a"] = "changed"
    await putting

    found = await saver.aget_tuple(config)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": [1]}
    assert found.checkpoint["channel_versions"] == {"a": version}
    assert dict(found.metadata) == {"tags": ["a"]}
    assert found.pending_writes == [("task", "a", ["w"])]


async def test_versions_are_those_of_the_call_also_when_values_are_asked_for(
    memory: MemoryCluster,
) -> None:
    saver, thread = memory.checkpointer, unique()
    checkpoint = checkpoint_of({"a": 1})
    expected = copy.deepcopy(checkpoint)
    putting = asyncio.ensure_future(saver.aput(config_of(thread), checkpoint, {}, {}))
    await asyncio.sleep(0)

    checkpoint["channel_values"].clear()
    checkpoint["channel_versions"]["a"] = "changed"
    await putting

    found = await saver.aget_tuple(config_of(thread))
    assert found is not None
    assert found.checkpoint == expected


async def test_a_large_value_comes_back(saver: SaverFace) -> None:
    value = bytes(range(256)) * (20 * 4096)  # 20 MB
    stored = await saver.put(config_of(unique()), checkpoint_of({"a": value}))

    assert (await saver.found(stored)).checkpoint["channel_values"]["a"] == value


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


# ---------------------------------------------------------------------- serializers


@dataclass
class Person:
    """A type that strict msgpack does not know."""

    name: str


async def test_the_serializer_may_be_replaced_after_construction(
    memory: MemoryCluster, face: str
) -> None:
    mine = SaverFace(AsyncCheckpointSaver(memory.checkpointer._client), blocking=face == "sync")
    config = await mine.put(config_of(unique()), checkpoint_of({"a": "secret text"}))

    mine.saver.serde = EncryptedSerializer(Shift())
    hidden = await mine.put(config, checkpoint_of({"a": "secret text"}))
    await mine.put_writes(hidden, [("a", "secret text")])

    found = await mine.found(hidden)
    assert found.checkpoint["channel_values"] == {"a": "secret text"}
    assert found.pending_writes == [("task", "a", "secret text")]
    assert (await mine.found(config)).checkpoint["channel_values"] == {"a": "secret text"}
    assert len(await mine.ids(config_of(hidden["configurable"]["thread_id"]))) == 2
    with pytest.raises(NotImplementedError, match="shift"):
        await SaverFace(memory.checkpointer, blocking=face == "sync").get(hidden)
    # no other saver could list it
    await memory.checkpointer.adelete_thread(hidden["configurable"]["thread_id"])


async def test_strict_msgpack_revives_only_what_is_allowed(
    memory: MemoryCluster, face: str
) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    narrow = AsyncCheckpointSaver(memory.checkpointer._client, serde=strict)
    wide = narrow.with_allowlist([(Person.__module__, Person.__name__)])
    assert isinstance(wide, AsyncCheckpointSaver)
    config = config_of(unique())
    await SaverFace(narrow, blocking=face == "sync").put(
        config, checkpoint_of({"a": Person("ada")})
    )

    async def value_in(saver: AsyncCheckpointSaver) -> Any:
        found = await SaverFace(saver, blocking=face == "sync").found(config)
        return found.checkpoint["channel_values"]["a"]

    assert await value_in(wide) == Person("ada")
    assert await value_in(narrow) == {"name": "ada"}


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
