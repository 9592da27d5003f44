"""Short ways to ask a shard, and to say what it holds."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from flowgentic_actors.engine import Shard, pace
from flowgentic_actors.engine.commands import (
    Command,
    GetCheckpoint,
    ListCheckpoints,
    Match,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Blob, Scalar, Version, Write
from flowgentic_actors.engine.replies import (
    CheckpointPage,
    CheckpointReply,
    CheckpointRow,
    Done,
    ItemPage,
    Reply,
)
from flowgentic_actors.engine.shard import ShardSize

EMPTY = ShardSize(threads=0, checkpoints=0, items=0, blob_bytes=0)
MANY = 10**6

pack = msgspec.msgpack.encode


def blob(data: bytes = b"x") -> Blob:
    return "msgpack", data


def put_checkpoint(
    shard: Shard,
    checkpoint_id: str,
    thread_id: str = "t",
    checkpoint_ns: str = "",
    *,
    parent_id: str | None = None,
    data: bytes = b"checkpoint",
    metadata: bytes = b"metadata",
    facets: dict[str, Scalar] | None = None,
    versions: dict[str, Version] | None = None,
    blobs: dict[str, Blob] | None = None,
    present: tuple[str, ...] = (),
) -> Reply:
    return shard.execute(
        PutCheckpoint(
            thread_id,
            checkpoint_ns,
            checkpoint_id,
            parent_id,
            blob(data),
            blob(metadata),
            facets or {},
            versions or {},
            blobs or {},
            present,
        ),
        0,
    ).reply


def put_writes(
    shard: Shard,
    *writes: tuple[int, str, bytes],
    checkpoint_id: str = "1",
    task: str = "task",
    path: str = "",
) -> bool:
    """Whether anything was stored."""
    reply, record = shard.execute(
        PutWrites(
            "t",
            "",
            checkpoint_id,
            task,
            path,
            tuple(Write(index, channel, blob(data)) for index, channel, data in writes),
        ),
        0,
    )
    assert reply == Done()
    return record is not None


def get(
    shard: Shard, checkpoint_id: str | None = None, thread_id: str = "t", checkpoint_ns: str = ""
) -> CheckpointRow | None:
    reply = shard.execute(GetCheckpoint(thread_id, checkpoint_ns, checkpoint_id), 0).reply
    assert isinstance(reply, CheckpointReply)
    return reply.row


def found(
    shard: Shard, checkpoint_id: str | None = None, thread_id: str = "t", checkpoint_ns: str = ""
) -> CheckpointRow:
    row = get(shard, checkpoint_id, thread_id, checkpoint_ns)
    assert row is not None
    return row


def page(shard: Shard, query: ListCheckpoints) -> CheckpointPage:
    reply = shard.execute(query, 0).reply
    assert isinstance(reply, CheckpointPage)
    return reply


def listed(shard: Shard, query: ListCheckpoints) -> list[tuple[str, str, str]]:
    return [(r.checkpoint_id, r.thread_id, r.checkpoint_ns) for r in page(shard, query).rows]


def listed_ids(shard: Shard, query: ListCheckpoints) -> str:
    return " ".join(row.checkpoint_id for row in page(shard, query).rows)


def pages(shard: Shard, query: ListCheckpoints) -> list[str]:
    """The ids on each page, to the last."""
    answer = page(shard, query)
    ids = [" ".join(row.checkpoint_id for row in answer.rows)]
    return ids if answer.after is None else ids + pages(shard, replace(query, after=answer.after))


def put_item(
    shard: Shard, namespace: tuple[str, ...], key: str, value: Any = None, now_us: int = 0
) -> None:
    shard.execute(PutItem(namespace, key, blob(pack({} if value is None else value))), now_us)


def search(
    shard: Shard,
    prefix: tuple[str, ...] = (),
    filter_: Any = None,
    *,
    limit: int = MANY,
    offset: int = 0,
) -> ItemPage:
    encoded = b"" if filter_ is None else pack(filter_)
    reply = shard.execute(SearchItems(prefix, encoded, limit, offset), 0).reply
    assert isinstance(reply, ItemPage)
    return reply


def keys(answer: ItemPage) -> str:
    return " ".join(row.key for row in answer.rows)


def item_pages(shard: Shard, query: SearchItems) -> list[str]:
    """The keys on each page, to the last."""
    answer = shard.execute(query, 0).reply
    assert isinstance(answer, ItemPage)
    if answer.after is None:
        return [keys(answer)]
    offset = query.offset - answer.skipped
    rest = item_pages(shard, replace(query, after=answer.after, offset=offset))
    return [keys(answer), *rest]


def pages_end_after(monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """Have the time of each page be over when it looks at the clock first."""
    monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pace, "LOOKS", looks)


# ---------------------------------------------------------------------------------- namespaces


def prefix(*path: str) -> Match:
    return Match("prefix", path)


# ---------------------------------------------------------------------------------------- cost


def work(shard: Shard, command: Command) -> int:
    """How many calls a command takes, of Python and of C functions alike."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        shard.execute(command, 0)
    finally:
        sys.setprofile(previous)
    return calls
