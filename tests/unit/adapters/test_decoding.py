"""What stored values become when they are decoded, and what they never do."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import UUID

import ormsgpack
import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.base import Item
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from flowgentic_actors import MemoryConfig, StrictSerializer, TypeNotAllowedError
from flowgentic_actors.adapters.decoding import serializer_of
from flowgentic_actors.adapters.items import VersionedItem
from tests.support.forged_values import FORGED, Ran, ext, ran

__all__ = ["ran"]  # the fixture


@dataclass
class Person:
    name: str


@dataclass
class Team:
    people: list[Any]


@pytest.mark.parametrize("forge", FORGED.values(), ids=list(FORGED))
def test_strict_decoding_runs_nothing_and_says_so(ran: Ran, forge: Callable[[Ran], Any]) -> None:
    stored = JsonPlusSerializer().dumps_typed({"value": forge(ran)})
    strict = StrictSerializer([Person])

    with pytest.raises(
        TypeNotAllowedError,
        match=r"type (\w+\.\w+), .*allowed_types=",
    ):
        strict.loads_typed(stored)
    assert not ran
    assert strict.loads_typed(strict.dumps_typed([1, Person("ada")])) == [1, Person("ada")]

    JsonPlusSerializer().loads_typed(stored)
    assert ran  # so it is what it is said to be


@pytest.mark.parametrize("kind", ["pickle", "json", "msgpack+aes", "other"])
def test_strict_decoding_refuses_other_encodings(ran: Ran, kind: str) -> None:
    class Pickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (ran.code,)

    model = {"lc": 1, "type": "constructor", "id": ["langchain_core", "messages", "AIMessage"]}
    data = json.dumps(model).encode() if kind == "json" else pickle.dumps(Pickled())
    with pytest.raises(TypeNotAllowedError, match=f"encoded as '{kind.replace('+', '.')}'"):
        StrictSerializer().loads_typed((kind, data))
    assert not ran


def test_no_pickle_is_decoded_by_default() -> None:
    with pytest.raises(NotImplementedError, match="pickle"):
        serializer_of(None).loads_typed(("pickle", pickle.dumps(1)))


def test_a_method_of_another_type_is_refused() -> None:
    value = ext(3, "pathlib", "Path", "/", "rmdir")
    with pytest.raises(TypeNotAllowedError, match=r"pathlib\.Path.*rmdir\(\).*cannot be allowed"):
        StrictSerializer([("pathlib", "Path")]).loads_typed(("msgpack", ormsgpack.packb(value)))


def test_plain_values_and_langgraphs_own_types_are_decoded() -> None:
    now = datetime.now(UTC)
    item = VersionedItem(
        version=3, value={"a": 1}, key="k", namespace=("n",), created_at=now, updated_at=now
    )
    value = {
        "plain": [None, True, 1, 1.5, "text", b"bytes", {"a": {1: 2}}],
        "standard": [now, {1, 2}, UUID(int=5), Path("/a")],
        "langgraph": [Send("node", {"a": 1}), Interrupt("why", id="1"), AIMessage("hi", id="m")],
        "item": item,
    }
    strict = StrictSerializer()
    found = strict.loads_typed(strict.dumps_typed(value))

    assert found == value
    assert isinstance(found["item"], Item)


def test_named_types_are_decoded_and_what_is_in_them_is_asked_about_too() -> None:
    dumps = JsonPlusSerializer().dumps_typed
    team = dumps(Team(people=[Person("ada")]))
    named = StrictSerializer([Team, (Person.__module__, "Person")])

    assert named.loads_typed(team) == Team(people=[Person("ada")])
    with pytest.raises(TypeNotAllowedError, match=r"test_decoding\.Person"):
        StrictSerializer([Team]).loads_typed(team)
    wider = StrictSerializer([Team]).with_msgpack_allowlist([Person])
    assert wider.loads_typed(team) == Team(people=[Person("ada")])


def test_an_encrypting_serializer_is_as_strict_as_the_one_within() -> None:
    class Shift:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "shift", bytes(byte ^ 1 for byte in plaintext)

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            return self.encrypt(ciphertext)[1]

    serde = EncryptedSerializer(Shift(), StrictSerializer())
    for stored in (serde.dumps_typed(Person("ada")), serde.serde.dumps_typed(Person("ada"))):
        with pytest.raises(TypeNotAllowedError, match="Person"):
            serde.loads_typed(stored)


def test_a_type_that_could_not_be_found_is_refused_when_it_is_named() -> None:
    class Local:
        pass

    with pytest.raises(ValueError, match=r"allowed_types.*\n.*Local is defined within"):
        MemoryConfig(allowed_types=(Local,))  # type: ignore[arg-type]
    named = MemoryConfig(allowed_types=[Person, ("app.state", "Team")])  # type: ignore[arg-type]
    assert named.allowed_types == ((__name__, "Person"), ("app.state", "Team"))


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    first: T


PAGE = Page[int](first=1)


def test_a_generic_model_is_allowed_as_the_error_says_and_as_itself() -> None:
    stored = StrictSerializer().dumps_typed(PAGE)
    with pytest.raises(TypeNotAllowedError) as raised:
        StrictSerializer().loads_typed(stored)
    told = re.search(r"allowed_types=(\[.*\])\. If", str(raised.value))
    assert told is not None
    ways: list[Any] = [literal_eval(told[1]), [Page[int]]]
    for types in ways:
        allowed = MemoryConfig(allowed_types=types).allowed_types
        assert allowed == ((__name__, "Page[int]"),)
        assert StrictSerializer(allowed).loads_typed(stored) == PAGE
    with pytest.raises(ValueError, match="allowed_types"):
        MemoryConfig(allowed_types=[(__name__, "Page[")])  # type: ignore[arg-type]


GRAPH = """
from dataclasses import dataclass
from typing import Any, TypedDict
from langgraph.graph import START, StateGraph
from flowgentic_actors import MemoryCluster, TypeNotAllowedError

@dataclass
class Known:
    name: str

@dataclass
class Unknown:
    name: str

class State(TypedDict):
    known: Known
    other: Any

THREAD = {"configurable": {"thread_id": "t"}}
with MemoryCluster(mode="local") as memory:
    builder = StateGraph(State).add_node("n", lambda state: {"other": state["other"]})
    graph = builder.add_edge(START, "n").compile(checkpointer=memory.checkpointer)
    graph.invoke({"known": Known("ada"), "other": 1}, THREAD)
    assert graph.get_state(THREAD).values["known"] == Known("ada")
    memory.store.put(("n",), "k", {"a": Known("ada")})
    memory.cache.set({(("n",), "k"): (Known("ada"), None)})
    def put_unknown(): graph.invoke({"known": Known("ada"), "other": Unknown("bob")}, THREAD)
    put_unknown()
    for read in (
        lambda: graph.get_state(THREAD),
        lambda: memory.store.get(("n",), "k"),
        lambda: memory.cache.get([(("n",), "k")]),
    ):
        try:
            read()
        except TypeNotAllowedError as error:
            print(str(error).split(", which is not")[0])
"""


def test_langgraphs_variable_makes_all_of_it_strict_and_its_graphs_name_their_types() -> None:
    strict = {"LANGGRAPH_STRICT_MSGPACK": "true", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", GRAPH],
        env=strict,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = done.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in told] == [
        "__main__.Unknown",
        "__main__.Known",
        "__main__.Known",
    ], done.stderr
    assert "of thread 't'" in told[0]
    assert told[1].startswith("the item 'k' in ('n',)")
