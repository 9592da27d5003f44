"""Channel values of checkpoints: kept, versioned, serialized, copied."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from tests.support.faces import SaverFace, checkpoint_of, config_of, unique
from tests.support.shift_cipher import Shift

pytestmark = pytest.mark.anyio


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
