"""What a checkpoint has beside its values: made in one pass, and checked without encoding it."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_metadata

from flowgentic_actors.adapters import heads
from flowgentic_actors.adapters.heads import checked, checked_task, metadata_of
from flowgentic_actors.adapters.indexed_metadata import facets_of
from flowgentic_actors.engine.limits import CheckpointHead, decode_checkpoint, encode
from flowgentic_actors.errors import InvalidRequestError


class Kind(StrEnum):
    LOOP = "loop"


class Step(IntEnum):
    ONE = 1


class Folded(str):
    """Text that equals other text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str.lower(self) == str.lower(other)

    def __hash__(self) -> int:
        return hash(str.lower(self))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"source": "loop", "step": 1, "parents": {}, "run_id": "r"},
        {"source": Kind.LOOP, "step": Step.ONE, "score": 0.5, "flag": True, "none": None},
        {"text": "a\0b", "kind": Folded("A\0"), "many": [1], "large": 2**70, "ä": "ö"},
    ],
)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"metadata": None, "configurable": {"thread_id": "t", "checkpoint_ns": "", "user": "u"}},
        {
            "metadata": {
                "source": "other",
                "langgraph_step": 1,
                "tags": ["a"],
                "n": 1.5,
                "b": True,
            },
            "configurable": {"__pregel_read": 1, "n": 2, "kind": Kind.LOOP, "text": "c\0", "o": []},
        },
    ],
)
def test_metadata_is_as_langgraph_makes_it(
    config: RunnableConfig, metadata: dict[str, Any]
) -> None:
    merged, facets = metadata_of(config, metadata)  # type: ignore[arg-type]
    usual: Any = get_checkpoint_metadata(config, metadata)  # type: ignore[arg-type]
    assert merged == usual
    assert list(merged) == list(usual)
    assert {name: type(value) for name, value in merged.items()} == {
        name: type(value) for name, value in usual.items()
    }
    assert facets == facets_of(usual)
    assert all(type(value) in (str, int, float, bool, type(None)) for value in facets.values())


def head(**fields: Any) -> CheckpointHead:
    usual: dict[str, Any] = {
        "thread_id": "t",
        "checkpoint_ns": "",
        "checkpoint_id": "c",
        "parent_id": None,
        "metadata": {"source": "loop"},
        "channel_versions": {"messages": "1.5"},
        "deltas": (),
    }
    return CheckpointHead(**(usual | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"thread_id": "ä", "checkpoint_id": Kind.LOOP, "parent_id": "p"},
        {"channel_versions": {Kind.LOOP: "1", Folded("MESSAGES"): Kind.LOOP}},
        {"channel_versions": {"n" * 300: 1, "messages": 2.5, "": "v" * 256}},
        {"channel_versions": {f"c{n}": f"{n:032}" for n in range(5000)}},
        {"metadata": {Folded("Source"): "x", "ö": "ü", "n": 1, "none": None}},
        {"deltas": ("messages",)},
    ],
)
def test_a_head_that_is_checked_is_what_would_arrive(fields: dict[str, Any]) -> None:
    checked(head(channel_versions={"messages": "1", "loop": "1"}))  # names that are remembered
    arrived = decode_checkpoint(encode(head(**fields)))
    found = checked(head(**fields))
    assert found == arrived
    assert repr(found) == repr(arrived)  # no other kinds of text
    versions = {"messages": "1"}
    assert checked(head(channel_versions=versions)).channel_versions is not versions


@pytest.mark.parametrize(
    "fields",
    [
        {"thread_id": "t" * 65_537},
        {"checkpoint_id": None},
        {"checkpoint_id": "\ud800"},
        {"parent_id": "p" * 65_537},
        {"channel_versions": {"messages": "v" * 257}},
        {"channel_versions": {"messages": None}},
        {"channel_versions": {"messages": "\ud800", "a": "b"}},
        {"channel_versions": {"n" * 65_537: "1"}},
        {"channel_versions": {5: "1"}},
        {"channel_versions": dict.fromkeys(map(str, range(65_537)), "1")},
        {"deltas": ("d" * 65_537,)},
    ],
)
def test_what_is_beyond_a_limit_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        checked(head(**fields))


def test_tasks() -> None:
    ids = ("t", "", "c")
    good: list[tuple[str, str, list[str]]] = [
        ("task", "path", ["messages"]),
        ("task", "path", [Folded("MESSAGES")]),
        (Kind.LOOP, "ö", ["ä", "n" * 300]),
    ]
    for task, path, channels in good:
        found = checked_task(ids, task, path, [(channel, 1) for channel in channels])
        assert repr(found) == repr((str.__str__(task), path))
    wrong: list[tuple[Any, str, list[Any]]] = [
        ("task", "path", ["n" * 65_537]),
        ("task", "\ud800", ["messages"]),
        ("task", "path", ["\ud800"]),
        ("task", "path", [["messages"]]),
        ("task" * 20_000, "", ["messages"]),
        (None, "", ["messages"]),
    ]
    for task, path, channels in wrong:
        with pytest.raises(InvalidRequestError):
            checked_task(ids, task, path, [(channel, 1) for channel in channels])


def test_names_that_are_remembered_are_few() -> None:
    for start in range(0, 100_000, 1000):
        names = {f"channel-{n}": "1" for n in range(start, start + 1000)}
        checked(head(channel_versions=names))
    assert len(heads._names) <= 5000
