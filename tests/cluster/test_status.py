"""`status` is current when it is called, and faults are warnings in the user's log."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.nodes.node_pool import AGENT_MODULE
from flowgentic_actors.cluster.protocol.status import ClusterStatus
from tests.conftest import SETTINGS, mode_params
from tests.support.faces import unique
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio


def items_in(status: ClusterStatus) -> int:
    return sum(actor.items for actor in status.actors)


@pytest.mark.parametrize(
    "mode", mode_params("inline", "inline-journal", "several-actors", "nodes", "dragon")
)
async def test_status_has_what_was_acknowledged_just_before(memory: MemoryCluster) -> None:
    label, before = unique(), items_in(await memory.status())
    for round_ in range(1, 4):
        for number in range(30):
            await memory.store.aput((label, str(number)), str(round_), {})
        asked = time.time()
        status = await memory.status()
        assert items_in(status) == before + 30 * round_
        for actor in status.actors:
            assert actor.as_of is not None
            assert asked - 0.1 <= actor.as_of <= time.time() + 0.1
            assert actor.last_heard is not None
            assert actor.last_heard >= actor.as_of
    if memory.is_distributed:
        async with MemoryCluster.attach(memory.handle) as attached:
            await attached.store.aput((label, "x"), "x", {})
            assert items_in(await attached.status()) == before + 91


class Warnings:
    """The warnings in the log of the package's users."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def with_(self, text: str) -> list[str]:
        found = [r for r in self._caplog.records if r.name.startswith("flowgentic_actors")]
        return [r.message for r in found if r.levelname == "WARNING" and text in r.message]

    async def await_(self, count: int, text: str) -> None:
        async def there() -> bool:
            return len(self.with_(text)) >= count

        await eventually(there)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    return Warnings(caplog)


async def test_an_actor_that_is_silent_or_dies_is_marked_and_warned_of(warnings: Warnings) -> None:
    async with (
        MemoryCluster(**SETTINGS["subprocess"]) as memory,
        MemoryCluster.attach(memory.handle) as attached,
    ):
        await memory.store.aput(("a",), "k", {})
        (actor,) = (await memory.status()).actors
        await asyncio.sleep(0.1)  # and the attached one has heard what there was
        assert actor.pid is not None
        process = psutil.Process(actor.pid)
        process.suspend()

        async def is_stopped() -> bool:
            return process.status() == psutil.STATUS_STOPPED

        await eventually(is_stopped)
        stopped = time.time()
        try:
            for each in (memory, attached):
                began = time.monotonic()
                (silent,) = (await each.status()).actors
                assert time.monotonic() - began < 3
                assert silent.items == 1
                assert silent.as_of is not None
                assert silent.as_of <= stopped
                assert silent.last_heard is not None
                assert silent.last_heard <= stopped + 0.5
            await warnings.await_(2, "actor_silent shard-0: no answer for 3 s")  # in both logs
        finally:
            os.kill(actor.pid, signal.SIGKILL)
        await warnings.await_(2, "actor_exited shard-0: killed by signal 9")

        async def runs_again() -> bool:
            (again,) = (await attached.status()).actors
            return again.epoch == 2 and again.items == 1

        await eventually(runs_again)
    assert len(warnings.with_("actor_silent")) == 2  # once each


async def test_a_lost_node_is_warned_of_with_when_it_was_heard(warnings: Warnings) -> None:
    async with MemoryCluster(**SETTINGS["nodes"]) as memory:
        await memory.store.aput(("a",), "k", {})
        host = psutil.Process((await memory.status()).host_pid)
        (node,) = [p for p in host.children() if AGENT_MODULE in " ".join(p.cmdline())]
        asked = time.time()
        assert all((n.last_heard or 0) > asked - 2 for n in (await memory.status()).nodes)
        node.suspend()
        await warnings.await_(1, "node_lost: node-1")
        lost = {n.name: n for n in (await memory.status()).nodes}["node-1"]
        assert lost.state == "lost"
        assert lost.last_heard is not None
        assert asked - 2 < lost.last_heard < time.time() - 1
        node.kill()
