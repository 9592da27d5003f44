"""Short forms of the fault campaign; `python -m flowgentic_actors.testing.campaign` is the long."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.testing.campaign import CampaignPlan, run_campaign
from flowgentic_actors.testing.faults import (
    ACTIONS,
    FaultPlan,
    FillDisk,
    Site,
    SkippedError,
    WedgeDDict,
)
from flowgentic_actors.testing.links import Cut, FaultyLink
from tests.conftest import mode_params
from tests.support.processes import eventually, is_orphan
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.anyio
SLOW = pytest.mark.slow


@pytest.mark.parametrize(("count", "items"), [(2, 500), pytest.param(8, 5000, marks=SLOW)])
async def test_killed_actors_lose_nothing(count: int, items: int) -> None:
    report = await run_campaign(CampaignPlan(count=count, seed=1, items=items, pause=0.2))
    assert report.clean, str(report.findings)
    assert report.faults["kill-actor"] == report.restarts == count
    assert report.items_found == items
    assert report.acknowledged > 50 * count


async def test_stopped_processes_and_bad_connections_lose_nothing() -> None:
    plan = CampaignPlan(
        actions=("cut", "delay", "stop", "stop-host"), count=8, seed=22, pause=0.1, items=500
    )
    report = await run_campaign(plan)
    assert report.clean, str(report.findings)
    assert report.faults.total() == 8
    assert len(report.faults) == 4
    assert report.items_found == 500
    assert report.acknowledged > 500


async def test_killed_hosts_lose_nothing() -> None:
    plan = CampaignPlan(
        actions=("kill-host", "kill"), count=4, seed=1, pause=0.1, items=500, actors=1
    )
    report = await run_campaign(plan)
    assert report.clean, str(report.findings)
    assert {"kill-host", "kill-actor"} == set(report.faults)
    assert report.items_found == 500
    assert report.acknowledged > 200


def test_a_full_disk_loses_nothing(scratch: Path) -> None:
    campaign = "-m flowgentic_actors.testing.campaign --actions fill-disk --count 1 --compaction"
    with small_disk(scratch, "96m") as disk:
        given = [*campaign.split(), "--seed", "23", "--items", "200", "--scratch", str(disk.path)]
        ended = disk.run(*given, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "fill-disk: 1 happened" in ended.stdout
    assert "StorageError" in ended.stdout, "the disk was not full for any write"


async def test_killed_compactions_lose_nothing() -> None:
    plan = CampaignPlan(
        actions=("kill-compactor", "kill"), count=3, seed=4, items=100, compaction=True
    )
    report = await run_campaign(plan)
    assert report.clean, str(report.findings)
    assert report.acknowledged > 500
    assert report.compactions > 0


@pytest.mark.parametrize("spawner", mode_params("dragon", slow=("dragon",)))
async def test_killed_dragon_actors_lose_nothing(spawner: str, scratch: Path) -> None:
    report = await run_campaign(CampaignPlan(count=4, seed=2, spawner="dragon"))
    # A kill in the middle of a Dragon call may hang the runtime; an actor that could not end in
    # order then leaves its memory as an orphan.
    await asyncio.to_thread(remove_orphans, scratch)
    assert report.clean, str(report.findings)
    assert report.restarts == 4
    assert report.acknowledged > 100


def remove_orphans(scratch: Path) -> None:
    for folder in scratch.glob("flowgentic-*/memory-*"):
        if is_orphan(str(folder)):
            shutil.rmtree(folder)


# ---------------------------------------------------------------------- the tools themselves


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_plan_is_the_same_for_the_same_seed() -> None:
    plans = [
        FaultPlan(actions=sorted(ACTIONS), count=50, seed=seed, shards=3) for seed in (1, 1, 2)
    ]
    first, again, other = [[*plan] for plan in plans]
    assert first == again != other
    assert len({type(fault) for fault in first}) == len(ACTIONS)
    with pytest.raises(ValueError, match="no fault is named nonsense"):
        FaultPlan(actions=["nonsense"], count=1)


async def test_faults_without_a_victim_are_skipped(scratch: Path) -> None:
    site = Site(memory=MemoryCluster(), small_disk=scratch)
    with pytest.raises(SkippedError, match="larger than"):
        await FillDisk().begin(site)
    assert not [name for name in names_in(scratch) if name.startswith("ballast")]
    async with MemoryCluster(mode="distributed", spawner="subprocess") as memory:
        with pytest.raises(SkippedError, match="no DDict"):
            await WedgeDDict().begin(Site(memory=memory))


async def test_a_link_cuts_delays_and_keeps_silent(scratch: Path) -> None:
    received = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                received.extend(data)
                writer.write(data)
        writer.transport.abort()

    target = scratch / "echo.sock"
    server = await asyncio.start_unix_server(echo, target)
    link = FaultyLink(scratch / "link.sock", str(target), "seed")
    await link.open()
    loop = asyncio.get_running_loop()

    async def unused() -> bool:
        return link.connections == 0

    async def send(data: bytes, how: Cut | None = None, hold: float = 0.1) -> bytes:
        reader, writer = await asyncio.open_unix_connection(link.path)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        if how is not None:
            link.cut(how, 4, hold)
        received.clear()
        writer.write(data)
        try:
            return await reader.readexactly(len(data))
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()
            await eventually(unused)

    try:
        assert await send(b"0123456789") == b"0123456789"
        link.delay, began = 0.5, loop.time()
        assert await send(b"0123456789") == b"0123456789"
        assert loop.time() - began >= 2 * 0.1
        link.delay = 0.0

        assert await send(b"0123456789", "both") == b""
        assert bytes(received) in (b"", b"0123")
        assert await send(b"0123456789", "late") == b""
        assert bytes(received) == b"0123456789"
        began = loop.time()
        assert await send(b"0123456789", "half", 0.3) == b""
        assert loop.time() - began >= 0.3
        assert bytes(received) == b""
    finally:
        await link.close()
        server.close()
        await server.wait_closed()
        await asyncio.to_thread(target.unlink)
    assert not {"link.sock", "echo.sock"} & set(names_in(scratch))
