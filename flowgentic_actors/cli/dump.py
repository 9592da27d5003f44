"""`flowgentic-actors dump`: a listing of a memory on disk. Needs no cluster, changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flowgentic_actors.adapters.chunked_lists.format import find, load
from flowgentic_actors.cli.snapshot import add_memory
from flowgentic_actors.cli.values import readable
from flowgentic_actors.cluster.persistence.cluster_folders import find_memory
from flowgentic_actors.cluster.persistence.manifest import Manifest, read_manifest, shard_folders
from flowgentic_actors.cluster.persistence.memory_lock import is_held, read_lock_owner
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import ListCheckpoints
from flowgentic_actors.engine.model import Blob
from flowgentic_actors.engine.records import ItemStored
from flowgentic_actors.engine.replies import CheckpointPage, CheckpointRow
from flowgentic_actors.errors import PersistError
from flowgentic_actors.shard.journaling.offline_index import OfflineIndex, ThreadSummary
from flowgentic_actors.shard.journaling.offline_reader import OfflineReader

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class DumpOptions:
    """The options of the listing.

    Attributes:
        memory: A `persist_path`, a cluster's folder, or the name of a live cluster or an orphan.
        scratch: Where names are looked up.
        thread: List this thread's checkpoints and nothing else.
        namespace: List the items at and below this namespace, labels joined by dots, and nothing
            else.
        values: With the values, decoded where that is safe.
        json: One JSON object a line.
    """

    memory: str
    scratch: Path | None = None
    thread: str | None = None
    namespace: str | None = None
    values: bool = False
    json: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_memory(parser)
    parser.add_argument("--thread", metavar="ID", help="only the checkpoints of this thread")
    parser.add_argument(
        "--namespace", metavar="A.B", help="only the items at and below this namespace"
    )
    parser.add_argument("--values", action="store_true", help="with the values")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run_dump(options: DumpOptions) -> int:
    """Print the listing; returns the exit code."""
    path = find_memory(options.memory, options.scratch)
    tell = _tell_json if options.json else _tell_text
    try:
        for row in _rows(path, options):
            tell(row)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed once more
    return 0


def _rows(path: Path, options: DumpOptions) -> Iterator[dict[str, Any]]:
    try:
        manifest = read_manifest(path)
        if manifest is None:
            raise PersistError(f"{path} is no memory any more")
        live = is_held(path)
        with ExitStack() as stack:
            readers = [
                stack.enter_context(OfflineReader(folder, live=live))
                for folder in shard_folders(path, manifest)
            ]
            yield from _listing(path, manifest, readers, options, live=live)
    except OSError as error:
        raise PersistError(f"cannot read {path}: {error}") from error


def _listing(
    path: Path,
    manifest: Manifest,
    readers: Sequence[OfflineReader],
    options: DumpOptions,
    *,
    live: bool,
) -> Iterator[dict[str, Any]]:
    catalogues = [OfflineIndex(reader) for reader in readers]
    threads = {
        thread_id: (thread, reader)
        for catalogue, reader in zip(catalogues, readers, strict=True)
        for thread_id, thread in catalogue.threads.items()
    }
    if options.thread is not None:
        if options.thread not in threads:
            raise PersistError(f"{path} has no thread {options.thread!r}")
        yield from _checkpoints(options.thread, *threads[options.thread], options)
        return
    if options.namespace is None:
        yield _memory(path, manifest, live=live)
        for thread_id, (thread, _) in sorted(threads.items()):
            yield {
                "kind": "thread",
                "thread": thread_id,
                "checkpoints": len(thread.checkpoints),
                "namespaces": thread.namespaces,
                "last": thread.last_id,
                "bytes": thread.bytes,
            }
    yield from _items(path, catalogues, readers, options)


def _memory(path: Path, manifest: Manifest, *, live: bool) -> dict[str, Any]:
    state = "closed in order" if manifest.closed else "not closed in order"
    return {
        "kind": "memory",
        "path": str(path),
        "name": manifest.name,
        "shards": manifest.shards,
        "generation": manifest.generation,
        "namespace_depth": manifest.namespace_depth,
        "version": manifest.version,
        "created": _seconds(manifest.created),
        "opened": _seconds(manifest.opened),
        "closed": _seconds(manifest.closed) if manifest.closed else None,
        "state": f"open in {read_lock_owner(path)}" if live else state,
    }


def _items(
    path: Path,
    catalogues: Sequence[OfflineIndex],
    readers: Sequence[OfflineReader],
    options: DumpOptions,
) -> Iterator[dict[str, Any]]:
    below = tuple(options.namespace.split(".")) if options.namespace else ()
    places = [
        (place, shard)
        for shard, catalogue in enumerate(catalogues)
        for place in catalogue.items
        if place[0][: len(below)] == below
    ]
    if options.namespace is not None and not places:
        raise PersistError(f"{path} has no items at or below the namespace {options.namespace!r}")
    for (namespace, key), shard in sorted(places):
        item = catalogues[shard].items[namespace, key]
        row: dict[str, Any] = {
            "kind": "item",
            "namespace": namespace,
            "key": key,
            "type": item.type,
            "bytes": item.size,
            "created": _time(item.created_us),
            "updated": _time(item.updated_us),
        }
        if options.values:
            record = readers[shard].read(item.lsn)
            assert isinstance(record, ItemStored)
            row["value"] = readable(*record.value)
        yield row


def _checkpoints(
    thread_id: str, thread: ThreadSummary, reader: OfflineReader, options: DumpOptions
) -> Iterator[dict[str, Any]]:
    """The checkpoints of a thread, answered by a shard that holds this thread alone."""
    shard = Shard()
    for lsn in thread.lsns:
        shard.apply(reader.read(lsn))
    query = ListCheckpoints(thread_id=thread_id)
    while True:
        page = shard.query(query, 0)
        assert isinstance(page, CheckpointPage)
        for row in page.rows:
            yield _checkpoint(row, options)
        if page.after is None:
            return
        query = ListCheckpoints(thread_id=thread_id, after=page.after)


def _checkpoint(row: CheckpointRow, options: DumpOptions) -> dict[str, Any]:
    found = find(row.versions, row.blobs)
    sizes = {channel: len(data) for channel, (_, data) in found.blobs.items()}
    sizes.update((channel, parted.size) for channel, parted in found.lists.items())
    told: dict[str, Any] = {
        "kind": "checkpoint",
        "thread": row.thread_id,
        "namespace": row.checkpoint_ns,
        "id": row.checkpoint_id,
        "parent": row.parent_id,
        "channels": sizes,
        "bytes": len(row.checkpoint[1]) + len(row.metadata[1]),
        "writes": len(row.writes),
    }
    if options.values:
        told["checkpoint"] = readable(*row.checkpoint)
        told["metadata"] = readable(*row.metadata)
        told["values"] = {channel: readable(*blob) for channel, blob in found.blobs.items()}
        for channel, parted in found.lists.items():
            told["values"][channel] = load(parted.parts, row.blobs, _readable_items)
        told["pending"] = [
            {"task": task, "channel": channel, "value": readable(*value)}
            for task, channel, value in row.writes
        ]
    return told


def _readable_items(blob: Blob) -> list[Any]:
    """The items of a list's chunk; an unreadable one is reported in place of its items."""
    items = readable(*blob)
    return items if isinstance(items, list) else [items]


# ---------------------------------------------------------------------- telling


def _tell_json(row: dict[str, Any]) -> None:
    print(json.dumps(row))


def _tell_text(row: dict[str, Any]) -> None:
    match row["kind"]:
        case "memory":
            print(
                f"{row['path']}: memory of cluster {row['name']}, {row['state']}\n"
                f"  {row['shards']} shards, namespace_depth {row['namespace_depth']}, generation "
                f"{row['generation']}, written by version {row['version']}\n"
                f"  created {row['created']}, opened {row['opened']}, closed {row['closed'] or '-'}"
            )
        case "thread":
            print(
                f"thread {_text(row['thread'])}  {row['checkpoints']} checkpoints in "
                f"{len(row['namespaces'])} namespaces, {row['bytes']} bytes, "
                f"last {_text(row['last']) or '-'}"
            )
        case "checkpoint":
            print(
                f"checkpoint {_text(row['id'])}  namespace {_text(row['namespace']) or '-'}, "
                f"parent {_text(row['parent'] or '-')}, {len(row['channels'])} channels, "
                f"{row['bytes'] + sum(row['channels'].values())} bytes, {row['writes']} writes"
            )
        case _:
            namespace = ".".join(map(_text, row["namespace"]))
            print(
                f"item {namespace} / {_text(row['key'])}  {row['type']}, {row['bytes']} bytes, "
                f"created {row['created']}, updated {row['updated']}"
            )
    for part in ("value", "checkpoint", "metadata", "values", "pending"):
        if part in row:
            text = json.dumps(row[part], ensure_ascii=False)
            print(f"    {part}: {text if text.isprintable() else json.dumps(row[part])}")


def _text(text: str) -> str:
    """Escape a text so that it cannot control the terminal."""
    return text if text.isprintable() else json.dumps(text)


def _time(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="milliseconds")


def _seconds(seconds: float) -> str:
    return _time(int(seconds * 1e6))
