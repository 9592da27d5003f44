"""What a supervisor and its actors hear of each other, and the end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from msgspec import Raw

from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.spawn import SubprocessSpawner
from flowgentic_actors.errors import ActorFailedError
from flowgentic_actors.storage.private_files import write_private
from flowgentic_actors.wire.messages import Ready, Request, Started, ToServer
from tests.support.counter import PATIENCE, alive, command, number, office, until
from tests.support.raw_client import raw_client
from tests.support.supervision import read, reasons, restarted

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- the link


@pytest.mark.parametrize("busy", [False, True])
async def test_an_actor_whose_supervisor_is_gone_ends(folder: Path, busy: bool) -> None:
    """As when the supervisor was killed: nobody is left who could end the actor."""
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        life = opened.child().life
        assert life is not None
        assert life.spawned is not None
        assert life.link is not None
        waiting = asyncio.create_task(ref.ask(command("busy", 3_600_000 if busy else 0), 5))
        await anyio.sleep(0.2)
        opened.supervisor._links.clear()  # it does not see, and does not kill
        life.watch = None
        opened.server.stop_listening()
        life.link.abort()
        spawned = life.spawned
        await until(lambda: spawned.reap() is not None)
        assert spawned.reap() == 75
        waiting.cancel()
        await asyncio.wait([waiting])
        await ref.close()


async def test_a_late_process_of_an_old_epoch_is_not_let_go_on(folder: Path) -> None:
    lives = folder / "lives"
    async with office(folder) as opened:
        await opened.start("a", lives=str(lives))
        spec = read(folder / "a.spec")
        os.kill(opened.child().pid, signal.SIGKILL)
        await restarted(opened)
        pid = opened.child().pid
        await asyncio.to_thread(write_private, folder / "late.spec", spec.encode())
        late = await SubprocessSpawner().spawn(folder / "late.spec", folder / "late.log", PATIENCE)
        await until(lambda: late.reap() is not None)
        assert late.reap() == 70
        assert "not let this actor go on" in read(folder / "late.log")
        assert str(late.pid) not in read(lives).split()  # it opened nothing
        assert (opened.child().pid, opened.child().epoch) == (pid, 2)


async def test_a_link_that_is_not_expected_is_ended(folder: Path) -> None:
    strangers: list[ToServer] = [Started("a", epoch, "node") for epoch in (0, 1, 2)]
    strangers += [Started("nobody", 1, "node"), Ready(1.0), Request(1, 1, 1, Raw(b"\0"))]
    async with office(folder) as opened:
        await opened.start("a")
        for message in strangers:
            async with raw_client(folder / "office.sock") as client:
                await client.shake_hands()
                client.hello("link")
                client.send(message)
                assert await client.ended()
        await anyio.sleep(0.1)
        assert (opened.child().state, opened.child().epoch) == (ChildState.RUNNING, 1)


async def test_an_actor_whose_supervisor_is_silent_is_fenced_until_it_is_back(
    folder: Path,
) -> None:
    settings: dict[str, Any] = {"heartbeat_interval": 0.05, "hang_timeout": 0.5}
    async with office(folder, **settings) as opened:
        (ref,) = await opened.start("a")
        await anyio.sleep(0.2)
        life = opened.child().life
        assert life is not None
        assert life.link is not None
        send, life.link.send = life.link.send, lambda message: None  # type: ignore[method-assign]
        await anyio.sleep(0.1)
        life.silence.seconds = -60.0  # and it does not think that the actor is the silent one
        await anyio.sleep(0.9)
        asked = asyncio.create_task(ref.ask(command("add", 1), PATIENCE))
        await anyio.sleep(0.3)
        assert not asked.done()
        life.link.send = send  # type: ignore[method-assign]
        assert number(await asked) == 1
        assert opened.child().epoch == 1
        await ref.close()


async def test_an_actor_whose_supervisor_stays_silent_ends(folder: Path) -> None:
    settings: dict[str, Any] = {
        "heartbeat_interval": 0.05,
        "hang_timeout": 0.3,
        "rejoin_grace": 0.5,
    }
    async with office(folder, **settings) as opened:
        await opened.start("a")
        await anyio.sleep(0.2)
        life = opened.child().life
        assert life is not None
        assert life.link is not None
        life.link.send = lambda message: None  # type: ignore[method-assign]
        started = time.monotonic()
        await anyio.sleep(0.1)
        life.silence.seconds = -60.0
        await restarted(opened)
        assert time.monotonic() - started > 0.7
        assert reasons(opened) == ["exit code 75"]


# ---------------------------------------------------------------------- the end


async def test_actors_of_a_higher_rank_end_first(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start("a", "b", rank=0)
        await opened.start("c", rank=1)
        assert await opened.supervisor.stop(PATIENCE) == {}
    ends = [(kind, actor) for kind, actor, _ in opened.events if kind != "actor_running"]
    assert {kind for kind, _ in ends} == {"actor_stopped"}
    assert ends[0] == ("actor_stopped", "c")
    assert {child.state for child in opened.supervisor.children} == {ChildState.STOPPED}


async def test_what_was_accepted_is_finished_before_the_end(folder: Path) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        asked = [asyncio.create_task(ref.ask(command("busy", 20), 30)) for _ in range(20)]
        await anyio.sleep(0.1)
        assert await opened.supervisor.stop(PATIENCE) == {}
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(result).__name__ for result in results} == {"Raw"}
        await ref.close()


async def test_an_actor_that_does_not_drain_is_killed_in_time(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start("a", kind="stubborn")
        await opened.start("b")
        start = time.monotonic()
        assert await opened.supervisor.stop(1.0) == {"a": "it did not drain in time"}
        assert time.monotonic() - start < PATIENCE
        assert not alive(opened.child().pid)
        assert opened.child("b").state is ChildState.STOPPED
    assert reasons(opened, "actor_killed") == ["it did not drain in time"]


async def test_a_stopped_process_does_not_hold_up_the_end(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start("a")
        process = psutil.Process(opened.child().pid)
        process.suspend()
        await until(lambda: process.status() == psutil.STATUS_STOPPED)
        assert await opened.supervisor.stop(0.5) == {"a": "it did not drain in time"}
        assert not alive(opened.child().pid)


async def test_an_actor_that_is_being_made_is_ended_too(folder: Path) -> None:
    async with office(folder) as opened:
        starting = asyncio.create_task(opened.start("a", seconds="3600"))
        await until(lambda: opened.supervisor.children and opened.child().pid)
        assert await opened.supervisor.stop(0.5) == {"a": "it did not serve"}
        assert not alive(opened.child().pid)
        with pytest.raises(ActorFailedError):
            await starting
