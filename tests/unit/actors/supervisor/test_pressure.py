"""Supervision under pressure, also without a file to spare."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors.actors import file_shortage, refusing_server
from flowgentic_actors.actors import supervisor as supervision
from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.spawn import Spawned, SubprocessSpawner
from flowgentic_actors.errors import (
    BackpressureError,
    OutcomeUnknownError,
    RequestError,
    RequestExpiredError,
)
from flowgentic_actors.wire.server import Server
from tests.support.counter import PATIENCE, command, number, office, until

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- under pressure


async def test_a_flood_is_slowed_down_and_all_of_it_is_answered(folder: Path) -> None:
    limit = 1 << 20
    async with office(folder, mailbox_bytes=limit) as opened:
        (ref,) = await opened.start("a")
        padding = bytes(16 << 10)
        asked = [ref.ask(command("busy", 1, padding), 60) for _ in range(640)]  # 10 MB
        await asyncio.gather(*asked)
        await until(lambda: opened.child().stats.get("requests") == 640)
        assert opened.child().stats["mailbox_most_bytes"] <= 2.1 * limit  # the bound, and a frame
        await ref.close()


async def test_a_flood_beyond_what_can_be_done_in_time_gets_typed_errors(folder: Path) -> None:
    async with office(folder, mailbox_requests=100) as opened:
        (ref,) = await opened.start("a")
        padding = bytes(16 << 10)
        await ref.ask(command("get"), 30)
        asked = [ref.ask(command("busy", 10, padding), 0.5) for _ in range(600)]  # 6 s, 10 MB
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(*asked, return_exceptions=True)
        failed = {type(result) for result in results if isinstance(result, BaseException)}
        assert failed
        assert failed <= {BackpressureError, OutcomeUnknownError, RequestExpiredError}
        assert all(issubclass(kind, RequestError) for kind in failed)
        start = time.monotonic()
        await ref.ask(command("get"), PATIENCE)
        # Those who gave up are passed over, not worked off.
        assert opened.child().stats["requests"] < 600
        assert time.monotonic() - start < PATIENCE
        await ref.close()


# ---------------------------------------------------------------------- no file to spare


class WithoutFiles(SubprocessSpawner):
    """Has no open file to spare for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = 0

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        if self.fails:
            self.fails -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await super().spawn(spec_file, log_file, timeout)


async def test_that_no_file_is_left_is_no_death_of_an_actor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_shortage, "_PAUSE", 0.02)
    spawner = WithoutFiles()
    spawner.fails = 5
    async with office(folder, spawner, restart_intensity=1) as opened:
        (ref,) = await opened.start("a")
        spawner.fails = 5
        os.kill(opened.child().pid, signal.SIGKILL)
        await until(lambda: not spawner.fails)
        await until(lambda: opened.child().state is ChildState.RUNNING)
        assert number(await ref.ask(command("add", 1), 30)) == 1
        kinds = [kind for kind, _, _ in opened.events]
        assert kinds == ["out_of_files", "actor_running", "actor_exited", "actor_running"]
        assert opened.child().restarts == 1
        await ref.close()


async def test_a_failed_actors_place_is_taken_once_there_is_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_shortage, "_PAUSE", 0.02)
    missing = [OSError(errno.EMFILE, "Too many open files") for _ in range(3)]

    async def refused(*arguments: Any) -> Server:
        if missing:
            raise missing.pop()
        return await refusing_server.refuse(*arguments)

    monkeypatch.setattr(supervision, "refuse", refused)
    async with office(folder, restart_intensity=0) as opened:
        (ref,) = await opened.start("a")
        while opened.child().state is not ChildState.FAILED:
            with pytest.raises(RequestError):
                await ref.ask(command("crash"), 30)
        with pytest.raises(RequestError, match="has failed"):
            await ref.ask(command("get"), 30)
        assert not missing
        await ref.close()
