"""The ends of processes, as they are noticed."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from flowgentic_actors.actors.process_watch import ProcessWatch
from tests.support.counter import until


def started(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command)


@pytest.mark.anyio
@pytest.mark.parametrize("pidfd", [True, False])
async def test_a_watch_tells_when_a_process_is_gone(
    pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with started("sleep", "60") as process:
        watch = ProcessWatch(process.pid, process.poll)
        await asyncio.sleep(0.1)
        assert not watch.gone.is_set()
        watch.kill()
        await until(watch.gone.is_set)
        watch.kill()  # of what is gone, nothing
        watch.close()
        assert process.wait() == -9


@pytest.mark.anyio
@pytest.mark.parametrize("pidfd", [True, False])
async def test_a_watch_knows_a_process_that_was_gone_before(
    pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with started("true") as process:
        process.wait()
    watch = ProcessWatch(process.pid)
    assert watch.gone.is_set()
    watch.close()


@pytest.mark.anyio
@pytest.mark.parametrize("pidfd", [True, False])
async def test_a_watch_can_be_closed_early(pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with started("sleep", "60") as process:
        watch = ProcessWatch(process.pid, process.poll)
        watch.close()
        process.kill()
        await asyncio.sleep(0.2)
        assert not watch.gone.is_set()
