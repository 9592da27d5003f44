"""Commands on few keys of many slots, and replies without what differs from shard to shard."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from flowgentic_actors.engine.commands import (
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
    Query,
    RankItems,
    ReadThread,
    SearchItems,
)
from flowgentic_actors.engine.model import Scalar, Vector, Version, Write
from flowgentic_actors.engine.replies import (
    CheckpointPage,
    ItemPage,
    ItemReply,
    ItemRow,
    NamespacePage,
    RankPage,
    Reply,
    ThreadIds,
    ThreadListing,
)
from flowgentic_actors.secret import revealed

DEPTH = 2
THREADS = [f"t{number}" for number in range(16)]
NAMESPACES = [
    ("team", *rest)
    for number in range(8)
    for rest in ((), (f"n{number}",), (f"n{number}", "deep"))
    if rest or not number
]
KEYS = [f"k{number}" for number in range(5)]
RUNS = [f"r{number}" for number in range(3)]
LONG = 3_600_000_000

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


def direction(number: int) -> bytes:
    return np.array((1.0, number % 7), "<f4").tobytes()


def some_commands(rng: random.Random, count: int) -> Iterator[Command]:
    """Of every kind that writes, and reads that refresh."""
    for _ in range(count):
        number = rng.randrange(1 << 30)
        namespace, key, thread = rng.choice(NAMESPACES), rng.choice(KEYS), rng.choice(THREADS)
        blob = ("msgpack", _encode({"n": number}) + bytes(rng.randrange(90)))
        facets: dict[str, Scalar] = {"run_id": rng.choice(RUNS)}
        checkpoint_id, task = f"{rng.randrange(12):04}", rng.choice(("", "sub"))
        versions: dict[str, Version] = {"c": rng.randrange(4), "d": rng.randrange(4)}
        blobs = {channel: blob for channel in versions if rng.random() < 0.7}
        vectors = (Vector("$", direction(number)),) if rng.random() < 0.3 else ()
        put = PutItem(namespace, key, blob, rng.choice((0, 0, LONG)), vectors=vectors)
        write = Write(rng.choice((-1, 0, 1)), "c", blob)
        checkpoint = PutCheckpoint(
            thread, task, checkpoint_id, f"{number % 12:04}", blob, blob, facets, versions, blobs
        )
        choices: list[Command] = [
            *[put, put, put],
            DeleteItem(namespace, key),
            GetItem(namespace, key, refresh=True),
            *[checkpoint, checkpoint, checkpoint],
            PutWrites(thread, task, checkpoint_id, f"task-{number % 2}", "", (write,)),
            PutWrites(thread, task, checkpoint_id, "task", "path", (write,)),
            PruneThread(thread, 2),
            DropRuns(thread, (rng.choice(RUNS),)),
            *([DeleteThread(thread)] if rng.random() < 0.5 else []),
        ]
        yield rng.choice(choices)


def fan_outs(table: int = 0) -> list[Command]:
    return [
        ListCheckpoints(table=table),
        ListThreads("t", 1000, table=table),
        FindRuns(tuple(RUNS), table=table),
        SearchItems((), b"", 4096, 0, table=table),
        SearchItems(("team",), b"", 4096, 0, refresh=True, table=table),
        RankItems((), b"", direction(3), 4096, 0, table=table),
        ListNamespaces((), None, 4096, 0, table=table),
    ]


def keyed() -> Iterator[Query]:
    """What is about one key, for each of them."""
    for thread in THREADS:
        for ns in ("", "sub"):
            yield GetCheckpoint(thread, ns, None)
            yield GetChannelHistory(thread, ns, None, ("c", "d"))
        yield ListCheckpoints(thread)
        yield ReadThread(thread)
    for namespace in NAMESPACES:
        for key in KEYS:
            yield GetItem(namespace, key)
        if len(namespace) >= DEPTH:
            yield SearchItems(namespace, b"", 4096, 0)
            yield RankItems(namespace, b"", direction(3), 4096, 0)


def plain(reply: Reply) -> Any:
    """What an answer says, without the times that a clock gave."""
    match reply:
        case ItemReply(row):
            return None if row is None else _item(row)
        case ItemPage(rows, after):
            assert after is None
            return [_item(row) for row in rows]
        case RankPage(rows, after):
            assert after is None
            return [(_item(scored.row), scored.score) for scored in rows]
        case CheckpointPage(rows, after):
            assert after is None
            return list(rows)
        case ThreadListing(rows, after):
            assert after is None
            return sorted((row.thread_id, row.checkpoints, row.bytes) for row in rows)
        case ThreadIds(thread_ids):
            return sorted(thread_ids)
        case NamespacePage(namespaces):
            return list(namespaces)
        case _:
            return reply


def _item(row: ItemRow) -> Any:
    return row.namespace, row.key, row.value, row.created_us == row.updated_us
