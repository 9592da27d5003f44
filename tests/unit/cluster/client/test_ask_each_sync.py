"""Blocking calls that concern several shards: all of them work at the same time."""

from __future__ import annotations

import pytest
from langgraph.store.base import GetOp
from msgspec import Raw

from flowgentic_actors.adapters.store import AsyncStore
from flowgentic_actors.engine.commands import PutItem
from flowgentic_actors.errors import InvalidRequestError, OutcomeUnknownError
from tests.support import slots
from tests.support.slots import World

pytestmark = pytest.mark.anyio


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was begun and waited for, of which shard."""
    found: list[tuple[str, int]] = []

    class Ref(slots.Ref):
        def begin_sync(self, body: bytes, timeout: float) -> slots.Begun:
            found.append(("begun", self._shard))
            begun = super().begin_sync(body, timeout)
            finish = begun.finish

            def noted() -> Raw:
                found.append(("finished", self._shard))
                return finish()

            begun.finish = noted
            begun.give_up = lambda: found.append(("given up", self._shard))  # type: ignore[method-assign]
            return begun

    monkeypatch.setattr(slots, "Ref", Ref)
    return found


def test_all_shards_are_asked_before_any_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    world = World(3)
    store = AsyncStore(world.connect(monkeypatch))
    for number in range(12):
        store.put(("notes", str(number)), "key", {"n": number})
    assert not steps  # one question is asked as before
    assert len(store.search(("notes",), limit=100)) == 12
    assert [what for what, _ in steps] == ["begun"] * 3 + ["finished"] * 3
    assert {shard for _, shard in steps} == {0, 1, 2}


def test_what_is_asked_of_one_shard_is_asked_in_turn(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    world = World(2)
    client = world.connect(monkeypatch)
    store = AsyncStore(client)
    places = [("notes", str(number)) for number in range(40)]
    for place in places:
        store.put(place, "key", {"at": list(place)})
    found = store.batch([GetOp(place, "key") for place in places])
    assert [item.value["at"] for item in found if item is not None] == [list(p) for p in places]  # type: ignore[union-attr]
    for shard in (0, 1):
        mine = [what for what, where in steps if where == shard]
        assert mine == ["begun", "finished"] * (len(mine) // 2)


def test_an_interrupt_leaves_nothing_under_way(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    world = World(3)
    store = AsyncStore(world.connect(monkeypatch))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    world.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        store.search(("notes",))
    assert sorted(what for what, _ in steps[3:]) == ["finished", "given up", "given up"]


def test_an_error_of_one_shard_is_its_own(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    world = World(2)
    client = world.connect(monkeypatch)

    def fail(shard: int, _: object) -> None:
        if shard == 1:
            raise OutcomeUnknownError("no luck")

    world.before = fail
    mine = {client.table.of_namespace(("a", str(n))): ("a", str(n)) for n in range(50)}
    puts = [(shard, PutItem(mine[shard], "k", ("", b""))) for shard in (0, 1)]
    answers = client.ask_each_sync(puts)
    assert not isinstance(answers[0], Exception)
    assert isinstance(answers[1], OutcomeUnknownError)
    assert len(steps) == 4


async def test_half_a_character_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AsyncStore(World(2).connect(monkeypatch))
    with pytest.raises(InvalidRequestError, match="half of a surrogate pair"):
        await store.aput(("notes", "me"), "\udc80", {"n": 1})
    with pytest.raises(InvalidRequestError, match="half of a surrogate pair"):
        store.get(("notes", "\ud800"), "key")
    with pytest.raises(InvalidRequestError, match="half of a surrogate pair"):
        store.batch([GetOp(("notes", "\ud800"), "key"), GetOp(("notes", "me"), "key")])
