"""Strangers on the network; `python -m flowgentic_actors.testing.flood` is the long form."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.testing.flood import FloodPlan, run_flood
from tests.conftest import amounts
from tests.support.nodes import settings

pytestmark = pytest.mark.anyio

_WORDS = re.compile(rb"[\w+/=-]{40,}")


@pytest.mark.parametrize("seconds", amounts(2, 5))
async def test_strangers_keep_no_client_out_and_end_nothing(seconds: int) -> None:
    report = await run_flood(FloodPlan(seconds=seconds, processes=2, before=0.5))
    assert not report.findings
    assert report.opened > 200 * seconds
    assert report.runs > 2 * seconds
    assert len(report.waits) > 1
    assert report.grown < 100 << 20
    assert report.logged < 1 << 20


def told_by(process: psutil.Process) -> bytes:
    """What the system tells every program of this user about a process."""
    return b"\0".join(
        Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("environ", "cmdline")
    )


def unpacked(text: bytes) -> Iterator[bytes]:
    """The text, and what words in it may be when they are decoded."""
    yield text
    for word in _WORDS.findall(text):
        for decode in (base64.b64decode, base64.urlsafe_b64decode):
            try:
                yield decode(word)
            except ValueError:
                continue


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def assert_no_secret(processes: list[psutil.Process], secret: bytes) -> None:
    for process in processes:
        for text in unpacked(told_by(process)):
            for word in (secret, secret.hex().encode(), base64.b64encode(secret), b"PRIVATE"):
                assert word not in text
            assert b'"secret"' not in text  # of a ticket, say


async def test_no_process_of_a_cluster_has_a_secret_in_its_environment_or_command_line() -> None:
    async with MemoryCluster(**settings()) as memory:
        status = await memory.status()
        secret = (await asyncio.to_thread(memory.handle.read)).secret.reveal()
        host = psutil.Process(status.host_pid)
        processes = [host, *await asyncio.to_thread(host.children, recursive=True)]
        assert len(processes) >= 9  # the host, two nodes, and two copies of each shard
        await asyncio.to_thread(assert_no_secret, processes, secret)
