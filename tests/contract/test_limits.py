"""Limits of names: the same in every mode, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp

from flowgentic_actors import AsyncStore, MemoryCluster
from flowgentic_actors.errors import FlowgenticError, InvalidRequestError
from tests.support.faces import SaverFace, StoreFace, checkpoint_of, config_of, unique

pytestmark = pytest.mark.anyio

HALF = "cut emoji \ud83d"
HALF_WORDS = "half of a surrogate pair"
LONG = "x" * 65_537
LONG_WORDS = "65,537 characters, at most 65,536"
DEEP = tuple(f"l{number}" for number in range(65))
DEEP_WORDS = "namespace: 65 labels, at most 64"

Call = Callable[[], Awaitable[object]]


async def expect_refused(words: str, *calls: Call) -> None:
    for call in calls:
        with pytest.raises(InvalidRequestError, match=words) as refused:
            await call()
        assert isinstance(refused.value, ValueError)
        assert isinstance(refused.value, FlowgenticError)


async def test_places_of_items_have_limits(store: StoreFace) -> None:
    root = unique()
    for namespace, key, words in (
        ((root, HALF), "k", f"namespace: .* {HALF_WORDS}"),
        ((root,), HALF, f"key: .* {HALF_WORDS}"),
        ((root, LONG), "k", f"namespace: {LONG_WORDS}"),
        ((root,), LONG, f"key: {LONG_WORDS}"),
        ((root, *DEEP[1:]), "k", DEEP_WORDS),
    ):
        calls: list[Call] = [
            lambda: store.put(namespace, key, {"v": 1}),  # noqa: B023 - called at once
            lambda: store.get(namespace, key),  # noqa: B023
        ]
        if words.endswith(HALF_WORDS):
            calls.append(lambda: store.delete(namespace, key))  # noqa: B023
        else:
            await store.delete(namespace, key)  # it might be there from an earlier version
        if len(namespace) > 1:
            calls.append(lambda: store.search(namespace))  # noqa: B023
            calls.append(lambda: store.list_namespaces(prefix=namespace))  # noqa: B023
        told = words.replace("namespace", "(namespace|prefix|path)")
        await expect_refused(told, *calls)
    await expect_refused(
        "filter: .* bytes, at most 65,536",
        lambda: store.search((root,), filter={"text": LONG}),
    )
    assert await store.search((root,)) == []
    at_most = (root, *DEEP[2:])
    await store.put(at_most, LONG[1:], {"v": 1})
    assert await store.value(at_most, LONG[1:]) == {"v": 1}


async def test_what_is_embedded_of_an_item_has_limits(memory: MemoryCluster) -> None:
    index: Any = {"dims": 1, "embed": lambda texts: [[1.0] for _ in texts], "fields": ["text"]}
    store, root = AsyncStore(memory.client, index=index), unique()
    value = {"text": "a", LONG: "b"}
    await expect_refused(
        f"index: {LONG_WORDS}", lambda: store.aput((root,), "k", value, index=[LONG])
    )
    await expect_refused(
        "index: 65,537 entries, at most 65,536",
        lambda: store.aput((root,), "k", {"tags": ["a"] * 65_537}, index=["tags[*]"]),
    )
    assert await store.asearch((root,)) == []


async def test_an_impossible_operation_keeps_its_batch_from_being_done(store: StoreFace) -> None:
    root = unique()
    good = PutOp((root,), "good", {"v": 1})
    for op, words in (
        (PutOp((root,), HALF, {"v": 1}), HALF_WORDS),
        (PutOp((root,), HALF, None), HALF_WORDS),
        (GetOp((root, HALF), "k"), HALF_WORDS),
        (PutOp((root, *DEEP), "k", {"v": 1}), "66 labels"),
        (GetOp((root,), LONG), LONG_WORDS),
        (SearchOp((root,), {"text": LONG}), "filter: .* bytes"),
        (SearchOp((root, HALF)), HALF_WORDS),
    ):
        await expect_refused(words, lambda op=op: store.batch([good, op]))  # type: ignore[misc]
    assert await store.search((root,)) == []


async def test_names_of_checkpoints_have_limits(saver: SaverFace) -> None:
    thread = unique()
    stored = await saver.put(config_of(thread), checkpoint_of())
    for text, words in ((HALF, HALF_WORDS), (LONG, LONG_WORDS)):
        versioned = checkpoint_of()
        versioned["channel_versions"] = {text: "1"}
        await expect_refused(
            f"thread_id: .*{words}",
            lambda: saver.put(config_of(text), checkpoint_of()),  # noqa: B023 - called at once
            lambda: saver.get(config_of(text)),  # noqa: B023
            lambda: saver.put_writes(config_of(text, "", "c"), [("a", 1)]),  # noqa: B023
        )
        await expect_refused(
            f"checkpoint_ns: .*{words}",
            lambda: saver.put(config_of(thread, text), checkpoint_of()),  # noqa: B023
            lambda: saver.get(config_of(thread, text)),  # noqa: B023
        )
        await expect_refused(
            f"checkpoint_id: .*{words}",
            lambda: saver.put(stored, checkpoint_of(id=text)),  # noqa: B023
            lambda: saver.get(config_of(thread, "", text)),  # noqa: B023
            lambda: saver.put_writes(config_of(thread, "", text), [("a", 1)]),  # noqa: B023
        )
        await expect_refused(
            f"parent_id: .*{words}",
            lambda: saver.put(config_of(thread, "", text), checkpoint_of()),  # noqa: B023
        )
        await expect_refused(
            f"channel_versions: .*{words}",
            lambda: saver.put(stored, versioned),  # noqa: B023
        )
        await expect_refused(
            f"task_id: .*{words}",
            lambda: saver.put_writes(stored, [("a", 1)], text),  # noqa: B023
        )
        await expect_refused(
            f"task_path: .*{words}",
            lambda: saver.put_writes(stored, [("a", 1)], "task", text),  # noqa: B023
        )
        await expect_refused(
            f"channel: .*{words}",
            lambda: saver.put_writes(stored, [(text, 1), ("a", 1)]),  # noqa: B023
        )
        await expect_refused(
            f"run_ids: .*{words}",
            lambda: saver.delete_for_runs([text]),  # noqa: B023
        )
        await expect_refused(words, lambda: saver.copy_thread(thread, text))  # noqa: B023
    await expect_refused(
        HALF_WORDS,
        lambda: saver.delete_thread(HALF),
        lambda: saver.prune([HALF]),
        lambda: saver.ids(config_of(HALF)),
        lambda: saver.ids(config_of(thread), before=config_of(thread, "", HALF)),
    )
    await saver.delete_thread(LONG)  # it might be there from an earlier version
    assert await saver.ids(config_of(LONG)) == []
    assert await saver.ids(config_of(thread, None)) == [stored["configurable"]["checkpoint_id"]]
    assert (await saver.found(stored)).pending_writes == []


async def test_versions_have_limits(saver: SaverFace) -> None:
    thread, checkpoint = unique(), checkpoint_of({"a": 1})
    odd: list[Any] = [None, 2**64, 10**400, "x" * 257, ("a",)]
    for version in odd:
        checkpoint["channel_versions"] = {"a": version}
        await expect_refused(
            r"channel_versions\['a'\]: ", lambda: saver.put(config_of(thread), checkpoint)
        )
    assert await saver.get(config_of(thread)) is None


async def test_a_channel_is_text(saver: SaverFace) -> None:
    stored = await saver.put(config_of(unique()), checkpoint_of())
    channel: Any = 5
    checkpoint = checkpoint_of()
    checkpoint["channel_versions"] = {channel: "1"}
    await expect_refused(
        "channel: 5 is of type int", lambda: saver.put_writes(stored, [(channel, 1)])
    )
    await expect_refused(
        "channel_versions: 5 is of type int", lambda: saver.put(stored, checkpoint)
    )


async def test_half_surrogates_in_metadata_are_replaced(saver: SaverFace) -> None:
    """As LangGraph's serializer replaces them in values."""
    thread = unique()
    stored = await saver.put(
        config_of(thread), checkpoint_of({"a": [HALF]}), {"title": HALF, "n": 1}
    )
    found = await saver.found(stored)
    assert found.metadata["title"] == "cut emoji ?"  # type: ignore[typeddict-item]
    assert found.checkpoint["channel_values"] == {"a": ["cut emoji ?"]}
    for title in (HALF, "cut emoji ?"):
        assert len(await saver.ids(config_of(thread), filter={"title": title, "n": 1})) == 1
    assert await saver.ids(config_of(thread), filter={"title": "cut emoji"}) == []


async def test_half_surrogates_in_values_are_replaced(store: StoreFace) -> None:
    root = unique()
    await store.put((root,), "k", {"text": HALF, "deep": {"x": [HALF]}})
    assert await store.value((root,), "k") == {
        "text": "cut emoji ?",
        "deep": {"x": ["cut emoji ?"]},
    }
    for wanted in ({"text": HALF}, {"text": {"$eq": HALF}}, {"deep": {"x": [HALF]}}):
        assert await store.keys((root,), filter=wanted) == ["k"]
    assert await store.keys((root,), filter={"text": {"$ne": HALF}}) == []


async def test_metadata_fields_that_are_no_text_are_kept(saver: SaverFace) -> None:
    thread = unique()
    odd: dict[Any, Any] = {1: 2, LONG: 3, "n": 4}
    stored = await saver.put(config_of(thread), checkpoint_of(), odd)
    found: Any = (await saver.found(stored)).metadata
    assert (found[1], found[LONG], found["n"]) == (2, 3, 4)
    for wanted in ({1: 2}, {LONG: 3}, {"n": 4}, odd):
        assert len(await saver.ids(config_of(thread), filter=wanted)) == 1
    assert await saver.ids(config_of(thread), filter={1: 3}) == []


async def test_places_in_the_cache_have_limits(memory: MemoryCluster) -> None:
    cache, root = memory.cache, unique()
    for namespace, key, words in (
        ((root, HALF), "k", HALF_WORDS),
        ((root,), HALF, HALF_WORDS),
        ((root,), LONG, LONG_WORDS),
        ((root, *DEEP), "k", "66 labels, at most 64"),
    ):
        await expect_refused(
            words,
            lambda: cache.aget([((root,), "a"), (namespace, key)]),  # noqa: B023 - called at once
            lambda: cache.aset({((root,), "a"): (1, None), (namespace, key): (1, None)}),  # noqa: B023
        )
    await expect_refused(HALF_WORDS, lambda: cache.aclear([(root, HALF)]))
    assert await cache.aget([((root,), "a")]) == {}
