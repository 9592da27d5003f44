"""What an opener decided holds for all who attach, and for all who open its memory later."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import PutOp, SearchOp

from flowgentic_actors import AsyncStore, MemoryCluster, MemoryConfig
from flowgentic_actors.cluster.persistence.snapshot import snapshot
from flowgentic_actors.cluster.protocol.shared_settings import IndexSettings, SharedSettings
from flowgentic_actors.errors import (
    ClusterOpenError,
    FlowgenticError,
    InvalidRequestError,
    PersistError,
)
from tests.conftest import SETTINGS
from tests.support.faces import StoreFace
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio

LETTERS = "abcdefgh"


def embed(texts: list[str]) -> list[list[float]]:
    return [[float(text.count(letter)) for letter in LETTERS] for text in texts]


def index_of(dims: int = 8) -> dict[str, Any]:
    vectors = embed if dims == 8 else lambda texts: [row[:dims] for row in embed(texts)]
    return {"dims": dims, "embed": vectors, "fields": ["text"]}


def local(path: Path, **more: Any) -> MemoryCluster:
    return MemoryCluster(mode="local", persist_path=path, **more)


def distributed(path: Path, **more: Any) -> MemoryCluster:
    return MemoryCluster(**SETTINGS["subprocess"], persist_path=path, **more)


OPENERS = pytest.mark.parametrize("opened", [local, distributed])


async def scores(store: AsyncStore | StoreFace, query: str) -> dict[str, float | None]:
    search = store.asearch if isinstance(store, AsyncStore) else store.search
    return {item.key: item.score for item in await search(("u",), query=query)}


async def refuses_what_needs_an_index(memory: MemoryCluster) -> None:
    """Whether nothing that a program without an index does removes a vector, or lacks an order."""
    for face in (StoreFace(memory.store, blocking=b) for b in (False, True)):
        for index in ({}, {"index": ["text"]}):
            with pytest.raises(InvalidRequestError, match=r"dims 8.*fields \['text'\].*index="):
                await face.put(("u",), "there", {"text": "edited"}, **index)
        with pytest.raises(InvalidRequestError, match="by similarity"):
            await face.search(("u",), query="bad")
        with pytest.raises(InvalidRequestError, match="by similarity"):
            await face.batch([SearchOp(("u",), query="bad"), PutOp(("u",), "no", {}, index=False)])
        assert await face.value(("u",), "there") == {"text": "a bad cafe"}
        assert await face.value(("u",), "no") is None
        assert [item.key for item in await face.search(("u",))] == ["there"]
        await face.put(("tools",), "log", {"text": "abc"}, index=False)
        await face.delete(("tools",), "log")


# ---------------------------------------------------------------------- programs that attach


async def test_a_program_that_attaches_has_its_openers_settings() -> None:
    ttl = {"default_ttl": 0.02, "sweep_interval_minutes": 0.005, "omit_expired": False}
    decided: dict[str, Any] = {"detect_conflicts": True, "ttl": ttl, "index": index_of()}
    async with (
        MemoryCluster(**SETTINGS["subprocess"], thread_backlog="1 MiB", **decided) as owner,
        MemoryCluster.attach(owner.handle) as attached,
        MemoryCluster.attach(owner.handle, index={**index_of(), "fields": None}) as embedding,
        MemoryCluster.attach(owner.handle, detect_conflicts=False, ttl={"default_ttl": 9}) as other,
    ):
        for memory in (attached, embedding):
            assert memory.config.detect_conflicts
            assert memory.config.thread_backlog == 2**20
            assert memory.config.ttl == ttl
        assert not other.config.detect_conflicts  # what it gives itself counts
        assert other.config.ttl == {"default_ttl": 9}

        await owner.store.aput(("u",), "there", {"text": "a bad cafe"}, ttl=None)
        await refuses_what_needs_an_index(attached)
        assert await scores(owner.store, "a bad cafe") == {"there": pytest.approx(1.0)}

        await embedding.store.aput(("u",), "new", {"text": "abc", "other": "hhh"}, ttl=None)
        assert (await scores(owner.store, "abc"))["new"] == pytest.approx(1.0)  # by its fields

        await embedding.store.aput(("u",), "short", {"text": "abc"})

        async def swept() -> bool:
            return await owner.store.aget(("u",), "short", refresh_ttl=False) is None

        await eventually(swept)
        assert await owner.store.aget(("u",), "new") is not None


async def test_attaching_with_another_index_is_refused() -> None:
    async with MemoryCluster(**SETTINGS["subprocess"], index=index_of()) as owner:
        with pytest.raises(ClusterOpenError, match=r"dims 5.*dims 8"):
            await MemoryCluster.attach(owner.handle, index=index_of(5)).__aenter__()
        with pytest.raises(InvalidRequestError, match=r"dims 5.*dims 8"):
            AsyncStore(owner.client, index=index_of(5))  # type: ignore[arg-type]


async def test_without_an_index_a_query_is_ignored() -> None:
    async with (
        MemoryCluster(**SETTINGS["subprocess"]) as owner,
        MemoryCluster.attach(owner.handle) as attached,
    ):
        await attached.store.aput(("u",), "key", {"text": "abc"})
        assert await scores(attached.store, "abc") == {"key": None}


def test_programs_of_one_cluster_agree_on_the_distance() -> None:
    opener = SharedSettings(namespace_depth=2, index=IndexSettings(dims=8, distance_type="l2"))
    with pytest.raises(ClusterOpenError, match=r"'cosine'.*'l2'"):
        opener.completed(MemoryConfig(mode="distributed", index=index_of()))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- memories that are reopened


@OPENERS
async def test_a_memory_is_not_reopened_with_vectors_of_another_size(
    opened: Any, tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    async with opened(path, index=index_of()) as memory:
        await memory.store.aput(("u",), "there", {"text": "a bad cafe"})

    with pytest.raises(PersistError, match=r"dims 8.*dims 5.*re-index.*reindex=True"):
        await opened(path, index=index_of(5)).__aenter__()
    async with opened(path) as memory:
        await refuses_what_needs_an_index(memory)
    async with opened(path, index=index_of()) as memory:
        assert await scores(memory.store, "a bad cafe") == {"there": pytest.approx(1.0)}

    async with opened(path, index=index_of(5), reindex=True) as memory:
        assert await scores(memory.store, "bad") == {"there": None}
        for item in await memory.store.asearch(()):
            await memory.store.aput(item.namespace, item.key, item.value)
        assert await scores(memory.store, "a bad cae") == {"there": pytest.approx(1.0)}
    with pytest.raises(PersistError, match=r"dims 5.*dims 8"):
        await opened(path, index=index_of()).__aenter__()
    async with opened(path, index=index_of(5)) as memory:
        assert await scores(memory.store, "a bad cae") == {"there": pytest.approx(1.0)}


async def test_a_copy_and_other_shards_remember_the_index(tmp_path: Path) -> None:
    path, copy = tmp_path / "memory", tmp_path / "copy"
    async with local(path, index=index_of()) as memory:
        await memory.store.aput(("u",), "there", {"text": "a bad cafe"})
    async with distributed(path, actors_per_node=2) as memory:
        await refuses_what_needs_an_index(memory)
    await asyncio.to_thread(snapshot, path, copy)
    with pytest.raises(PersistError, match="re-index"):
        await local(copy, index=index_of(5)).__aenter__()


async def test_an_orphan_remembers_the_index(tmp_path: Path, scratch: Path) -> None:
    """The memory without `persist_path` of a cluster that ended uncleanly is reopened by name."""
    path = tmp_path / "memory"
    async with local(path, index=index_of()) as memory:
        await memory.store.aput(("u",), "there", {"text": "a bad cafe"})
    orphan = scratch / f"flowgentic-{os.geteuid()}" / "lost" / "memory"
    for folder in reversed(orphan.parents[:2]):
        folder.mkdir(mode=0o700, exist_ok=True)
    path.rename(orphan)
    where: dict[str, Any] = {**SETTINGS["subprocess"], "name": "lost"}
    with pytest.raises(FlowgenticError, match="reindex=True"):
        await MemoryCluster(**where, index=index_of(5)).__aenter__()
    async with MemoryCluster(**where) as memory:
        await refuses_what_needs_an_index(memory)


@OPENERS
async def test_a_memory_of_an_older_version_opens_and_remembers_from_then_on(
    opened: Any, tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    async with opened(path, index=index_of()) as memory:
        await memory.store.aput(("u",), "there", {"text": "a bad cafe"})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.pop("index") == {"dims": 8, "fields": ["text"], "distance_type": "cosine"}
    del manifest["check"]
    (path / "manifest.json").write_text(json.dumps(manifest))

    async with opened(path) as memory:
        await memory.store.aput(("u",), "other", {"text": "abc"})
        assert await scores(memory.store, "abc") == {"other": None, "there": None}
    async with opened(path, index=index_of()) as memory:
        assert await scores(memory.store, "a bad cafe") == {
            "there": pytest.approx(1.0),
            "other": None,
        }
    with pytest.raises(PersistError, match="re-index"):
        await opened(path, index=index_of(5)).__aenter__()


async def test_a_local_memory_refuses_nothing_that_it_can_do() -> None:
    async with MemoryCluster(mode="local", index=index_of()) as memory:
        await memory.store.aput(("u",), "there", {"text": "a bad cafe"})
        with pytest.raises(InvalidRequestError, match="by similarity"):
            await AsyncStore(memory.client).asearch(("u",), query="bad")
        assert await scores(memory.store, "a bad cafe") == {"there": pytest.approx(1.0)}
