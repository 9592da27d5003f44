"""Settings of a cluster that opens: none is ignored silently."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import AsyncCheckpointSaver, MemoryCluster
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.errors import ClusterClosedError, ClusterError, MemoryFullError
from flowgentic_actors.wire import awake
from tests.conftest import SETTINGS, settings_of
from tests.support.faces import checkpoint_of, config_of

pytestmark = pytest.mark.anyio

MiB = 2**20


async def test_auto_with_a_setting_of_distributed_mode_is_distributed() -> None:
    asked: dict[str, Any] = {"spawner": "subprocess", "name": "by-name", "actors_per_node": 2}
    async with MemoryCluster(**asked) as memory:
        assert memory.is_distributed
        assert len((await memory.status()).actors) == 2
        async with MemoryCluster.attach("by-name") as attached:
            await attached.store.aput(("a",), "key", {"n": 1})
        assert await memory.store.aget(("a",), "key") is not None


async def test_the_fallback_names_the_settings_that_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(DragonPlatform, "why_not", lambda _: "no Dragon, for a test")
    async with MemoryCluster(actors_per_node=4) as memory:
        assert not memory.is_distributed
        events = [event.detail for event in await memory.recent_events()]
    assert any("no Dragon, for a test" in told and "actors_per_node" in told for told in events)
    assert "actors_per_node" in caplog.text


async def test_each_program_decides_for_how_long_it_stays_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(awake, "processors", lambda: 2)
    async with (
        MemoryCluster(**SETTINGS["subprocess"], stay_awake=0.001) as owner,
        MemoryCluster.attach(owner.handle) as attached,
        MemoryCluster.attach(owner.handle, stay_awake=0) as asleep,
    ):
        folder = Path(owner.handle.descriptor).parent
        spec = json.loads(await asyncio.to_thread((folder / "shard-0.spec").read_bytes))
        assert spec["settings"]["stay_awake"] == 0.001  # the actor's is its opener's
        for memory, seconds in ((owner, 0.001), (attached, 0.0002), (asleep, 0.0)):
            assert isinstance(memory.client, RemoteClient)
            assert memory.client._stay_awake == seconds
            await memory.store.aput(("a",), "key", {"n": 1})


# ---------------------------------------------------------------------- ceilings


@pytest.mark.parametrize("mode", ["inline", "inline-journal", "subprocess", "fallback"])
async def test_a_ceiling_holds_in_every_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DragonPlatform, "why_not", lambda _: "no Dragon, for a test")
    where = {"mode": "distributed"} if mode == "fallback" else settings_of(mode)
    async with MemoryCluster(**where, store_total_mem=MiB, checkpoint_total_mem="1 MiB") as memory:
        store, saver, large = memory.store, memory.checkpointer, {"v": b"x" * 100_000}
        for number in range(10):
            await store.aput(("a",), str(number), large)
        with pytest.raises(MemoryFullError, match="store_total_mem"):
            await store.aput(("a",), "more", large)
        with pytest.raises(MemoryFullError, match="store_total_mem"):
            store.put(("a",), "more", large)
        assert len(await store.asearch(("a",), limit=20)) == 10
        await store.adelete(("a",), "0")  # makes room
        await store.aput(("a",), "more", large)

        with pytest.raises(MemoryFullError, match="checkpoint_total_mem"):
            await put_checkpoints(saver, 11, large)
        assert len([found async for found in saver.alist(config_of("t"))]) == 10


async def put_checkpoints(saver: AsyncCheckpointSaver, number: int, values: dict[str, Any]) -> None:
    for _ in range(number):
        checkpoint = checkpoint_of(values)
        await saver.aput(config_of("t"), checkpoint, {}, checkpoint["channel_versions"])


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("mode", ["inline", "subprocess"])
async def test_a_folder_in_the_home_is_opened_there_and_the_log_says_what_was_found(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flowgentic_actors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = {**settings_of(mode), "persist_path": "~/memory"}
    for threads in (0, 1):
        caplog.clear()
        async with MemoryCluster(**settings) as memory:
            await put_checkpoints(memory.checkpointer, 1, {})
            lines = [record.getMessage() for record in caplog.records]
            told = [line for line in lines if str(tmp_path / "memory") in line]
            first, again = "new memory at", f"{threads} threads"
            assert len(told) == 1, lines
            assert (again if threads else first) in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]  # noqa: ASYNC240 - a test


@pytest.mark.parametrize("mode", ["inline", "subprocess"])
async def test_a_folder_that_cannot_be_used_is_an_error_of_the_cluster(
    mode: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ClusterError, match=str(file)):
        await MemoryCluster(**settings_of(mode), persist_path=file / "memory").__aenter__()
    if mode == "subprocess":
        with pytest.raises(ClusterError, match=str(file)):
            await MemoryCluster(**settings_of(mode), scratch=file).__aenter__()


@pytest.mark.parametrize("mode", ["inline-journal", "subprocess"])
async def test_an_error_of_the_system_while_it_opens_is_one_of_the_cluster(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/lock")

    monkeypatch.setattr("flowgentic_actors.storage.lock.FileLock.acquire", denied)
    with pytest.raises(ClusterError, match=r"Permission denied.*/some/lock"):
        await MemoryCluster(**settings_of(mode)).__aenter__()


@pytest.mark.parametrize("mode", ["inline", "subprocess"])
async def test_a_closed_cluster_that_is_entered_again_says_that_it_is_closed(mode: str) -> None:
    memory = MemoryCluster(**settings_of(mode))
    async with memory:
        with pytest.raises(ClusterError, match="open already"):
            await memory.__aenter__()
    with pytest.raises(ClusterClosedError, match="was closed"):
        await memory.__aenter__()
