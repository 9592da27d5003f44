"""How a client comes to know where slots are: tables, references, news."""

from __future__ import annotations

import asyncio
import time
from typing import Any, get_args

import pytest

from flowgentic_actors.cluster.client.notifier import Notifier
from flowgentic_actors.cluster.client.routing import outdated, shard_of
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table
from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheGet,
    CacheSet,
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    FindRuns,
    GetChannelHistory,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.wire.addresses import Unreachable
from tests.support.blocking_calls import elsewhere
from tests.support.slots import World

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- tables and references


def test_a_shards_number_is_known_once_it_can_be_asked(world: World) -> None:
    made: list[int] = []
    client = world.client
    actors = list(client._actors)

    class Watched(list[Any]):
        def append(self, ref: Any) -> None:
            super().append(ref)
            made.append(client.table.version)
            assert 5 not in client.table.owners

    client._actors = Watched(actors)
    world.move({0: 5})
    assert made == [1, 1, 1]
    assert len(client._actors) == 6
    assert client.table.version == 2
    assert client._actors[:3] == actors


def test_a_shard_that_has_ended_is_no_place_to_ask(world: World) -> None:
    world.retire(1, 2)
    addresses = [ref.address for ref in world.client._actors]
    assert isinstance(addresses[1], Unreachable)
    assert addresses[1].moved
    assert (addresses[0], addresses[2]) == ("/0", "/2")
    world.move({0: 1})
    assert world.client._actors[1].address == "/1"


COMMANDS: list[tuple[Command, str]] = [
    (PutCheckpoint("t", "", "1", None, ("", b""), ("", b""), {}, {}, {}), "thread"),
    (PutWrites("t", "", "1", "", "", ()), "thread"),
    (GetCheckpoint("t", "", None), "thread"),
    (ListCheckpoints("t"), "thread"),
    (ListCheckpoints(), ""),
    (GetChannelHistory("t", "", None, ()), "thread"),
    (ReadThread("t"), "thread"),
    (DeleteThread("t"), "thread"),
    (DropRuns("t", ()), "thread"),
    (PruneThread("t", 1), "thread"),
    (PutItem(("a", "b", "c"), "k", ("", b"")), "namespace"),
    (GetItem(("a", "b"), "k"), "namespace"),
    (DeleteItem(("a", "b"), "k"), "namespace"),
    (SearchItems(("a", "b"), b"", 1, 0), "namespace"),
    (SearchItems(("a",), b"", 1, 0), ""),
    (RankItems(("a", "b"), b"", bytes(4), 1, 0), "namespace"),
    (RankItems(("a",), b"", bytes(4), 1, 0), ""),
    (ListNamespaces((), None, 1, 0), ""),
    (FindRuns(()), ""),
    (ListThreads("", 1), ""),
    (CacheGet(()), ""),
    (CacheSet(()), ""),
    (CacheClear(), ""),
]


@pytest.mark.parametrize(("asked", "about"), COMMANDS, ids=str)
def test_a_command_is_about_one_key_or_about_many(asked: Command, about: str) -> None:
    table = even_table(100, 2)
    place = {"thread": table.of_thread("t"), "namespace": table.of_namespace(("a", "b")), "": None}
    assert len(set(place.values())) == 3
    assert shard_of(table, asked) == place[about]


def test_every_command_is_known() -> None:
    assert {type(asked) for asked, _ in COMMANDS} == set(get_args(Command))


def test_another_table_is_worth_a_question_if_it_says_something_else() -> None:
    old = even_table(2, 2)
    new = SlotTable(2, tuple(1 - shard for shard in old.shards), 2)
    one, home = GetItem(("a", "b"), "k"), old.of_namespace(("a", "b"))
    assert not outdated(old, home, one)
    assert outdated(new, home, one)
    assert not outdated(new, 1 - home, one)
    assert not outdated(old, 0, ListThreads("", 1, table=1))
    assert outdated(new, 0, ListThreads("", 1, table=1))
    assert not outdated(new, 0, ListThreads("", 1, table=2))
    assert not outdated(new, 0, CacheGet(()))  # it has no table: a pause is made


# ---------------------------------------------------------------------- news


def test_news_wakes_a_thread_at_once_and_nobody_waits_for_ever() -> None:
    news, there = Notifier(), False
    begun = time.monotonic()
    news.wait_sync(lambda: there, 0.05)
    assert 0.05 <= time.monotonic() - begun < 5
    news.wait_sync(lambda: True, 60)
    with elsewhere(_nothing()) as (portal, _):

        async def soon() -> None:
            nonlocal there
            await asyncio.sleep(0.02)
            news.tell()  # not yet so: it goes on waiting
            there = True
            news.tell()

        portal.start_task_soon(soon)
        news.wait_sync(lambda: there, 60)
    assert time.monotonic() - begun < 30
    assert not news._waiting


async def test_news_wakes_an_event_loop_and_outlives_those_who_gave_up() -> None:
    news, there = Notifier(), False
    gone = asyncio.ensure_future(news.wait(lambda: there, 60))
    waiting = [asyncio.ensure_future(news.wait(lambda: there, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    there = True
    await asyncio.to_thread(news.tell)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not news._waiting
    begun = time.monotonic()
    await news.wait(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - begun < 5
    assert not news._waiting


# ---------------------------------------------------------------------- over sockets


class _nothing:  # noqa: N801 - a context
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass
