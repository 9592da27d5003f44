"""Supervision of an actor that is no memory: its processes, their ends, and their successors."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from msgspec import Raw

from flowgentic_actors.actors import file_shortage, refusing_server
from flowgentic_actors.actors import supervisor as supervision
from flowgentic_actors.actors.child import Child, ChildSpec, ChildState
from flowgentic_actors.actors.process_watch import ProcessWatch
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.actors.spawn import Spawned, SubprocessSpawner, _Child
from flowgentic_actors.actors.spec import ActorSpec
from flowgentic_actors.errors import (
    ActorFailedError,
    BackpressureError,
    MemoryFailedError,
    OutcomeUnknownError,
    RejectedError,
    RequestError,
    RequestExpiredError,
)
from flowgentic_actors.secret import concealed
from flowgentic_actors.storage.private_files import write_private
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.messages import Ready, Request, Started, ToServer
from flowgentic_actors.wire.server import Server
from tests.support.counter import (
    FACTORY,
    PATIENCE,
    REPOSITORY,
    SECRET,
    Office,
    alive,
    command,
    number,
    office,
    until,
)
from tests.support.raw_client import raw_client

pytestmark = pytest.mark.anyio

SHORT: dict[str, Any] = {"heartbeat_interval": 0.05, "hang_timeout": 1.0}
"""So that a hang is noticed soon."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is where the tests are, for the actors' processes too."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def folder(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A private folder whose path is short enough for sockets."""
    made = scratch / f"o{abs(hash(request.node.nodeid)) % 10**8}"
    made.mkdir(mode=0o700)
    yield made
    if getattr(request.node, "failed", False):
        for log in made.glob("*.log"):
            print(log.read_text())


class Recording(SubprocessSpawner):
    """Notes which of the processes that it started lived when it was asked for another."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int] = []
        self.beside: list[list[int]] = []

    def living(self) -> list[int]:
        return [pid for pid in self.pids if alive(pid)]

    async def spawn(self, spec_file: Path, log_file: Path, timeout: float) -> Spawned:
        self.beside.append(await asyncio.to_thread(self.living))
        spawned = await super().spawn(spec_file, log_file, timeout)
        assert spawned.pid is not None
        self.pids.append(spawned.pid)
        return spawned


def reasons(opened: Office, kind: str = "actor_exited") -> list[str]:
    return [detail for found, _, detail in opened.events if found == kind]


async def restarted(opened: Office, epoch: int = 2) -> None:
    child = opened.child()
    await until(lambda: child.epoch >= epoch and child.state is ChildState.RUNNING)


# ---------------------------------------------------------------------- starting


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


def read(path: Path) -> str:
    return path.read_text()


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
    async with office(folder, spawner, start_timeout=0.3) as opened:
        with pytest.raises(ActorFailedError, match="did not connect in time"):
            await opened.start("a")
        assert len(spawner.pids) == 3
        assert not any(alive(pid) for pid in spawner.pids)


# ---------------------------------------------------------------------- ends and successors


async def test_a_killed_actor_is_restarted_as_a_new_incarnation(folder: Path) -> None:
    spawner = Recording()
    async with office(folder, spawner) as opened:
        (ref,) = await opened.start("a")
        for epoch in (2, 3):
            await ref.ask(command("add", 1), 30)
            waiting = asyncio.create_task(ref.ask(command("trap"), 30))
            await anyio.sleep(0.1)
            os.kill(opened.child().pid, signal.SIGKILL)
            assert number(await waiting) == 0  # by the successor, which begins anew
            await restarted(opened, epoch)
        assert reasons(opened) == ["killed by signal 9"] * 2
        assert opened.child().restarts == 2
        assert spawner.beside == [[], [], []]  # none was started beside another
        await ref.close()


async def test_an_actor_that_is_killed_young_is_back_soon_and_one_that_crashes_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestartPolicy, "FIRST", 60.0)
    monkeypatch.setattr(RestartPolicy, "LONGEST", 60.0)
    monkeypatch.setattr(RestartPolicy, "LONGEST_KILLED", 0.1)
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        for epoch in (2, 3):
            os.kill(opened.child().pid, signal.SIGKILL)
            await restarted(opened, epoch)
        with pytest.raises(RequestError):
            await ref.ask(command("exit", 7), 1.0)
        await until(lambda: "exit code 7" in reasons(opened))
        await anyio.sleep(0.3)
        assert opened.child().state is ChildState.RESTARTING
        await ref.close()


async def test_an_actor_that_ends_by_itself_is_restarted_with_its_exit_code_told(
    folder: Path,
) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        await ref.ask(command("get"), 30)
        with pytest.raises(OutcomeUnknownError):
            await ref.ask(command("exit", 7), 0.3)
        await restarted(opened)
        assert set(reasons(opened)) == {"exit code 7"}
        await ref.close()


async def test_a_stopped_actor_is_noticed_killed_and_restarted(folder: Path) -> None:
    spawner = Recording()
    async with office(folder, spawner, **SHORT) as opened:
        (ref,) = await opened.start("a")
        os.kill(opened.child().pid, signal.SIGSTOP)
        assert number(await ref.ask(command("add", 1), PATIENCE)) == 1
        assert "no answer to pings" in reasons(opened)[0]
        assert spawner.beside == [[], []]
        await ref.close()


async def test_a_busy_actor_is_told_from_a_dead_one(folder: Path) -> None:
    async with office(folder, **SHORT) as opened:
        (ref,) = await opened.start("a")
        assert number(await ref.ask(command("busy", 1500), 30)) == 0
        await ref.close()
        assert (opened.child().epoch, opened.events[1:]) == (1, [])


async def test_an_actor_that_is_busy_for_too_long_is_restarted(folder: Path) -> None:
    async with office(folder, busy_timeout=0.5) as opened:
        (ref,) = await opened.start("a")
        await ref.ask(command("get"), 30)
        with pytest.raises(OutcomeUnknownError):
            await ref.ask(command("busy", 3_600_000), 0.3)
        assert number(await ref.ask(command("get"), PATIENCE)) == 0
        assert "stuck" in reasons(opened)[0]
        await ref.close()


async def test_an_actor_is_not_killed_because_its_supervisor_was_suspended(folder: Path) -> None:
    async with office(folder, **SHORT) as opened:
        await opened.start("a")
        pid = opened.child().pid
        time.sleep(1.5)  # noqa: ASYNC251 - the whole job may be suspended by its scheduler
        await anyio.sleep(0.3)
        assert (opened.child().epoch, opened.child().pid) == (1, pid)


async def test_an_exit_is_confirmed_where_there_are_no_pidfds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError("not on this platform")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    spawner = Recording()
    async with office(folder, spawner) as opened:
        (ref,) = await opened.start("a")
        os.kill(opened.child().pid, signal.SIGKILL)
        await restarted(opened)
        assert number(await ref.ask(command("get"), 30)) == 0
        assert reasons(opened) == ["killed by signal 9"]
        assert spawner.beside == [[], []]
        await ref.close()


async def test_no_successor_is_started_before_the_exit_is_confirmed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in the kernel survives SIGKILL for a while."""
    monkeypatch.setattr(ProcessWatch, "kill", lambda self: None)
    monkeypatch.setattr(supervision, "_EXIT_TIMEOUT", 0.2)
    spawner = Recording()
    async with office(folder, spawner, **SHORT) as opened:
        await opened.start("a")
        pid = opened.child().pid
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: reasons(opened, "actor_lingers"))
        await anyio.sleep(0.5)
        assert spawner.pids == [pid]
        assert opened.child().state is ChildState.RESTARTING
        os.kill(pid, signal.SIGKILL)
        await restarted(opened)
        assert spawner.beside == [[], []]
        monkeypatch.undo()


async def test_too_many_restarts_move_the_actor_into_the_supervisors_process(
    folder: Path,
) -> None:
    async with office(folder, restart_intensity=2) as opened:
        (ref,) = await opened.start("a")
        child = opened.child()
        for epoch in (1, 2, 3):
            await restarted(opened, epoch)
            os.kill(child.pid, signal.SIGKILL)
        assert number(await ref.ask(command("pid"), PATIENCE)) == os.getpid()
        assert number(await ref.ask(command("add", 7), PATIENCE)) == 7
        assert (child.state, child.epoch) == (ChildState.DEGRADED, 4)
        (detail,) = reasons(opened, "actor_hosted")
        assert "after 2 restarts" in detail
        assert "killed by signal 9" in detail
        await until(lambda: child.stats.get("total") == 7)
        assert await opened.supervisor.stop(PATIENCE) == {}
        assert reasons(opened, "actor_stopped") == [""]
        await ref.close()


@pytest.mark.parametrize("breaking", ["crash", "full disk", "bad commit"])
async def test_an_actor_that_breaks_in_the_supervisors_process_has_failed(
    folder: Path, breaking: str
) -> None:
    async with office(folder, restart_intensity=0) as opened:
        (ref,) = await opened.start("a")
        (other,) = await opened.start("b")
        os.kill(opened.child().pid, signal.SIGKILL)
        await until(lambda: opened.child().state is ChildState.DEGRADED)
        with pytest.raises(RequestError):
            await ref.ask(command(breaking), PATIENCE)
        await until(lambda: opened.child().state is ChildState.FAILED)
        with pytest.raises(MemoryFailedError, match="in the supervisor's process"):
            await ref.ask(command("get"), PATIENCE)
        with pytest.raises(MemoryFailedError):
            await asyncio.to_thread(ref.ask_sync, command("get"), PATIENCE)
        assert number(await other.ask(command("add", 1), 30)) == 1
        await ref.close()
        await other.close()


async def test_an_actor_that_is_stuck_in_the_supervisors_process_has_failed(folder: Path) -> None:
    async with office(folder, restart_intensity=0, busy_timeout=0.3) as opened:
        (ref,) = await opened.start("a")
        os.kill(opened.child().pid, signal.SIGKILL)
        await until(lambda: opened.child().state is ChildState.DEGRADED)
        with pytest.raises(OutcomeUnknownError):
            await ref.ask(command("spin", 3000), 0.5)
        await until(lambda: opened.child().state is ChildState.FAILED)
        assert "stuck" in opened.child().reason
        with pytest.raises(MemoryFailedError):
            await asyncio.to_thread(ref.ask_sync, command("get"), PATIENCE)
        await ref.close()


async def test_an_actor_that_cannot_come_back_fails_and_the_others_go_on(folder: Path) -> None:
    """Its journal may be damaged, say: that must not end its supervisor."""
    async with office(folder, restart_intensity=2) as opened:
        (ref,) = await opened.start("a", kind="mortal", lives=str(folder / "lives"))
        (other,) = await opened.start("b")
        os.kill(opened.child().pid, signal.SIGKILL)
        await until(lambda: opened.child().state is ChildState.FAILED)
        assert reasons(opened)[1:] == ["ValueError: this counter cannot be made"] * 2
        started = time.monotonic()
        with pytest.raises(MemoryFailedError, match="this counter cannot be made"):
            await ref.ask(command("get"), PATIENCE)
        assert time.monotonic() - started < PATIENCE / 2
        assert number(await other.ask(command("add", 1), 30)) == 1
        await ref.close()
        await other.close()


async def test_a_defect_is_told_to_one_caller_and_the_others_are_answered(folder: Path) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        commands = [command("add", 1)] * 10 + [command("crash")] + [command("add", 1)] * 10
        calls = [ref.ask(asked, 30) for asked in commands]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results.pop(10), RejectedError)
        assert not any(isinstance(result, BaseException) for result in results)
        await restarted(opened)
        assert "RuntimeError: the counter is broken" in reasons(opened)[0]
        assert number(await ref.ask(command("get"), 30)) in range(21)
        await ref.close()


async def test_a_defect_in_commit_restarts_the_actor_and_nobody_is_misled(folder: Path) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        await ref.ask(command("get"), 30)
        with pytest.raises(OutcomeUnknownError):
            await ref.ask(command("bad commit"), 0.3)
        assert number(await ref.ask(command("get"), PATIENCE)) == 0
        assert "ValueError: a defect in commit" in reasons(opened)[0]
        await ref.close()


async def test_an_actor_that_cannot_answer_pings_is_restarted(folder: Path) -> None:
    async with office(folder, restart_intensity=1) as opened:
        await opened.start("a", kind="untold")
        await until(lambda: opened.child().state is ChildState.FAILED)
        assert set(reasons(opened)) == {"exit code 75"}


async def test_ctrl_c_and_sigterm_do_not_end_an_actor(folder: Path) -> None:
    async with office(folder) as opened:
        (ref,) = await opened.start("a")
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            os.kill(opened.child().pid, signal_number)
        assert number(await ref.ask(command("pid"), 30)) == opened.child().pid
        assert opened.child().epoch == 1
        await ref.close()


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
        life.silence = -60.0  # and it does not think that the actor is the silent one
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
        life.silence = -60.0
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


# ---------------------------------------------------------------------- several nodes


async def added(
    opened: Office, name: str = "a", told: int | None = None, **changes: Any
) -> tuple[Child, ActorRef]:
    """A counter that is started beside others, and that serves now unless it needs a lease."""
    await opened.start()
    spec = ChildSpec(
        name=name,
        factory=FACTORY,
        arguments={},
        address=str(opened.folder / f"{name}.sock"),
        **changes,
    )
    body = None if told is None else Raw(msgspec.msgpack.encode(told))
    child = await opened.supervisor.add(opened.tasks, spec, body)
    await until(lambda: child.state is ChildState.RUNNING)
    return child, ActorRef(name, spec.address, SECRET, 1 << 20, 4)


async def total(ref: ActorRef) -> int:
    return number(await ref.ask(command("get"), PATIENCE))


async def test_what_is_told_reaches_every_incarnation(folder: Path) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened, told=5)
        assert await total(ref) == 5
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened)
        assert await total(ref) == 5
        opened.supervisor.tell("a", Raw(msgspec.msgpack.encode(7)))
        await until(lambda: child.stats.get("total") == 7)
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened, 3)
        assert await total(ref) == 7
        await ref.close()


async def test_an_actor_with_a_lease_answers_until_its_end_and_again_with_the_next(
    folder: Path,
) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened, leased=True)
        asked = asyncio.create_task(ref.ask(command("add", 1), PATIENCE))
        await until(lambda: child.stats.get("mailbox_requests") == 1)
        assert not asked.done()
        assert child.stats["total"] == 0
        opened.supervisor.extend(time.monotonic() + 3600)
        assert number(await asked) == 1
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened)
        assert await total(ref) == 0  # the successor has it, too
        opened.supervisor.extend(time.monotonic())
        opened.supervisor.tell("a", Raw(msgspec.msgpack.encode(40)))
        await until(lambda: child.stats.get("total") == 40)  # so it knows its lease, too
        asked = asyncio.create_task(ref.ask(command("add", 1), PATIENCE))
        await until(lambda: child.stats.get("mailbox_requests") == 1)
        assert not asked.done()
        assert child.stats["total"] == 40
        opened.supervisor.extend(time.monotonic() + 3600)
        assert number(await asked) == 41
        await ref.close()


async def test_an_actor_is_removed_at_once_whatever_it_does(folder: Path) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened)
        _, other = await added(opened, "b")
        pid = child.pid
        busy = asyncio.create_task(ref.ask(command("busy", 3_600_000), PATIENCE))
        await until(lambda: child.life is not None and child.life.busy > 0)
        await opened.supervisor.remove("a")
        assert not alive(pid)
        assert [known.spec.name for known in opened.supervisor.children] == ["b"]
        busy.cancel()
        assert await total(other) == 0
        again, ref_again = await added(opened)
        assert again.pid != pid
        assert await total(ref_again) == 0
        for each in (ref, ref_again, other):
            await each.close()


async def test_an_actor_that_has_not_started_yet_is_removed(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start()
        spec = ChildSpec(
            name="a",
            factory=FACTORY,
            arguments={"seconds": "3600"},
            address=str(folder / "a.sock"),
        )
        child = await opened.supervisor.add(opened.tasks, spec)
        await until(lambda: child.pid)
        pid = child.pid
        await opened.supervisor.remove("a")
        assert not alive(pid)
        assert not opened.supervisor.children


async def test_other_nodes_reach_an_actor_at_the_port_that_it_tells(folder: Path) -> None:
    async with office(folder) as opened:
        identity = opened.supervisor._identity = new_identity()
        child, ref = await added(opened, host="127.0.0.1")
        _, without = await added(opened, "b")
        for epoch in (1, 2):
            await restarted(opened, epoch)
            address = TcpAddress("127.0.0.1", child.port, identity.certificate)
            remote = ActorRef("a", address, SECRET, 1 << 20, 4)
            assert number(await remote.ask(command("pid"), PATIENCE)) == child.pid
            await remote.close()
            os.kill(child.pid, signal.SIGKILL)
        assert opened.child("b").port == 0
        await ref.close()
        await without.close()


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
