"""Listings and searches of a client while slots move between shards."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langgraph.store.base import GetOp, Op, PutOp, SearchOp

from flowgentic_actors import AsyncCache, AsyncCheckpointSaver, AsyncStore
from flowgentic_actors.adapters import operations
from flowgentic_actors.engine.commands import (
    Command,
    FindRuns,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    RankItems,
    SearchItems,
)
from flowgentic_actors.errors import PartialFailureError, SlotsMovedError
from flowgentic_actors.wire.addresses import Unreachable
from tests.support.faces import checkpoint_of, config_of
from tests.support.moved_slots import EACH, LATE, THREADS, both, namespaces
from tests.support.slots import SLOTS, World

pytestmark = pytest.mark.anyio


def at(world: World, number: int, change: Callable[[], None], kind: type[Any]) -> None:
    """Have something happen before the nth command of a kind."""
    seen = 0

    def before(shard: int, asked: Command) -> None:
        nonlocal seen
        if isinstance(asked, kind):
            seen += 1
            if seen == number:
                change()

    world.before = before


async def rows(saver: AsyncCheckpointSaver, *, blocking: bool, **how: Any) -> AsyncIterator[str]:
    """A listing of everything: the ids."""
    if blocking:
        for found in saver.list(None, **how):
            yield found.checkpoint["id"]
    else:
        async for found in saver.alist(None, **how):
            yield found.checkpoint["id"]


async def threads(saver: AsyncCheckpointSaver, *, blocking: bool, **how: Any) -> AsyncIterator[str]:
    if blocking:
        for found in saver.threads(**how):
            yield found.thread_id
    else:
        async for found in saver.athreads(**how):
            yield found.thread_id


# ---------------------------------------------------------------------- listings


@both
@pytest.mark.parametrize("late", [0.0, LATE])
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_goes_on_behind_its_last_row_when_slots_move(
    world: World, saver: AsyncCheckpointSaver, listing: Any, late: float, blocking: bool
) -> None:
    world.late = late
    expected = [one async for one in listing(saver, blocking=blocking)]
    assert len(expected) == (THREADS * EACH if listing is rows else THREADS)
    assert expected == sorted(set(expected), key=expected.index)
    for moment in range(0, len(expected), 5):
        found: list[str] = []
        async for row in listing(saver, blocking=blocking):
            if len(found) == moment:
                world.rotate()
            found.append(row)
        world.end()
        assert found == expected


@both
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_is_whole_when_slots_move_between_two_shards_pages(
    world: World, saver: AsyncCheckpointSaver, listing: Any, blocking: bool
) -> None:
    """One shard has answered already when another one gives it what that has not listed yet."""
    expected = [one async for one in listing(saver, blocking=blocking)]
    for moment in range(1, 15):
        world.late = random.Random(moment).choice((0.0, LATE))
        at(world, moment, world.rotate, ListCheckpoints if listing is rows else ListThreads)
        assert [one async for one in listing(saver, blocking=blocking)] == expected
        world.end()


@both
@pytest.mark.parametrize("listing", [rows, threads])
async def test_a_listing_is_whole_however_slots_move_among_more_and_fewer_shards(
    world: World, saver: AsyncCheckpointSaver, listing: Any, blocking: bool
) -> None:
    expected = [one async for one in listing(saver, blocking=blocking)]
    for seed in range(15):
        rng = random.Random(seed)

        def before(shard: int, asked: Command, rng: random.Random = rng) -> None:
            if rng.random() < 0.2:
                into = [rng.randrange(6) for _ in range(2)]
                world.move({slot: rng.choice(into) for slot in range(SLOTS) if rng.random() < 0.3})

        world.before = before
        limit = rng.choice((None, 1, 7, 100))
        found = [one async for one in listing(saver, blocking=blocking, limit=limit)]
        assert found == expected[:limit]


@both
async def test_a_listing_of_one_thread_goes_after_it(
    world: World, saver: AsyncCheckpointSaver, blocking: bool
) -> None:
    world.late = LATE
    for number in range(EACH * 2):
        saved = checkpoint_of({"c": number}, id=f"9{number}")
        saver.put(config_of("t1"), saved, {"source": "loop"}, {})
    at(world, 2, world.rotate, ListCheckpoints)
    if blocking:
        found = [one.checkpoint["id"] for one in saver.list(config_of("t1"))]
    else:
        found = [one.checkpoint["id"] async for one in saver.alist(config_of("t1"))]
    assert len(found) == EACH * 3
    assert found == sorted(set(found), reverse=True)


# ---------------------------------------------------------------------- searches and the like


@both
@pytest.mark.parametrize("late", [0.0, LATE])
@pytest.mark.parametrize("query", [None, "mmm"], ids=["search", "rank"])
async def test_a_search_of_several_shards_begins_again_when_slots_move(
    world: World, store: AsyncStore, query: str | None, late: float, blocking: bool
) -> None:
    async def search(**how: Any) -> list[str]:
        if blocking:
            return [one.key for one in store.search(("a",), query=query, **how)]
        return [one.key for one in await store.asearch(("a",), query=query, **how)]

    expected = await search(limit=100)
    assert len(set(expected)) == len(expected) == 40
    world.late = late
    for moment in range(1, 15, 3):
        at(world, moment, world.rotate, SearchItems if query is None else RankItems)
        assert await search(limit=30, offset=5) == expected[5:35]
        world.end()


@both
async def test_a_search_of_one_shard_goes_after_it(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    for number in range(20):
        store.put(("a", "n1", "y"), f"{number}", {"text": "m"})
    at(world, 2, world.rotate, SearchItems)
    if blocking:
        found = store.search(("a", "n1"), limit=100)
    else:
        found = await store.asearch(("a", "n1"), limit=100)
    assert len({(one.namespace, one.key) for one in found}) == len(found) == 23


@both
async def test_namespaces_are_all_found_when_slots_move(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    for moment in range(1, 4):
        at(world, moment, world.rotate, ListNamespaces)
        assert sorted(await namespaces(store, blocking=blocking)) == sorted(
            ("a", f"n{n}", "x") for n in range(13)
        )
        world.end()


@both
async def test_all_checkpoints_of_a_run_are_deleted_when_slots_move(
    world: World, saver: AsyncCheckpointSaver, blocking: bool
) -> None:
    world.late = LATE
    at(world, 2, world.rotate, FindRuns)
    if blocking:
        saver.delete_for_runs(["r1"])
    else:
        await saver.adelete_for_runs(["r1"])
    left = [found.metadata.get("run_id") for found in saver.list(None)]
    assert left == ["r0"] * (THREADS * EACH // 2)


@both
async def test_a_batch_that_asks_one_and_all_shards_is_whole(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    world.late = LATE
    world.rotate()
    ops: list[Op] = [
        SearchOp(("a",), limit=100),
        GetOp(("a", "n1", "x"), "k01"),
        *(PutOp(("b", f"{n}"), "k", {"text": "m"}) for n in range(9)),
    ]
    results = store.batch(ops) if blocking else await store.abatch(ops)
    assert isinstance(results[0], list)
    assert len(results[0]) == 40
    assert getattr(results[1], "key", None) == "k01"
    assert len(store.search(("b",), limit=100)) == 9


@both
async def test_a_cache_of_a_shard_that_has_ended_is_another_ones(
    world: World, blocking: bool
) -> None:
    cache: AsyncCache[int] = AsyncCache(world.client)
    pairs: dict[tuple[tuple[str, ...], str], tuple[int, int | None]] = {
        (("n",), f"k{n}"): (n, None) for n in range(30)
    }
    world.late = LATE

    def retire() -> None:
        """And the client has heard half of it: the table is still the old one."""
        world.end()
        world.move({slot: slot % 3 for slot in range(SLOTS)})
        world.end()
        world.client._actors[2].move(Unreachable("gone", moved=True))
        world.retire(2, 0)

    retire()
    cache.set(pairs) if blocking else await cache.aset(pairs)
    assert len(cache.get(list(pairs))) == 30
    retire()
    assert isinstance(cache.get(list(pairs)) if blocking else await cache.aget(list(pairs)), dict)
    cache.set(pairs)
    retire()
    cache.clear() if blocking else await cache.aclear()
    assert not cache.get(list(pairs))


@both
async def test_what_moves_for_too_long_is_said_to_fail(
    world: World, store: AsyncStore, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOVING", 0.2)
    world.answers = False
    begun = time.monotonic()
    with pytest.raises((SlotsMovedError, PartialFailureError), match="asked by table 1"):
        await namespaces(store, blocking=blocking)
    assert 0.2 <= time.monotonic() - begun < 5
    assert world.asked[0] < 20  # between two times it waits for news
