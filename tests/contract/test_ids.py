"""Ids of other types than text: they become text, or are refused, and are never ignored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.cache.base import FullKey

from flowgentic_actors import MemoryCluster
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.errors import FlowgenticError, InvalidRequestError
from tests.support.faces import SaverFace, StoreFace, checkpoint_of, config_of, id_of, unique

pytestmark = pytest.mark.anyio


class Marked(str):
    """Text of a type that no encoder knows."""

    __slots__ = ()


class Place(Enum):
    """Members whose text is "Place.HERE", and their value another."""

    HERE = "here"


class Turn(IntEnum):
    """Members that are numbers."""

    FIRST = 11


NO_TEXT: list[Any] = [b"a", ["a"], ("a",), {"a": 1}, object(), lambda: None, Place.HERE]
"""What cannot be an id."""

SCALARS: list[Any] = [
    *(0, 7, False, 1.5, np.int64(9), np.float64(2.5), UUID(int=1), Marked("m"), Turn.FIRST)
]


async def two_checkpoints(saver: SaverFace) -> tuple[str, RunnableConfig, RunnableConfig]:
    thread = unique()
    first = await saver.put(config_of(thread), checkpoint_of({"a": 1}))
    return thread, first, await saver.put(first, checkpoint_of({"a": 2}))


async def test_a_uuid_names_the_checkpoint_that_its_text_names(saver: SaverFace) -> None:
    thread, first, second = await two_checkpoints(saver)
    uuid: Any = UUID(id_of(first))
    by_uuid = config_of(thread, checkpoint_id=uuid)
    assert (await saver.found(by_uuid)).config == first
    assert await saver.ids(by_uuid) == [id_of(first)]
    assert await saver.ids(config_of(thread), before=by_uuid) == []
    later = config_of(thread, checkpoint_id=UUID(id_of(second)))
    assert await saver.ids(config_of(thread), before=later) == [id_of(first)]

    task: Any = UUID(int=5)
    await saver.put_writes(by_uuid, [("a", 3)], task, task)
    assert (await saver.found(first)).pending_writes == [(str(UUID(int=5)), "a", 3)]
    forked = await saver.put(by_uuid, checkpoint_of(id=UUID(int=2**127)))
    assert id_of(forked) == str(UUID(int=2**127))
    found = await saver.found(forked)
    assert found.parent_config == first
    assert found.checkpoint["id"] == id_of(forked)
    history = await saver.channel_history(
        config_of(thread, checkpoint_id=UUID(id_of(forked))), ["a"]
    )
    assert history["a"] == {"seed": 1, "writes": [(str(UUID(int=5)), "a", 3)]}


async def test_a_scalar_is_never_read_as_a_missing_id(saver: SaverFace) -> None:
    for given in SCALARS:
        await expect_an_id(saver, given)


async def expect_an_id(saver: SaverFace, given: Any) -> None:
    thread, first, second = await two_checkpoints(saver)
    text = str(given)
    by_id = config_of(thread, checkpoint_id=given)
    assert await saver.get(by_id) is None
    assert await saver.ids(by_id) == []
    assert await saver.get(config_of(thread, given)) is None
    assert await saver.ids(config_of(thread, given)) == []
    below = [i for i in (id_of(second), id_of(first)) if i < text]
    assert await saver.ids(config_of(thread), before=by_id) == below

    stored = await saver.put(config_of(given, given, given), checkpoint_of())
    try:
        assert stored["configurable"] == {
            "thread_id": text,
            "checkpoint_ns": text,
            "checkpoint_id": id_of(stored),
        }
        found = await saver.found(config_of(text, text))
        assert found.parent_config == config_of(text, text, text)
        assert type(found.config["configurable"]["thread_id"]) is str
        assert await saver.ids(config_of(given, None)) == [id_of(stored)]
        await saver.copy_thread(given, thread)
        assert id_of(stored) in await saver.ids(config_of(thread, None))
        await saver.prune([given], "delete")
        assert await saver.get(config_of(text, text)) is None
    finally:
        await saver.delete_thread(given)


async def test_an_empty_id_is_the_latest_checkpoint_and_the_root(saver: SaverFace) -> None:
    thread, _, second = await two_checkpoints(saver)
    assert (await saver.found(config_of(thread, "", ""))).config == second
    assert (await saver.found(config_of(Marked(thread), Marked(""), Marked("")))).config == second
    empty = await saver.put(config_of(""), checkpoint_of())
    try:
        assert (await saver.found(config_of(""))).config == empty
        assert await saver.ids(config_of("")) == [id_of(empty)]
    finally:
        await saver.delete_thread("")


async def test_an_invalid_id_is_refused_with_the_fields_name(saver: SaverFace) -> None:
    for given in NO_TEXT:
        await expect_no_id(saver, given)


async def expect_no_id(saver: SaverFace, given: Any) -> None:
    thread, first, _ = await two_checkpoints(saver)
    calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
        "thread_id": [
            lambda: saver.get(config_of(given)),
            lambda: saver.ids({"configurable": {"thread_id": given}}),
            lambda: saver.delete_thread(given),
        ],
        "checkpoint_ns": [
            lambda: saver.get(config_of(thread, given)),
            lambda: saver.ids(config_of(thread, given)),
        ],
        "checkpoint_id": [
            lambda: saver.get(config_of(thread, "", given)),
            lambda: saver.ids(config_of(thread, "", given)),
            lambda: saver.put(config_of(thread, "", given), checkpoint_of()),
            lambda: saver.channel_history(config_of(thread, "", given), ["a"]),
        ],
        "before": [lambda: saver.ids(config_of(thread), before=config_of(thread, "", given))],
        r"checkpoint\['id'\]": [lambda: saver.put(first, checkpoint_of(id=given))],
        "task_id": [lambda: saver.put_writes(first, [("a", 1)], given)],
        "task_path": [lambda: saver.put_writes(first, [("a", 1)], "task", given)],
        "run_ids": [lambda: saver.delete_for_runs([given])],
        "thread_ids": [lambda: saver.prune([given])],
        "source_thread_id": [lambda: saver.copy_thread(given, thread)],
        "target_thread_id": [lambda: saver.copy_thread(thread, given)],
    }
    for name, refused in calls.items():
        for call in refused:
            with pytest.raises(InvalidRequestError, match=name):
                await call()
    assert len(await saver.ids(config_of(thread))) == 2


async def test_a_thread_id_of_none_is_refused(saver: SaverFace) -> None:
    no_thread: Any = {"configurable": {"thread_id": None}}
    with pytest.raises(InvalidRequestError, match="thread_id"):
        await saver.get(no_thread)
    with pytest.raises(InvalidRequestError, match="thread_id"):
        await saver.ids(no_thread)
    with pytest.raises(InvalidRequestError, match="thread_id"):
        await saver.delete_thread(no_thread["configurable"]["thread_id"])
    with pytest.raises(InvalidRequestError, match="thread_ids"):
        await saver.prune("letters")


async def test_metadata_is_found_by_ids_of_other_types(saver: SaverFace) -> None:
    thread, uuid = unique(), UUID(unique())
    await saver.put(config_of(thread), checkpoint_of(), {"order": str(uuid), "n": 7})
    given: dict[str, Any]
    for given in ({"order": uuid}, {"order": Marked(uuid)}, {"n": np.int64(7)}, {"n": 7.0}):
        assert len(await saver.ids(config_of(thread), filter=given)) == 1, given
    for given in ({"order": UUID(int=0)}, {"n": False}, {"n": np.int64(8)}, {"order": 0}):
        assert await saver.ids(config_of(thread), filter=given) == [], given


async def test_windows_may_be_numbers_of_numpy(saver: SaverFace, store: StoreFace) -> None:
    thread, _, second = await two_checkpoints(saver)
    assert await saver.ids(config_of(thread), limit=np.int64(1)) == [id_of(second)]
    root = unique()
    await store.put((root, "a"), "k", {}, expected_version=np.int64(0))
    await store.put((root, "b"), "k", {})
    found = await store.search((root,), limit=np.int64(1), offset=np.int64(1))
    assert [item.namespace for item in found] == [(root, "b")]
    listed = await store.list_namespaces(prefix=(root,), max_depth=np.int64(1), limit=np.int64(5))
    assert listed == [(root,)]
    for given in ("5", 1.5):
        with pytest.raises(InvalidRequestError, match="limit"):
            await store.search((root,), limit=given)


async def test_keys_become_text(store: StoreFace) -> None:
    for given in SCALARS:
        await expect_a_key(store, given)


async def expect_a_key(store: StoreFace, given: Any) -> None:
    root = unique()
    await store.put((root, Marked("label")), given, {"v": 1})
    assert await store.keys((root,)) == [str(given)]
    item = await store.get((root, "label"), given)
    assert (item.namespace, item.key) == ((root, "label"), str(given))
    await store.delete((root, "label"), given)
    assert await store.get((root, "label"), given) is None


async def test_an_invalid_key_is_refused(store: StoreFace) -> None:
    for given in [None, *NO_TEXT]:
        await expect_no_key(store, given)


async def expect_no_key(store: StoreFace, given: Any) -> None:
    root = unique()
    for call in (store.get, store.delete):
        with pytest.raises(InvalidRequestError, match="key is"):
            await call((root,), given)
    with pytest.raises(InvalidRequestError, match="key is"):
        await store.put((root,), given, {})
    with pytest.raises(ValueError, match="must be strings"):  # as in LangGraph's stores
        await store.put((root, given), "k", {})
    assert await store.search((root,)) == []


async def test_keys_of_the_cache_become_text(memory: MemoryCluster) -> None:
    cache, root = memory.cache, unique()
    for given in SCALARS:
        key: FullKey = ((root, given), given)
        await cache.aset({key: (1, None)})
        assert await cache.aget([key]) == {key: 1}
        assert cache.get([((root, str(given)), str(given))]) == {
            ((root, str(given)), str(given)): 1
        }
        await cache.aclear([(root, given)])
        assert await cache.aget([key]) == {}
    for given in NO_TEXT[:1] + NO_TEXT[4:]:
        with pytest.raises(InvalidRequestError, match="key"):
            await cache.aget([((root,), given)])
        with pytest.raises(InvalidRequestError, match="namespace"):
            await cache.aset({((root, given), "k"): (1, None)})


async def test_a_checkpoint_named_by_a_uuid_is_a_branch_that_is_meant(
    memory: MemoryCluster,
) -> None:
    saver = AsyncCheckpointSaver(memory.client, detect_conflicts=True)
    face = SaverFace(saver, blocking=False)
    thread, first, _ = await two_checkpoints(face)
    found = await face.found(config_of(thread, checkpoint_id=UUID(id_of(first))))
    assert isinstance(found.config["configurable"]["checkpoint_id"], str)
    fork = await face.put(found.config, checkpoint_of())
    assert (await face.found(fork)).parent_config == first
    with pytest.raises(FlowgenticError, match="latest checkpoint"):
        await face.put(config_of(thread, checkpoint_id=UUID(int=0)), checkpoint_of())
