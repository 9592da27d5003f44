"""Lives of items: how long they are found, and when they are forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import InvalidRequestError
from tests.conftest import settings_of
from tests.support.faces import StoreFace
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio

BLINK = 0.2 / 60  # minutes


@pytest.fixture
async def forgetful(mode: str) -> AsyncIterator[MemoryCluster]:
    """A cluster whose items live for a blink."""
    ttl = {"default_ttl": BLINK, "sweep_interval_minutes": 0.1 / 60}
    async with MemoryCluster(**settings_of(mode), ttl=ttl) as memory:
        yield memory


CHEAP = pytest.mark.parametrize("mode", ["inline", "inline-journal", "several-actors"])


async def items_in(memory: MemoryCluster) -> int:
    return sum(actor.items for actor in (await memory.status()).actors)


async def test_an_item_lives_as_long_as_it_was_given(store: StoreFace, root: str) -> None:
    began = time.monotonic()
    await store.put((root,), "short", {}, ttl=BLINK)
    await store.put((root,), "long", {}, ttl=60)
    await store.put((root, "a"), "short", {}, ttl=BLINK)
    await store.put((root,), "for ever", {}, ttl=None)
    keys = await store.keys((root,))
    if time.monotonic() < began + 60 * BLINK:  # on a machine that is not too busy for this
        assert keys == ["for ever", "long", "short", "short"]

    await asyncio.sleep(120 * BLINK + 0.01)  # the search has refreshed them
    assert await store.keys((root,)) == ["for ever", "long"]
    assert await store.get((root,), "short") is None
    assert await store.list_namespaces(prefix=(root,)) == [(root,)]
    with pytest.raises(InvalidRequestError, match="ttl"):
        await store.put((root,), "key", {}, ttl=-1)


async def test_a_read_lets_a_life_begin_anew_unless_it_says_not_to(
    store: StoreFace, root: str
) -> None:
    longest, last = 0.0, time.monotonic()
    for key in ("got", "found", "left", "looked at"):
        await store.put((root, key), key, {}, ttl=2 * BLINK)
    for _ in range(3):
        await asyncio.sleep(60 * BLINK)
        begun = time.monotonic()
        await store.get((root, "got"), "got")
        await store.search((root, "found"))
        await store.get((root, "looked at"), "looked at", refresh_ttl=False)
        longest, last = max(longest, time.monotonic() - last), begun
    left = [key for key in ("got", "found", "left", "looked at") if await store.keys((root, key))]
    longest = max(longest, time.monotonic() - last)
    assert not {"left", "looked at"} & set(left)
    if longest < 120 * BLINK:  # on a machine that is not too busy for this
        assert left == ["got", "found"]


async def test_a_new_put_decides_anew_how_long(store: StoreFace, root: str) -> None:
    await store.put((root,), "a", {}, ttl=BLINK)
    await store.put((root,), "a", {})
    await store.put((root,), "b", {})
    await store.put((root,), "b", {}, ttl=BLINK)
    await asyncio.sleep(60 * BLINK + 0.01)
    assert await store.keys((root,)) == ["a"]


@CHEAP
async def test_what_is_over_is_forgotten_by_itself(forgetful: MemoryCluster, root: str) -> None:
    for number in range(2500):
        await forgetful.store.aput((root, str(number % 7)), str(number), {"v": number})
    await forgetful.store.aput((root,), "stays", {}, ttl=None)

    async def swept() -> bool:
        return await items_in(forgetful) == 1

    await eventually(swept)
    assert [item.key for item in await forgetful.store.asearch(())] == ["stays"]


@CHEAP
async def test_expired_items_may_be_seen_until_they_are_swept(mode: str, root: str) -> None:
    ttl = {"omit_expired": False, "refresh_on_read": False, "sweep_interval_minutes": 5}
    async with MemoryCluster(**settings_of(mode), ttl=ttl) as memory:
        await memory.store.aput((root,), "key", {}, ttl=0.01 / 60)
        await asyncio.sleep(0.05)
        assert await memory.store.aget((root,), "key") is not None
        assert len(await memory.store.asearch((root,))) == 1
        assert await memory.store.alist_namespaces() == [(root,)]


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_lives_outlast_their_actor(memory: MemoryCluster, root: str) -> None:
    store = memory.store
    await store.aput((root,), "short", {}, ttl=BLINK)
    await store.aput((root,), "refreshed", {}, ttl=3 / 60)
    await store.aput((root,), "long", {}, ttl=5)
    began = time.monotonic()
    await asyncio.sleep(2)
    await store.aget((root,), "refreshed")
    refreshed = time.monotonic()
    pid = (await memory.status()).actors[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(began + 3.1 - time.monotonic())
    found = await store.asearch((root,), refresh_ttl=False)
    if time.monotonic() < refreshed + 3:  # on a machine that is not too busy for this
        assert [item.key for item in found] == ["long", "refreshed"]
    await asyncio.sleep(max(0.0, refreshed + 3.5 - time.monotonic()))
    assert [item.key for item in await store.asearch((root,))] == ["long"]
