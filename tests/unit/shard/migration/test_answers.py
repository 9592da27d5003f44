"""Which of two shards answers while slots move between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheEntry,
    CacheGet,
    CacheSet,
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    GetChannelHistory,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.replies import Cached
from flowgentic_actors.engine.slots import slot_of_cached, slot_of_thread
from flowgentic_actors.errors import SlotsMovedError
from flowgentic_actors.secret import revealed
from tests.support.migrating_shards import (
    BLOB,
    Client,
    Side,
    Two,
    namespace_in,
    owned,
    refused,
    two,
)
from tests.support.slot_commands import direction, fan_outs

pytestmark = pytest.mark.anyio

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


def thread_in(slots: set[int]) -> str:
    return next(name for n in range(9999) if slot_of_thread(name := f"x{n}") in slots)


def one_key(slots: set[int]) -> list[Command]:
    """A command of each kind that is about one key."""
    thread, namespace = thread_in(slots), namespace_in(slots)
    return [
        PutCheckpoint(thread, "", "1", None, BLOB, BLOB, {}, {}, {}),
        PutWrites(thread, "", "1", "task", "", (Write(0, "c", BLOB),)),
        GetCheckpoint(thread, "", None),
        ListCheckpoints(thread),
        GetChannelHistory(thread, "", None, ("c",)),
        ReadThread(thread),
        DropRuns(thread, ("r",)),
        PruneThread(thread, 1),
        DeleteThread(thread),
        PutItem(namespace, "k", BLOB),
        GetItem(namespace, "k"),
        SearchItems(namespace, b"", 10, 0),
        RankItems(namespace, b"", direction(1), 10, 0),
        DeleteItem(namespace, "k"),
    ]


async def answers(both: Two, side: Side, slots: set[int]) -> set[bool]:
    """Whether a shard answers what is about one key of some slots."""
    client = both.clients[both.sides.index(side)]
    return {not await refused(client.ask(command)) for command in one_key(slots)}


async def test_a_key_is_answered_about_by_whoever_has_it_and_by_nobody_while_it_is_held(
    place: Path,
) -> None:
    async with two(place) as both:
        source, target = both.sides
        moving_slots, stay = set(both.slots), owned(both, source) - set(both.slots)
        own = owned(both, target)

        async def who(slots: set[int]) -> tuple[set[bool], set[bool]]:
            return await answers(both, source, slots), await answers(both, target, slots)

        its, others = ({True}, {False}), ({False}, {True})
        for _ in range(2):  # before, and while it is on its way
            assert await who(moving_slots) == its
            assert (await who(stay), await who(own)) == (its, others)
            if not both.number:
                both.start_move()
        await both.near()
        both.hold()
        await both.done()
        assert await who(moving_slots) == ({False}, {False})
        assert (await who(stay), await who(own)) == (its, others)
        both.commit()
        both.order(target)
        assert await who(moving_slots) == others
        both.order(source)
        assert await who(moving_slots) == others
        assert (await who(stay), await who(own)) == (its, others)


async def test_slots_that_were_held_and_stay_are_answered_about_again(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(50)
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        both.give_up()
        await both.do_some(50)
        await both.forgotten()
        await both.check()


async def test_what_is_asked_of_all_is_answered_by_one_table(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(40)

        async def by(table: int, *, clients: Sequence[Client] = both.clients) -> list[set[bool]]:
            asked = [*fan_outs(table), CacheClear(table=table)]
            return [{not await refused(c.ask(query)) for query in asked} for c in clients]

        yes, no = {True}, {False}
        assert await by(1) == [yes, yes]
        assert await by(7) == [yes, yes]  # nothing of theirs has changed since the first
        both.start_move()
        assert await by(1) == [yes, yes]
        assert await by(2) == [no, no]  # what it says may not be so here yet
        assert await by(0) == [yes, yes]  # it is asked alone
        await both.finish()
        assert both.table.version == 2
        assert await by(1) == [no, no]
        assert await by(2) == [yes, yes]
        assert await by(3) == [yes, yes]


async def test_a_write_that_is_sent_again_is_answered_from_memory_wherever_its_slot_is(
    place: Path,
) -> None:
    async with two(place) as both:
        namespace = namespace_in(set(both.slots))
        core = both.source.core

        def call(seq: int, command: Command) -> Call:
            return Call(b"c" * 16, seq, 1, Raw(_encode(command)))

        done, new = call(1, PutItem(namespace, "k", BLOB)), call(2, PutItem(namespace, "k", BLOB))
        reply = core.handle(done)
        core.commit()
        both.start_move()
        await both.near()
        both.hold()
        await both.done()
        for _ in "held", "moved", "started anew":
            position = core.position
            assert core.handle(done) == reply
            core.commit()
            assert core.position == position
            with pytest.raises(SlotsMovedError):
                core.handle(new)
            if both.host.plan.moves:
                both.commit()
                both.order()
                await both.forgotten()
            else:
                await both.source.end()
                await both.source.begin(both.ownership(both.source))
                core = both.source.core


async def test_values_are_cached_by_whoever_has_their_slots(place: Path) -> None:
    async with two(place) as both:
        stay = owned(both, both.source) - set(both.slots)
        keys = [
            next(key for n in range(9999) if slot_of_cached(key := (("c",), f"{n}")) in slots)
            for slots in (stay, set(both.slots), owned(both, both.target))
        ]
        first, second = both.clients

        async def cached(client: Client) -> list[bool]:
            await client.ask(CacheSet(tuple(CacheEntry(key, BLOB) for key in keys)))
            reply = await client.ask(CacheGet(tuple(keys)))
            assert isinstance(reply, Cached)
            return [value == BLOB for value in reply.values]

        assert await cached(first) == [True, True, False]
        assert await cached(second) == [False, False, True]
        both.start_move()
        await both.near()
        both.hold()
        assert await cached(first) == [True, False, False]
        assert await cached(second) == [False, False, True]
        await both.done()
        both.commit()
        both.order()
        for client in both.clients:
            assert await client.ask(CacheGet(tuple(keys))) == Cached((None, None, None))
        assert await cached(first) == [True, False, False]
        assert await cached(second) == [False, True, True]
