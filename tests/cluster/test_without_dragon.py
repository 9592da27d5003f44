"""Where Dragon is not there, or does not come up: fallback, or an error."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

import flowgentic_actors.dragon.host_launcher
from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.opener import opening
from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.environment import SchedulerJob, dragon_launcher
from flowgentic_actors.errors import ClusterOpenError, DragonUnavailableError
from tests.conftest import NEEDS_DRAGON, SETTINGS
from tests.support.faces import remembers


@pytest.fixture
def no_dragon(monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a machine where Dragon is not installed."""
    reason = "the package dragonhpc is not installed: pip install dragonhpc"
    monkeypatch.setattr(DragonPlatform, "why_not", lambda _: reason)
    monkeypatch.setattr(opening, "_said", set())
    return reason


@pytest.mark.anyio
async def test_without_dragon_it_falls_back_and_says_so_once(
    no_dragon: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with MemoryCluster(mode="distributed") as memory:
            assert not memory.is_distributed
            await remembers(memory)
            events = await memory.recent_events()
            assert [event.kind for event in events] == ["cluster_opened", "fallback_to_local"]
            assert events[1].detail == no_dragon

    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name == "flowgentic_actors"
    assert "local fallback" in warning.message
    assert no_dragon in warning.message


@pytest.mark.anyio
@pytest.mark.usefixtures("no_dragon")
async def test_without_dragon_it_raises_where_no_fallback_is_wanted() -> None:
    with pytest.raises(DragonUnavailableError, match="pip install dragonhpc"):
        async with MemoryCluster(mode="distributed", fallback_to_local=False):
            pass


@pytest.mark.anyio
async def test_what_was_to_survive_the_loss_of_power_is_not_kept_in_a_local_cluster() -> None:
    with pytest.raises(ClusterOpenError, match="persist_path"):
        async with MemoryCluster(ack="disk"):
            pass


@pytest.mark.anyio
@pytest.mark.usefixtures("no_dragon")
async def test_without_dragon_plain_subprocesses_need_no_fallback() -> None:
    async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
        assert memory.is_distributed


@pytest.mark.anyio
@pytest.mark.dragon
@NEEDS_DRAGON[1]
async def test_a_dragon_that_does_not_come_up_falls_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = tmp_path / "dragon"
    launcher.write_text("#!/bin/sh\necho no more semaphores >&2\nexit 1\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(
        flowgentic_actors.dragon.host_launcher, "dragon_launcher", lambda: str(launcher)
    )
    async with MemoryCluster(mode="distributed") as memory:
        assert not memory.is_distributed
        await remembers(memory)
    assert "no more semaphores" in caplog.text
    with pytest.raises(ClusterOpenError, match="no more semaphores"):
        async with MemoryCluster(mode="distributed", fallback_to_local=False):
            pass


@pytest.mark.anyio
@pytest.mark.dragon
@NEEDS_DRAGON[1]
async def test_a_dragon_that_fails_once_to_come_up_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = await asyncio.to_thread(dragon_launcher)
    launcher = tmp_path / "dragon"
    launcher.write_text(
        f'#!/bin/sh\nif mkdir {tmp_path}/first; then exit 1; fi\nexec {real} "$@"\n'
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(
        flowgentic_actors.dragon.host_launcher, "dragon_launcher", lambda: str(launcher)
    )
    async with MemoryCluster(mode="distributed", fallback_to_local=False) as memory:
        await remembers(memory)
        assert (await memory.status()).spawner == "dragon"
    assert "started once more" in caplog.text


@pytest.mark.anyio
async def test_auto_is_local_outside_of_a_job_and_distributed_inside(
    no_dragon: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "scheduler_job", lambda: None)
    async with MemoryCluster() as memory:
        assert not memory.is_distributed
        assert len(await memory.recent_events()) == 1
    assert not caplog.records

    job = SchedulerJob("slurm", "1", 1)
    monkeypatch.setattr(opening, "scheduler_job", lambda: job)
    async with MemoryCluster() as memory:
        assert not memory.is_distributed
    assert no_dragon in caplog.text
    async with MemoryCluster(spawner="subprocess") as memory:
        assert memory.is_distributed
