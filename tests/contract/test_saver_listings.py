"""Listings of checkpoints: their order, limits, filters and pages."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.engine import pace, thread_queries
from flowgentic_actors.errors import InvalidRequestError
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique

pytestmark = pytest.mark.anyio


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
