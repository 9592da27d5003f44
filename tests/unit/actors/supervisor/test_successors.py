"""The ends of actors, and their successors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from flowgentic_actors.actors import supervisor as supervision
from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.process_watch import ProcessWatch
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.errors import (
    MemoryFailedError,
    OutcomeUnknownError,
    RejectedError,
    RequestError,
)
from tests.support.counter import PATIENCE, command, number, office, until
from tests.support.supervision import SHORT, Recording, reasons, restarted

pytestmark = pytest.mark.anyio


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
        await ref.ask(command("tell"), PATIENCE)
        await until(lambda: reasons(opened, "slow_request") == ["it took long"])
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
