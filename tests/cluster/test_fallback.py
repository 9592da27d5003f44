"""The warning of a fallback to local mode: one line with the reason and the remedy."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import flowgentic_actors.dragon.host_launcher
from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.opener import opening
from flowgentic_actors.errors import SharedMemoryError
from tests.conftest import NEEDS_DRAGON

pytestmark = [pytest.mark.anyio, NEEDS_DRAGON[1]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_too_little_shared_memory_is_one_warning_before_dragon_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = SimpleNamespace(f_bavail=16 << 10, f_frsize=4096)  # 64 MiB, as in a container
    monkeypatch.setattr(opening, "_said", set())
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    async with MemoryCluster(mode="distributed") as memory:
        assert not memory.is_distributed
        opened, fallen = await memory.recent_events()
    (warning,) = warnings_of(caplog)
    assert opened.kind == "cluster_opened"
    for text in (warning, fallen.detail):
        assert "/dev/shm has 64 MiB free" in text
        assert "docker run --shm-size" in text
        assert len(text.splitlines()) == 1
    with pytest.raises(SharedMemoryError, match="--shm-size"):
        async with MemoryCluster(mode="distributed", fallback_to_local=False):
            pass


async def test_the_log_of_a_dragon_that_does_not_come_up_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = tmp_path / "dragon"
    launcher.write_text(
        "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8; do echo '  File \"launcher.py\"' >&2; done\n"
        "echo 'OSError: no more semaphores' >&2\nexit 1\n"
    )
    launcher.chmod(0o755)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(
        flowgentic_actors.dragon.host_launcher, "dragon_launcher", lambda: str(launcher)
    )
    monkeypatch.setattr(opening, "_said", set())
    async with MemoryCluster(mode="distributed") as memory:
        _, fallen = await memory.recent_events()
    warning = warnings_of(caplog)[-1]
    assert "local fallback" in warning
    assert "OSError: no more semaphores" in warning
    assert "launcher.py" not in warning
    assert [len(text.splitlines()) for text in warnings_of(caplog)] == [1] * len(
        warnings_of(caplog)
    )
    assert "OSError: no more semaphores" in fallen.detail
    assert "launcher.py" in caplog.text  # the end of the launcher's log
