"""How a cluster ends in order: signals, a stop file, the walltime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.environment import job_end
from flowgentic_actors.errors import ClusterClosingError, ClusterOpenError, RequestError
from tests.conftest import SETTINGS
from tests.support.processes import eventually, gone, output_of, python, wait_until

SUBPROCESS = SETTINGS["subprocess"]

WRITER = """
    import asyncio, json, signal, sys, threading, time
    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.errors import RequestError

    if sys.argv[2] == "own handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))

    async def main():
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            status = await memory.status()
            pids = [status.host_pid, *(actor.pid for actor in status.actors)]
            print(json.dumps({"pids": pids, "folder": status.folder}))
            if sys.argv[2] == "blocked":
                time.sleep(60)
            try:
                for n in range(10**9):
                    await memory.store.aput(("a",), str(n % 100), {"n": n})
            except RequestError as error:
                print(type(error).__name__)
        print("left")

    asyncio.run(main())
    print("went on")
"""


@contextmanager
def writing(what: str, **settings: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A program that writes to a cluster as fast as it can, and what it says about it."""
    options = json.dumps({**SUBPROCESS, **settings})
    with python(WRITER, options, what, process_group=0) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def nothing_is_left(cluster: dict[str, Any]) -> None:
    assert all(gone(pid) for pid in cluster["pids"])
    assert not Path(cluster["folder"]).exists()


@pytest.mark.parametrize("to_whom", ["the program", "everybody"])
@pytest.mark.parametrize("what", ["leaves", "blocked"])
def test_sigterm_ends_the_cluster_in_order_and_then_the_program(to_whom: str, what: str) -> None:
    with writing(what) as (process, cluster):
        time.sleep(0.3)
        started = time.monotonic()
        for pid in cluster["pids"] if to_whom == "everybody" else []:
            os.kill(pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGTERM
        assert time.monotonic() - started < 10
        assert "went on" not in out
        nothing_is_left(cluster)


def test_a_programs_own_handler_is_left_alone() -> None:
    with writing("own handler") as (process, cluster):
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 7
        wait_until(lambda: all(map(gone, cluster["pids"])), 10)
        wait_until(lambda: not Path(cluster["folder"]).exists(), 10)


HANDLERS = """
    import asyncio, json, signal, sys
    from flowgentic_actors import MemoryCluster

    settings = json.loads(sys.argv[1])

    def ours():
        watched = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        print([number.name for number in watched if callable(signal.getsignal(number))])

    async def main():
        ours()
        async with MemoryCluster(**settings, stop_signal="SIGUSR1"):
            async with MemoryCluster(**settings):
                ours()
            ours()
        ours()

    asyncio.run(main())
"""


def test_handlers_are_set_while_a_cluster_is_open_and_taken_back() -> None:
    """In a program of its own: this one may have other clusters open."""
    told = output_of(HANDLERS, json.dumps(SUBPROCESS)).splitlines()
    both = "['SIGTERM', 'SIGUSR1']"
    assert told == ["[]", both, both, "[]"]


@pytest.mark.anyio
async def test_a_host_that_is_slow_when_it_is_closed_still_ends_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with MemoryCluster(**SUBPROCESS) as memory:
        await memory.store.aput(("a",), "key", {})
        pid = (await memory.status()).host_pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.7)  # a ping is under way
        asyncio.get_running_loop().call_later(1.0, os.kill, pid, signal.SIGCONT)
    assert "did not end in order" not in caplog.text


# ---------------------------------------------------------------------- warnings


async def ended(memory: MemoryCluster, reason: str) -> None:
    """The cluster ends its work, says why, and is quick to close."""
    async with asyncio.timeout(20):
        assert reason in await memory.closing()
        errors: list[RequestError] = []
        while not errors or not isinstance(errors[-1], ClusterClosingError):
            try:  # what was sent before its connection was lost has an outcome that is not known
                await memory.store.aput(("a",), "late", {})
            except RequestError as error:
                errors.append(error)
        assert reason in str(errors[-1])
        with pytest.raises(ClusterClosingError):
            await asyncio.to_thread(memory.store.get, ("a",), "key")

        async def stopped() -> bool:
            return (await memory.status()).actors[0].state == "stopped"

        await eventually(stopped)
    kinds = [event.kind for event in await memory.recent_events()]
    assert "cluster_closing" in kinds
    assert kinds[-1] == "actor_stopped"


@pytest.mark.anyio
@pytest.mark.parametrize("to_whom", ["the program", "the host"])
async def test_a_warning_by_signal_ends_the_work_in_order(
    to_whom: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with MemoryCluster(**SUBPROCESS, stop_signal="SIGUSR1") as memory:
        status = await memory.status()
        await memory.store.aput(("a",), "key", {})
        actor = status.actors[0].pid
        assert actor is not None
        os.kill(actor, signal.SIGUSR1)  # a scheduler sends it to everybody
        os.kill(os.getpid() if to_whom == "the program" else status.host_pid, signal.SIGUSR1)
        await ended(memory, "signal SIGUSR1")
        started = time.monotonic()
    assert time.monotonic() - started < 3
    assert "did not end in order" not in caplog.text


@pytest.mark.anyio
async def test_a_stop_file_ends_the_work_and_a_killed_host_does_not_begin_anew(
    tmp_path: Path,
) -> None:
    stop_file = tmp_path / "stop"
    async with MemoryCluster(**SUBPROCESS, stop_file=stop_file) as memory:
        await memory.store.aput(("a",), "key", {})
        await asyncio.to_thread(stop_file.touch)
        await ended(memory, "the stop file")
        os.kill((await memory.status()).host_pid, signal.SIGKILL)

        async def restarted() -> bool:
            return (await memory.status()).host_restarts == 1

        await eventually(restarted)
        with pytest.raises(ClusterClosingError):
            await memory.store.aget(("a",), "key")
    with pytest.raises(ClusterOpenError, match="remove it"):
        async with MemoryCluster(**SUBPROCESS, stop_file=stop_file):
            pass


@pytest.mark.anyio
@pytest.mark.parametrize("warning", ["signal", "file", "walltime"])
async def test_a_local_cluster_is_warned_as_well(
    warning: str, tmp_path: Path, squeue: Path
) -> None:
    choices: dict[str, dict[str, Any]] = {
        "signal": {"stop_signal": "SIGUSR2"},
        "file": {"stop_file": tmp_path / "stop"},
        "walltime": {"walltime_margin": 60},
    }
    await asyncio.to_thread(squeue.write_text, in_seconds(61))
    async with MemoryCluster(mode="local", **choices[warning]) as memory:
        if warning == "signal":
            os.kill(os.getpid(), signal.SIGUSR2)
        elif warning == "file":
            await asyncio.to_thread((tmp_path / "stop").touch)
        async with asyncio.timeout(20):
            reason = await memory.closing()
        with pytest.raises(ClusterClosingError, match=reason):
            memory.store.put(("a",), "key", {})
        assert (await memory.status()).mode == "local"
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scheduler's job, whose end is what is written into a file."""
    told = tmp_path / "end"
    told.write_text("NONE")
    command = tmp_path / "squeue"
    command.write_text(f'#!/bin/sh\n[ "$3" = 7 ] && cat {told}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return told


def in_seconds(seconds: float) -> str:
    return (datetime.now().astimezone() + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.anyio
async def test_the_work_is_ended_before_the_walltime_is_over(squeue: Path) -> None:
    await asyncio.to_thread(squeue.write_text, in_seconds(62))
    started = time.monotonic()
    async with MemoryCluster(**SUBPROCESS, walltime_margin=60) as memory:
        await ended(memory, "the job ends in")
    assert time.monotonic() - started < 15


@pytest.mark.anyio
async def test_a_walltime_that_nobody_tells_is_an_event(squeue: Path) -> None:
    async with MemoryCluster(**SUBPROCESS, walltime_margin=60) as memory:
        async with asyncio.timeout(20):
            async for event in memory.events():
                if event.kind == "walltime_unknown":
                    break
        await memory.store.aput(("a",), "key", {})


def test_the_end_of_a_job_is_learned_from_its_scheduler(squeue: Path, tmp_path: Path) -> None:
    assert job_end() is None
    squeue.write_text(in_seconds(100) + "\n")
    assert abs((job_end() or 0) - time.time() - 100) < 5
    assert job_end({"SLURM_JOB_ID": "8", "SLURM_JOB_END_TIME": "1234"}) == 1234
    nodes = tmp_path / "nodes"
    nodes.touch()
    told = job_end({"PBS_WALLTIME": "3600", "PBS_NODEFILE": str(nodes)})
    assert told == nodes.stat().st_mtime + 3600
    assert job_end({}) is None


@pytest.mark.parametrize(("told", "minutes"), [("1:30 L", 90), ("0:02 E", 2), ("-", None)])
def test_lsf_tells_when_its_jobs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, minutes: int | None
) -> None:
    command = tmp_path / "bjobs"
    command.write_text(f'#!/bin/sh\n[ "$4" = 7 ] && echo "{told}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    end = job_end({"LSB_JOBID": "7"})
    if minutes is None:
        assert end is None
    else:
        assert end == pytest.approx(time.time() + 60 * minutes, abs=5)
    assert job_end({"LSB_JOBID": "8"}) is None


@pytest.mark.anyio
async def test_after_the_end_calls_to_all_nodes_are_refused_at_once(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    async with MemoryCluster(**SUBPROCESS, n_nodes=2, stop_file=stop) as memory:
        for number in range(8):  # on both nodes
            await memory.store.aput(("n", str(number)), "k", {"n": number})
        stop.touch()
        assert "stop file" in await memory.closing()

        async def all_are_told() -> bool:
            errors = await asyncio.gather(
                *(memory.store.aget(("n", str(number)), "k") for number in range(8)),
                return_exceptions=True,
            )
            return all(isinstance(error, ClusterClosingError) for error in errors)

        await eventually(all_are_told)
        begun = time.monotonic()
        assert await all_are_told()
        assert time.monotonic() - begun < memory.config.request_timeout / 3
        with pytest.raises(ClusterClosingError):
            memory.store.get(("n", "1"), "k")
