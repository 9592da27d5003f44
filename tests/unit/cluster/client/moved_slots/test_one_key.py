"""Calls about one key while its slot moves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flowgentic_actors import AsyncCheckpointSaver, AsyncStore
from flowgentic_actors.cluster.client import remote as client_module
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.engine.commands import Command, GetItem, ListNamespaces, PutItem
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import SlotsMovedError
from tests.support.counter import until
from tests.support.faces import checkpoint_of, config_of
from tests.support.moved_slots import LATE, both, namespaces
from tests.support.slots import SLOTS, World

pytestmark = pytest.mark.anyio


@both
@pytest.mark.parametrize("late", [0.0, LATE, 0.2])
async def test_what_is_about_one_key_goes_after_it(
    world: World, store: AsyncStore, saver: AsyncCheckpointSaver, late: float, blocking: bool
) -> None:
    world.late = late
    for number in range(3):
        world.rotate()
        key, saved = f"k{number}", checkpoint_of({"c": number}, id=f"9{number}")
        if blocking:
            store.put(("a", "b"), key, {"n": number}, index=False)
            found = store.get(("a", "b"), key)
            saver.put(config_of("new"), saved, {"source": "loop"}, {})
            latest = saver.get_tuple(config_of("new"))
        else:
            await store.aput(("a", "b"), key, {"n": number}, index=False)
            found = await store.aget(("a", "b"), key)
            await saver.aput(config_of("new"), saved, {"source": "loop"}, {})
            latest = await saver.aget_tuple(config_of("new"))
        assert found is not None
        assert found.value == {"n": number}
        assert latest is not None
        assert latest.checkpoint["id"] == saved["id"]
        world.end()


@both
async def test_a_newer_table_is_used_as_soon_as_it_is_there(
    world: World, store: AsyncStore, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MOVING", 60.0)
    world.late = LATE
    begun = time.monotonic()
    world.rotate()
    await ask(world.client, GetItem(("a", "b"), "k"), blocking=blocking)
    world.end()
    world.rotate()
    assert len(await namespaces(store, blocking=blocking)) == 13
    assert time.monotonic() - begun < 30


@both
async def test_a_shard_that_keeps_its_slots_after_all_is_asked_again(
    world: World, store: AsyncStore, blocking: bool
) -> None:
    """A move was begun and given up: there is no newer table."""
    home = world.table.of_namespace(("a", "b"))
    world.held.add(home)

    def before(shard: int, asked: Command) -> None:
        if world.asked[home] == 3:
            world.held.clear()

    world.asked.clear()
    world.before = before
    begun = time.monotonic()
    if blocking:
        store.put(("a", "b"), "k", {}, index=False)
    else:
        await store.aput(("a", "b"), "k", {}, index=False)
    assert world.asked == {home: 4}
    assert 0.1 < time.monotonic() - begun < 5
    assert store.get(("a", "b"), "k") is not None


async def ask(client: RemoteClient, asked: Command, *, blocking: bool) -> Reply:
    return client.ask_sync(asked) if blocking else await client.ask(asked)


@both
async def test_a_move_that_lasts_is_an_error_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    world = World(2)
    client = world.connect(monkeypatch, timeout=0.3)
    world.held = {0, 1}
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    begun = time.monotonic()
    with pytest.raises(SlotsMovedError, match=r"not here.*request_timeout.*Nothing happened"):
        await ask(client, GetItem(("a", "b"), "k"), blocking=blocking)
    assert 0.3 <= time.monotonic() - begun < 5
    if not blocking:
        assert ticks > 10
        world.held = {0}
        asks: list[tuple[int, Command]] = [
            (world.table.of_namespace(one.namespace), one)
            for one in (PutItem(("a", str(n)), "k", ("", b"")) for n in range(20))
        ]
        answers = await client.ask_each([*asks, (0, ListNamespaces((), None, 9, 0, table=1))])
        for (shard, _), answer in zip(asks, answers, strict=False):
            assert isinstance(answer, SlotsMovedError) is (shard == 0)
        assert not isinstance(answers[-1], Exception)
    ticking.cancel()


async def test_only_what_was_refused_is_asked_again(world: World) -> None:
    """And each answer is given to the question that it belongs to."""
    world.late = LATE
    keys = [f"{n}" for n in range(40)]
    for key in keys:
        world.client.ask_sync(PutItem(("a", key), key, ("", key.encode())))
    known = world.client.table
    world.move({slot: 1 for slot in range(SLOTS) if world.table.shards[slot] == 0})
    world.asked.clear()
    asks: list[tuple[int, Command]] = [
        (known.of_namespace(("a", key)), GetItem(("a", key), key)) for key in keys
    ]
    answers: list[Any] = await world.client.ask_each(asks)
    assert [answer.row.key for answer in answers] == keys
    moved = sum(shard == 0 for shard, _ in asks)
    assert world.asked.total() == len(keys) + moved


async def test_a_closed_client_waits_for_no_move(world: World) -> None:
    world.held = {0, 1, 2}
    home = world.table.of_namespace(("a", "b"))
    asking = asyncio.ensure_future(world.client.ask(GetItem(("a", "b"), "k")))
    await until(lambda: world.asked[home])
    await world.client.close()
    with pytest.raises(Exception, match="closed"):
        await asking
