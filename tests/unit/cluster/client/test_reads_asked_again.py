"""A read that was sent and not answered is asked again; a write has an unknown outcome."""

from __future__ import annotations

from typing import Any

import pytest

from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.engine.commands import Command, GetItem, PutItem, SearchItems
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.errors import ActorUnavailableError, OutcomeUnknownError
from tests.support.slots import World

pytestmark = pytest.mark.anyio

GET = GetItem(("a", "b"), "k")
PUT = PutItem(("a", "b"), "k", ("", b""))
SEARCH = SearchItems((), b"", 10, 0, table=1)

WAYS = ["ask", "ask_each", "ask_sync", "ask_each_sync"]

ways = pytest.mark.parametrize("way", WAYS)


async def ask(client: RemoteClient, way: str, command: Command) -> Reply:
    if way == "ask":
        return await client.ask(command)
    if way == "ask_sync":
        return client.ask_sync(command)
    asks = [(client.table.of_namespace(("a", "b")), command)]
    (answer,) = await client.ask_each(asks) if way == "ask_each" else client.ask_each_sync(asks)
    if isinstance(answer, Exception):
        raise answer
    return answer


def failing(world: World, times: int, **how: Any) -> list[object]:
    """The next requests are lost after they were sent; all that are sent from now on."""
    sent: list[object] = []

    def fail(_shard: int, command: object) -> None:
        sent.append(command)
        if len(sent) <= times:
            raise OutcomeUnknownError("it is lost. A write may have happened", **how)

    world.before = fail
    return sent


@pytest.mark.parametrize(
    ("way", "command"),
    [*((way, GET) for way in WAYS), ("ask_each", SEARCH), ("ask_each_sync", SEARCH)],
)
async def test_a_read_is_asked_again_until_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, way: str, command: Command
) -> None:
    world = World(2)
    client = world.connect(monkeypatch)
    sent = failing(world, 3)
    await ask(client, way, command)
    assert sent == [command] * 4


@ways
async def test_a_read_that_is_never_answered_does_not_speak_of_writes(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    world = World(2)
    client = world.connect(monkeypatch, timeout=0.2)
    failing(world, 1000, reason="it is lost")
    with pytest.raises(ActorUnavailableError, match=r"^it is lost\. It was a read") as found:
        await ask(client, way, GET)
    assert "write" not in str(found.value)


@ways
async def test_what_ends_its_actor_and_writes_are_asked_once(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    world = World(2)
    client = world.connect(monkeypatch)
    sent = failing(world, 1)
    with pytest.raises(OutcomeUnknownError):
        await ask(client, way, PUT)
    assert sent == [PUT]
    sent = failing(world, 1, ask_again=False)
    with pytest.raises(ActorUnavailableError):
        await ask(client, way, GET)
    assert sent == [GET]
