"""What commands cost, and what is too large for a shard."""

from __future__ import annotations

import msgspec
import pytest

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.engine.shard import ShardSize
from flowgentic_actors.errors import InvalidRequestError
from tests.support.engine_commands import (
    MANY,
    blob,
    item_pages,
    pack,
    prefix,
    put_checkpoint,
    put_item,
    put_writes,
    work,
)

# ---------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(
    "command",
    [
        GetCheckpoint("t500", "", None),
        ListCheckpoints("t500"),
        PutCheckpoint("t500", "", "2", None, blob(), blob(), {}, {}, {}),
        PutWrites("t500", "", "1", "task", "", (Write(0, "a", blob()),)),
        DeleteThread("t500"),
        GetItem(("users", "500"), "k"),
        PutItem(("users", "500"), "new", blob()),
        DeleteItem(("users", "500"), "k"),
        SearchItems(("users", "500"), b"", 10, 0),
        SearchItems(("users", "500"), pack({"a": 1}), 10, 0),
        ListNamespaces((prefix("users", "500"),), None, 10, 0),
    ],
    ids=lambda command: type(command).__name__,
)
def test_the_work_does_not_grow_with_the_other_threads_and_items(command: Command) -> None:
    def filled(others: range) -> Shard:
        shard = Shard()
        for number in others:
            put_checkpoint(shard, "1", f"t{number}")
            put_item(shard, ("users", str(number)), "k", {"a": 1})
        return shard

    few, many = (work(filled(others), command) for others in (range(500, 501), range(1000)))
    assert many <= few + 20


def test_one_checkpoint_is_listed_without_walking_its_thread(shard: Shard) -> None:
    for number in range(1000):
        put_checkpoint(shard, f"{number:04}")
    assert work(shard, ListCheckpoints("t", checkpoint_id="0500")) < 100
    assert work(shard, ListCheckpoints("t", before="0500", limit=1)) < 100


# ------------------------------------------------------------------------------ size and limits


def test_the_size_is_that_of_the_values_held_now(shard: Shard) -> None:
    for data, length in (b"1234567", 7), (b"12", 2):
        for _ in range(2):
            put_checkpoint(
                shard, "1", data=data, metadata=data, versions={"a": 1}, blobs={"a": blob(data)}
            )
            put_writes(shard, (-1, "__error__", data))
            shard.execute(PutItem(("n",), "k", blob(data)), 0)
            assert shard.size() == ShardSize(
                threads=1, checkpoints=1, items=1, blob_bytes=5 * length
            )


@pytest.mark.parametrize(
    "command",
    [
        ListCheckpoints(limit=-1),
        SearchItems((), b"", limit=-1, offset=0),
        SearchItems((), b"", limit=1, offset=-1),
        SearchItems((), b"x" * (64 * 1024 + 1), limit=1, offset=0),
        ListNamespaces((), max_depth=0, limit=1, offset=0),
        GetItem(("a",) * 65, "k"),
        GetItem(("a",), "k" * (64 * 1024 + 1)),
    ],
    ids=["limit", "limit", "offset", "filter", "depth", "labels", "key"],
)
def test_commands_beyond_the_limits_are_not_decoded(command: Command) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(pack(command), type=Command)


def test_a_value_that_is_not_utf8_is_passed_over_by_filters(store: Shard) -> None:
    broken = PutItem(("users",), "broken", ("msgpack", b"\x81\xa3key\xa1\xff"))
    store.execute(broken, 1)
    found = item_pages(store, SearchItems((), pack({"key": "c"}), MANY, 0))
    assert found == ["c"]


def test_a_filter_that_is_not_utf8_is_refused(store: Shard) -> None:
    with pytest.raises(InvalidRequestError, match="filter"):
        store.execute(SearchItems((), b"\x81\xa3key\xa1\xff", MANY, 0), 1)
