"""Checkpoints, pending writes and whole threads: rules of LangGraph's savers, one test each."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    DeleteItem,
    DeleteThread,
    ListCheckpoints,
    PutCheckpoint,
)
from flowgentic_actors.engine.model import Scalar, Version
from flowgentic_actors.engine.replies import CheckpointRow, Done, MissingBlobs
from tests.support.engine_commands import (
    EMPTY,
    blob,
    found,
    get,
    listed,
    listed_ids,
    put_checkpoint,
    put_writes,
)


def pending(shard: Shard, checkpoint_id: str = "1") -> list[tuple[str, str, bytes]]:
    return [
        (task, channel, data) for task, channel, (_, data) in found(shard, checkpoint_id).writes
    ]


# ------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_as_it_was_put(shard: Shard) -> None:
    put_checkpoint(
        shard,
        "2",
        parent_id="1",
        data=b"c",
        metadata=b"m",
        versions={"a": "1.x", "b": 7},
        blobs={"a": ("msgpack+aes", b"opaque")},
    )
    assert found(shard, "2") == CheckpointRow(
        "t",
        "",
        "2",
        "1",
        blob(b"c"),
        blob(b"m"),
        {"a": "1.x", "b": 7},
        {"a": ("msgpack+aes", b"opaque")},
        (),
    )


def test_the_latest_is_the_highest_id_as_text_whatever_came_last(shard: Shard) -> None:
    for checkpoint_id in "9", "30", "10":
        put_checkpoint(shard, checkpoint_id)
    assert found(shard).checkpoint_id == "9"


@pytest.mark.parametrize("no_id", [None, ""])
def test_no_id_and_an_empty_id_mean_the_latest(shard: Shard, no_id: str | None) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2")
    assert found(shard, no_id).checkpoint_id == "2"


def test_the_latest_is_that_of_its_own_namespace(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2", checkpoint_ns="child")
    assert found(shard).checkpoint_id == "1"
    assert found(shard, checkpoint_ns="child").checkpoint_id == "2"


def test_an_unknown_checkpoint_is_none_and_asking_creates_nothing(shard: Shard) -> None:
    assert get(shard) is None
    assert shard.size() == EMPTY
    put_checkpoint(shard, "1")
    size = shard.size()
    assert get(shard, "2") is None
    assert get(shard, "1", "other") is None
    assert get(shard, "1", "t", "other") is None
    assert shard.size() == size


def test_a_value_is_stored_once_and_shared_by_the_checkpoints_that_have_it(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob(b"large" * 1000)})
    before = shard.size().blob_bytes
    assert put_checkpoint(shard, "2", versions={"a": "1"}, present=("a",)) == Done()
    assert shard.size().blob_bytes - before == len(b"checkpoint" + b"metadata")
    assert found(shard, "2").blobs == {"a": blob(b"large" * 1000)}


def test_a_value_never_given_is_asked_for_and_nothing_is_stored(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    size = shard.size()
    command = PutCheckpoint(
        "t", "", "2", "1", blob(), blob(), {}, {"a": "2", "b": "1"}, {"b": blob()}, ("a",)
    )
    assert shard.execute(command, 0) == (MissingBlobs(("a",)), None)
    assert shard.size() == size
    assert get(shard, "2") is None

    again = replace(command, blobs={"a": blob(b"a"), "b": blob(b"b")}, present=())
    assert shard.execute(again, 0).reply == Done()
    assert found(shard, "2").blobs == {"a": blob(b"a"), "b": blob(b"b")}


@pytest.mark.parametrize(("thread_id", "checkpoint_ns"), [("t", "child"), ("other", "")])
def test_values_are_known_within_their_thread_and_namespace(
    shard: Shard, thread_id: str, checkpoint_ns: str
) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    reply = put_checkpoint(
        shard, "2", thread_id, checkpoint_ns, versions={"a": "1"}, present=("a",)
    )
    assert reply == MissingBlobs(("a",))


def test_a_channel_without_a_version_has_no_value(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": ""}, blobs={"a": blob(), "b": blob()})
    assert found(shard).blobs == {"a": blob()}
    assert put_checkpoint(shard, "2", versions={}, present=("a",)) == MissingBlobs(("a",))


def test_an_emptied_channel_stays_empty(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1"}, blobs={"a": blob()})
    put_checkpoint(shard, "2", versions={"a": "2"}, blobs={"a": ("empty", b"")})
    assert found(shard).blobs == {"a": ("empty", b"")}


def test_a_fork_keeps_its_siblings_values(shard: Shard) -> None:
    put_checkpoint(shard, "1", versions={"a": "1.r"}, blobs={"a": blob(b"root")})
    for checkpoint_id, version in ("2", "2.left"), ("3", "2.right"):
        put_checkpoint(
            shard,
            checkpoint_id,
            parent_id="1",
            versions={"a": version},
            blobs={"a": blob(version.encode())},
        )
    assert [found(shard, i).blobs["a"][1] for i in "123"] == [b"root", b"2.left", b"2.right"]
    assert [found(shard, i).parent_id for i in "123"] == [None, "1", "1"]


def test_putting_a_checkpoint_again_replaces_it(shard: Shard) -> None:
    put_checkpoint(shard, "1", parent_id="0", data=b"old", facets={"step": 1})
    put_writes(shard, (0, "a", b"kept"))
    put_checkpoint(shard, "1", data=b"new", facets={"step": 2})
    assert listed_ids(shard, ListCheckpoints()) == "1"
    assert listed_ids(shard, ListCheckpoints(facets={"step": 1})) == ""
    row = found(shard, "1")
    assert (row.parent_id, row.checkpoint) == (None, blob(b"new"))
    assert pending(shard) == [("task", "a", b"kept")]


def test_changing_what_was_returned_does_not_change_history(shard: Shard) -> None:
    versions: dict[str, Version] = {"a": "1"}
    facets: dict[str, Scalar] = {"step": 1}
    put_checkpoint(shard, "1", versions=versions, facets=facets, blobs={"a": blob()})
    found(shard).versions["a"] = "3"
    assert found(shard).versions == {"a": "1"}
    assert found(shard).blobs == {"a": blob()}
    assert listed_ids(shard, ListCheckpoints(facets={"step": 1})) == "1"


# ---------------------------------------------------------------------------- pending writes


def test_at_a_regular_index_the_first_write_wins(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    assert put_writes(shard, (0, "a", b"first"), (1, "b", b"other"))
    assert not put_writes(shard, (0, "a", b"second"))
    assert pending(shard) == [("task", "a", b"first"), ("task", "b", b"other")]


def test_a_special_channel_keeps_the_last_write(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (-3, "__interrupt__", b"first"))
    assert put_writes(shard, (-3, "__interrupt__", b"second"))
    assert pending(shard) == [("task", "__interrupt__", b"second")]


def test_a_mixed_batch_is_decided_write_by_write(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (0, "a", b"first"), (-1, "__error__", b"first"))
    assert put_writes(shard, (0, "a", b"second"), (-1, "__error__", b"second"), (2, "b", b"new"))
    assert pending(shard) == [
        ("task", "__error__", b"second"),
        ("task", "a", b"first"),
        ("task", "b", b"new"),
    ]


def test_within_one_batch_the_same_rules_hold(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (0, "a", b"1"), (0, "a", b"2"), (-4, "__resume__", b"1"))
    put_writes(shard, (-4, "__resume__", b"2"), (-4, "__resume__", b"3"))
    assert pending(shard) == [("task", "__resume__", b"3"), ("task", "a", b"1")]


def test_writes_of_different_tasks_and_checkpoints_do_not_meet(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_checkpoint(shard, "2")
    put_writes(shard, (0, "a", b"1"))
    put_writes(shard, (0, "a", b"2"), task="other")
    put_writes(shard, (0, "a", b"3"), checkpoint_id="2")
    assert pending(shard) == [("other", "a", b"2"), ("task", "a", b"1")]
    assert pending(shard, "2") == [("task", "a", b"3")]


def test_pending_writes_are_ordered_by_path_then_task_then_index(shard: Shard) -> None:
    put_checkpoint(shard, "1")
    put_writes(shard, (10, "k", b""), (2, "j", b""), (-1, "i", b""), task="z", path="~b")
    put_writes(shard, (0, "h", b""), task="y", path="~b")
    put_writes(shard, (0, "g", b""), task="zz", path="~a")
    put_writes(shard, (0, "f", b""), task="zzz")
    assert "".join(channel for _, channel, _ in pending(shard)) == "fghijk"


def test_writes_that_come_before_their_checkpoint_are_kept(shard: Shard) -> None:
    assert put_writes(shard, (0, "a", b"early"), checkpoint_id="2")
    assert get(shard) is None
    assert get(shard, "2") is None
    assert listed(shard, ListCheckpoints()) == []
    put_checkpoint(shard, "1")
    assert found(shard).checkpoint_id == "1"
    put_checkpoint(shard, "2")
    assert pending(shard, "2") == [("task", "a", b"early")]


def test_no_writes_are_no_change(shard: Shard) -> None:
    assert not put_writes(shard)
    assert shard.size() == EMPTY


# ---------------------------------------------------------------------------- deleting threads


def test_deleting_a_thread_forgets_checkpoints_values_and_writes(shard: Shard) -> None:
    for checkpoint_ns in "", "child":
        put_checkpoint(shard, "1", "t", checkpoint_ns, versions={"a": 1}, blobs={"a": blob()})
    put_writes(shard, (0, "a", b"pending"))
    put_writes(shard, (0, "a", b"early"), checkpoint_id="2")
    shard.execute(DeleteThread("t"), 0)
    assert shard.size() == EMPTY
    assert get(shard) is None
    assert put_checkpoint(shard, "1", versions={"a": 1}, present=("a",)) == MissingBlobs(("a",))
    put_checkpoint(shard, "1")
    assert pending(shard) == []


def test_deleting_a_thread_leaves_the_others(history: Shard) -> None:
    history.execute(DeleteThread("a"), 0)
    assert listed(history, ListCheckpoints()) == [("4", "b", ""), ("2", "b", "")]


def test_deleting_what_is_not_there_is_done_without_a_record(shard: Shard) -> None:
    assert shard.execute(DeleteThread("t"), 0) == (Done(), None)
    assert shard.execute(DeleteItem(("a",), "k"), 0) == (Done(), None)
