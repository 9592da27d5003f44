"""What LangGraph asks of a store, and the sane thing where its own stores disagree."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
)

from flowgentic_actors import MemoryCluster
from flowgentic_actors.adapters.items import VersionedItem
from flowgentic_actors.errors import InvalidRequestError, MemoryFullError, VersionConflictError
from tests.conftest import SETTINGS
from tests.support.faces import StoreFace

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- the four operations


async def test_an_item_comes_back_as_it_was_put(store: StoreFace, root: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    value = {"text": "x", "list": [1, 2.5, None, {"deep": True}], "bytes": b"\0\xff"}
    await store.put((root, "a"), "key", value)

    item = await store.get((root, "a"), "key")

    assert isinstance(item, Item)
    assert (item.namespace, item.key, item.value) == ((root, "a"), "key", value)
    assert before < item.created_at == item.updated_at <= datetime.now(UTC)


async def test_what_is_not_there_is_none_and_asking_creates_nothing(
    store: StoreFace, root: str
) -> None:
    assert await store.get((root, "a"), "key") is None
    assert await store.search((root, "a")) == []
    assert await store.list_namespaces(prefix=(root,)) == []


async def test_an_update_keeps_the_time_of_creation(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": 1})
    first = await store.get((root,), "key")
    await asyncio.sleep(0.002)
    await store.put((root,), "key", {"v": 2})
    second = await store.get((root,), "key")

    assert second.value == {"v": 2}
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at


async def test_a_deleted_item_is_gone_with_its_namespace(store: StoreFace, root: str) -> None:
    await store.put((root, "a"), "key", {"v": 1})
    await store.delete((root, "a"), "key")
    await store.delete((root, "a"), "key")

    assert await store.get((root, "a"), "key") is None
    assert await store.search((root,)) == []
    assert await store.list_namespaces(prefix=(root,)) == []
    first = datetime.now(UTC)
    await store.put((root, "a"), "key", {"v": 2})
    assert (await store.get((root, "a"), "key")).created_at >= first - timedelta(milliseconds=1)


async def test_values_are_copies(store: StoreFace, root: str) -> None:
    mine = {"list": [1]}
    await store.put((root,), "key", mine)
    mine["list"].append(2)
    (await store.get((root,), "key")).value["list"].append(3)
    (await store.search((root,)))[0].value["list"].append(4)

    assert await store.value((root,), "key") == {"list": [1]}


async def test_a_value_is_serialized_before_the_first_await(
    memory: MemoryCluster, root: str
) -> None:
    mine = {"list": [1]}
    putting = asyncio.ensure_future(memory.store.aput((root,), "key", mine))
    await asyncio.sleep(0)
    mine["list"].append(2)
    await putting

    item = await memory.store.aget((root,), "key")
    assert item is not None
    assert item.value == {"list": [1]}


async def test_empty_values_are_values(store: StoreFace, root: str) -> None:
    values: list[dict[str, Any]] = [{}, {"": ""}, {"a": None}, {"a": []}, {"a": {}}]
    for number, value in enumerate(values):
        await store.put((root,), str(number), value)
        assert await store.value((root,), str(number)) == value

    assert [item.value for item in await store.search((root,))] == values


async def test_keys_and_labels_may_hold_any_character(store: StoreFace, root: str) -> None:
    for label in ("a:b", "a/b", "a b", " ", "*", "\N{SNOWMAN}", "\N{OHM SIGN}", "a\nb", "x" * 5000):
        await store.put((root, label), label, {"v": label})
        await store.put((root, label, label), label + "2", {"v": 2})

        assert await store.value((root, label), label) == {"v": label}
        assert await store.keys((root, label)) == [label, label + "2"]
        assert await store.list_namespaces(prefix=(root,)) == [(root, label), (root, label, label)]
        for item in await store.search((root,)):
            await store.delete(item.namespace, item.key)
        assert await store.list_namespaces(prefix=(root,)) == []


async def test_labels_are_compared_whole(store: StoreFace, root: str) -> None:
    for namespace in ((root, "a"), (root, "ab"), (root, "a", "b"), (root + "x",)):
        await store.put(namespace, "/".join(namespace), {})

    assert await store.keys((root, "a")) == [f"{root}/a", f"{root}/a/b"]
    assert len(await store.keys((root,))) == 3


async def test_a_key_may_be_a_number_and_is_text(store: StoreFace, root: str) -> None:
    await store.put((root,), 7, {"v": 1})

    assert await store.value((root,), "7") == {"v": 1}
    assert await store.value((root,), 7) == {"v": 1}  # type: ignore[arg-type]


async def test_a_large_value_comes_back(store: StoreFace, root: str) -> None:
    value = {"bytes": bytes(range(256)) * (20 * 4096)}  # 20 MB
    await store.put((root,), "key", value)

    assert await store.value((root,), "key") == value
    assert [item.value for item in await store.search((root,))] == [value]


# ---------------------------------------------------------------------- batches


async def test_reads_of_a_batch_see_the_state_before_its_puts(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": "old"})

    results = await store.batch(
        [
            PutOp((root,), "key", {"v": "new"}),
            PutOp((root, "other"), "key", {"v": "new"}),
            GetOp((root,), "key"),
            SearchOp((root,)),
            ListNamespacesOp((MatchCondition("prefix", (root,)),)),
            GetOp((root, "other"), "key"),
        ]
    )

    assert results[:2] == [None, None]
    assert isinstance(results[2], Item)
    assert results[2].value == {"v": "old"}
    assert isinstance(results[3], list)
    assert [item.value for item in results[3] if isinstance(item, SearchItem)] == [{"v": "old"}]
    assert results[4:] == [[(root,)], None]
    assert await store.value((root,), "key") == {"v": "new"}


async def test_the_last_put_of_a_key_in_a_batch_wins(store: StoreFace, root: str) -> None:
    await store.put((root,), "deleted", {"v": 0})
    await store.batch(
        [
            PutOp((root,), "key", {"v": 1}),
            PutOp((root,), "back", None),
            PutOp((root,), "deleted", {"v": 1}),
            PutOp((root,), "key", {"v": 2}),
            PutOp((root,), "back", {"v": 2}),
            PutOp((root,), "deleted", None),
        ]
    )

    found = {item.key: item.value for item in await store.search((root,))}
    assert found == {"key": {"v": 2}, "back": {"v": 2}}


async def test_an_empty_batch_is_fine(store: StoreFace) -> None:
    assert await store.batch([]) == []


async def test_results_are_in_the_order_of_their_operations(store: StoreFace, root: str) -> None:
    puts: list[Op] = [PutOp((root, str(n)), "key", {"n": n}) for n in range(50)]
    gets: list[Op] = [GetOp((root, str(n)), "key") for n in reversed(range(50))]
    await store.batch(puts)

    found = await store.batch(gets)

    assert [item.value["n"] for item in found if isinstance(item, Item)] == [*range(49, -1, -1)]


async def test_an_operation_that_is_wrong_stops_its_batch_before_anything_is_sent(
    store: StoreFace, root: str
) -> None:
    for wrong in (SearchOp((root,), limit=-1), PutOp(("a.b",), "k", {}), PutOp((), "k", {})):
        with pytest.raises((InvalidRequestError, InvalidNamespaceError)):
            await store.batch([PutOp((root,), "key", {"v": 1}), wrong])

    assert await store.get((root,), "key") is None


async def test_many_operations_at_once_do_not_mix(memory: MemoryCluster, root: str) -> None:
    async def live(number: int) -> dict[str, Any]:
        namespace = (root, str(number % 7))
        await memory.store.aput(namespace, str(number), {"n": number})
        item = await memory.store.aget(namespace, str(number))
        assert item is not None
        return item.value

    assert await asyncio.gather(*map(live, range(300))) == [{"n": n} for n in range(300)]
    assert len(await memory.store.asearch((root,), limit=1000)) == 300


# ---------------------------------------------------------------------- limits


async def test_a_message_that_is_too_large_is_refused_alone(root: str) -> None:
    small = {**SETTINGS["subprocess"], "max_message_bytes": 2**22, "request_timeout": 5.0}
    async with MemoryCluster(**small) as memory:
        for face in (StoreFace(memory.store, blocking=b) for b in (False, True)):
            await face.put((root,), "key", {"v": 1})
            others = [
                asyncio.ensure_future(memory.store.aput((root,), f"k{n}", {"v": n}))
                for n in range(20)
            ]
            with pytest.raises(InvalidRequestError, match="max_message_bytes"):
                await face.put((root,), "large", {"v": b"x" * 2**23})
            with pytest.raises(InvalidRequestError, match="max_message_bytes"):
                await face.batch(
                    [PutOp((root,), "beside", {}), PutOp((root,), "large", {"v": b"x" * 2**23})]
                )
            await asyncio.gather(*others)
            assert await face.value((root,), "beside") == {}  # a batch is no transaction
            assert await face.value((root,), "key") == {"v": 1}
            assert await face.value((root,), "large") is None
            # what fits alone is also found together
            for number in range(3):
                await face.put((root, "list"), f"k{number}", {"v": b"x" * (2**22 - 2**16)})
            assert len(await face.search((root, "list"), limit=10)) == 3
        (actor,) = (await memory.status()).actors
        assert actor.epoch == 1


# ---------------------------------------------------------------------- versions


async def test_a_put_may_expect_a_version(store: StoreFace, root: str) -> None:
    await store.put((root,), "key", {"v": 1}, expected_version=0)
    first = (await store.get((root,), "key")).version
    with pytest.raises(VersionConflictError, match="'key'") as refused:
        await store.put((root,), "key", {"v": 2}, expected_version=0)
    assert refused.value.found == first

    await store.put((root,), "key", {"v": 2}, expected_version=first)
    (found,) = await store.search((root,))
    assert found.value == {"v": 2}
    assert found.version > first
    with pytest.raises(VersionConflictError):
        await store.put((root,), "key", {"v": 3}, expected_version=first)
    with pytest.raises(VersionConflictError):
        await store.delete((root,), "key", expected_version=first)
    await store.delete((root,), "key", expected_version=found.version)
    await store.put((root,), "key", {"v": 4})
    assert (await store.get((root,), "key")).version > found.version  # a new life, another version


async def test_of_many_who_expect_the_same_version_one_wins(
    memory: MemoryCluster, root: str
) -> None:
    async def add(times: int) -> int:
        lost = 0
        for _ in range(times):
            while True:
                item = await memory.store.aget((root,), "sum")
                version = item.version if isinstance(item, VersionedItem) else 0
                value = {"n": item.value["n"] + 1 if item else 1}
                try:
                    await memory.store.aput((root,), "sum", value, expected_version=version)
                    break
                except VersionConflictError:
                    lost += 1
        return lost

    lost = await asyncio.gather(*(add(10) for _ in range(5)))
    total = await memory.store.aget((root,), "sum")
    assert total is not None
    assert total.value == {"n": 50}
    assert sum(lost) > 0 or not memory.is_distributed


# ---------------------------------------------------------------------- errors


async def test_an_operation_that_fails_keeps_no_other_from_being_done(root: str) -> None:
    async with MemoryCluster(**SETTINGS["subprocess"], store_total_mem=2**20) as memory:
        for face in (StoreFace(memory.store, blocking=b) for b in (False, True)):
            ops: list[Op] = [
                PutOp((root,), "a", {"v": 1}),
                GetOp((root,), "a"),
                PutOp((root,), "large", {"v": "x" * 2**21}),
                PutOp((root, "b"), "b", {"v": 2}),
            ]
            with pytest.raises(MemoryFullError) as failed:
                await face.batch(ops)
            assert failed.value.__notes__ == ["operation 2 of the batch failed"]
            assert await face.value((root,), "a") == {"v": 1}
            assert await face.value((root, "b"), "b") == {"v": 2}
            assert await face.get((root,), "large") is None


# ---------------------------------------------------------------------- time to live


async def test_any_kind_of_text_is_a_label_and_a_key(store: StoreFace, root: str) -> None:
    class Name(StrEnum):
        LABEL = "label"

    await store.put((root, Name.LABEL), Name.LABEL, {"v": 1})
    assert await store.value((root, "label"), "label") == {"v": 1}
    assert await store.keys((root, Name.LABEL)) == ["label"]
