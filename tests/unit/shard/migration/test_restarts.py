"""Moves of slots that end early and begin anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowgentic_actors.engine.commands import DeleteItem, DeleteThread
from tests.support.counter import until
from tests.support.migrating_shards import begun_slowly, owned, shown, two
from tests.support.slot_commands import KEYS, NAMESPACES, THREADS

pytestmark = pytest.mark.anyio


async def test_a_target_that_ends_keeps_what_it_has_and_begins_nothing_by_itself(
    place: Path,
) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        await both.target.crash()
        await both.target.begin(both.ownership(both.target))
        kept = both.target.shard.size()
        assert both.target.hides
        await both.do_some(20)
        both.order()
        await asyncio.sleep(0.1)
        assert both.target.hides
        assert both.target.shard.size().threads >= kept.threads
        assert both.target.migration is None
        await both.check_union()

        both.host.moves.give_up(both.number, "nothing happens")
        both.start_move()  # it hears of both at once
        await both.do_some(20)
        await both.finish()
        await both.check()
        await both.forgotten()


async def test_an_attempt_that_another_one_follows_is_forgotten_first(place: Path) -> None:
    """What was deleted between the two would come to life again."""
    async with two(place) as both:
        await both.do_some(100)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        both.host.moves.give_up(both.number, "another one")
        for thread in THREADS:
            await both.do(DeleteThread(thread))
        for namespace in NAMESPACES:
            for key in KEYS:
                await both.do(DeleteItem(namespace, key))
        await both.moved()
        await both.check()
        assert both.target.shard.size().threads == both.target.shard.size().items == 0


@pytest.mark.parametrize("knows", [False, True])
async def test_a_target_that_ends_just_when_it_gets_them_has_all(place: Path, knows: bool) -> None:
    async with two(place) as both:
        await both.do_some(200)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        await both.target.crash()
        before = both.ownership(both.target)
        both.commit()
        await both.target.begin(both.ownership(both.target) if knows else before)
        both.order()
        await both.check()
        await both.forgotten()
        await both.check()


async def test_a_target_that_ends_after_it_got_them_has_all(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await both.moved()
        for end in (both.target.crash, both.target.end):
            await end()
            await both.target.begin(both.ownership(both.target))
            await both.check()


@pytest.mark.parametrize("held", [False, True])
async def test_a_source_that_ends_on_the_way_is_asked_on(place: Path, held: bool) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        if held:
            both.hold()
        position = both.target.take("position")
        await both.source.crash()
        both.order()  # it is nowhere
        await both.source.begin(both.ownership(both.source))
        both.order()
        assert both.target.take("position") >= position
        if not held:
            await both.do_some(20)
            await both.near()
            both.hold()
        await both.done()
        assert both.target.take("move") == both.number
        both.commit()
        both.order()
        await both.check()


async def test_a_source_that_is_somewhere_else_now_is_found(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await both.source.crash()
        both.source.address = f"{both.source.folder}-2.sock"
        await both.source.begin(both.ownership(both.source))
        both.clients[0].connection.move(both.source.address)
        both.order()
        await both.do_some(20)
        await both.finish()
        await both.check()


async def test_a_source_that_ends_before_it_has_forgotten_shows_and_keeps_nothing_of_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(place) as both:
        await both.do_some(200)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        both.commit()
        await both.source.crash()  # before it heard of it
        await both.source.begin(both.ownership(both.source))
        both.order()
        assert both.source.hides
        assert shown(both.source) <= owned(both, both.source)
        await both.check()
        await both.forgotten()
        await both.check()


async def test_an_attempt_that_is_given_up_leaves_nothing_behind(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        await begun_slowly(both)
        await until(lambda: both.target.hides)
        both.give_up()
        await both.do_some(20)
        await both.forgotten()
        has, others = both.target.shard.size(), both.source.shard.size()
        assert has.threads == both.model.shard.size().threads - others.threads > 0
        await both.check()
        await both.target.end()
        await both.target.begin(both.ownership(both.target))
        assert not both.target.hides
        assert both.target.shard.size() == has
