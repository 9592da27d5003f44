"""Actors that are started, and those that do not come up."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.spawn import Spawned, SubprocessSpawner, _Child
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import ActorFailedError
from flowgentic_actors.secret import concealed
from tests.support.counter import PATIENCE, SECRET, alive, command, number, office, until
from tests.support.supervision import SHORT, Recording, read, reasons

pytestmark = pytest.mark.anyio


async def test_an_actor_is_started_and_known(folder: Path) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        child = opened.child()
        assert number(await ref.ask(command("pid"), 30)) == child.pid
        assert (child.state, child.epoch, child.restarts) == (ChildState.RUNNING, 1, 0)
        assert child.node == os.uname().nodename
        assert [kind for kind, _, _ in opened.events] == ["actor_running"]
        await ref.ask(command("add", 7), 30)
        await until(lambda: child.stats.get("total") == 7)
        await ref.close()


async def test_what_an_actor_is_told_is_private(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start("a")
    spec_file = folder / "a.spec"
    assert mode(spec_file) == 0o600
    spec = msgspec.json.decode(read(spec_file), type=ActorSpec, dec_hook=concealed)
    assert spec.secret == SECRET
    assert repr(SECRET.reveal()) not in repr(spec)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_many_actors_start_together(folder: Path) -> None:
    async with office(folder) as opened:
        refs = await opened.start("a", "b", "c", "d")
        pids = [number(await ref.ask(command("pid"), 30)) for ref in refs]
        assert len(set(pids)) == 4
        for ref in refs:
            await ref.close()


async def test_making_an_actor_may_take_longer_than_a_hang(folder: Path) -> None:
    async with office(folder, **SHORT) as opened:
        await opened.start("a", seconds="1.5")
        assert opened.child().epoch == 1


async def test_an_actor_that_cannot_be_made_fails_soon_and_says_why(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start("good")
        with pytest.raises(ActorFailedError, match="ValueError: this counter cannot be made"):
            await opened.start("a", kind="broken")
        child = opened.child()
        assert child.state is ChildState.FAILED
        assert child.epoch == 3  # it was tried again, twice
        assert "cannot be made" in reasons(opened, "actor_failed")[0]
        assert opened.child("good").state is ChildState.RUNNING


async def test_a_process_that_cannot_be_spawned_fails_the_actor(folder: Path) -> None:
    class Impossible(SubprocessSpawner):
        async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
            raise OSError("out of processes")

    async with office(folder, Impossible()) as opened:
        with pytest.raises(ActorFailedError, match="out of processes"):
            await opened.start("a")


async def test_a_process_that_does_not_connect_is_killed(folder: Path) -> None:
    class Wrong(Recording):
        @staticmethod
        def _start(spec_file: Path, log_file: Path) -> _Child:
            return _Child(subprocess.Popen(["sleep", "60"]))

        async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
            return await super().spawn(spec_file, log_file, PATIENCE)

    spawner = Wrong()
    async with office(folder, spawner, open_timeout=0.3) as opened:
        with pytest.raises(ActorFailedError, match="did not connect in time"):
            await opened.start("a")
        assert len(spawner.pids) == 3
        assert not any(alive(pid) for pid in spawner.pids)
