"""The kernel's small parts: restart policy, process watch, abandoned threads, processes."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.process import run_loop
from flowgentic_actors.actors.process_watch import ProcessWatch
from flowgentic_actors.actors.restarts import STABLE, RestartPolicy, was_killed
from flowgentic_actors.actors.serving import make_actor
from flowgentic_actors.python import python_command
from flowgentic_actors.storage.private_files import write_private
from flowgentic_actors.wire.file_limits import allow_files, is_reserved
from tests.support.counter import PATIENCE, REPOSITORY, Counter, until

# ---------------------------------------------------------------------- restarts


def test_after_a_good_life_a_restart_is_immediate() -> None:
    policy = RestartPolicy(100, 30.0)
    assert [policy.next_delay(now, STABLE) for now in range(5)] == [0.0] * 5


def test_short_lives_are_followed_by_longer_and_longer_waits() -> None:
    policy = RestartPolicy(100, 1e9)
    delays = [policy.next_delay(now, 0.0) for now in range(20)]
    ceilings = [min(policy.LONGEST, policy.FIRST * 2**n) for n in range(20)]
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert delay is not None
        assert ceiling / 2 <= delay <= ceiling


def test_who_is_killed_young_waits_longer_too_but_not_long() -> None:
    policy = RestartPolicy(100, 1e9)
    delays = [policy.next_delay(now, 0.1, killed=True) or 0.0 for now in range(20)]
    assert max(delays) <= policy.LONGEST_KILLED <= 1.0
    assert min(delays[5:]) >= policy.LONGEST_KILLED / 2
    crashed = policy.next_delay(20, 0.1)  # and then it is a crash loop
    assert crashed is not None
    assert crashed >= policy.LONGEST / 2


@pytest.mark.parametrize(
    ("code", "killed"),
    [
        *[(-signal.SIGKILL, True), (-signal.SIGTERM, True), (None, True)],
        *[(-signal.SIGSEGV, False), (-signal.SIGABRT, False), (0, False), (1, False)],
    ],
)
def test_a_kill_is_told_from_a_crash(code: int | None, killed: bool) -> None:
    assert was_killed(code) is killed


def test_a_good_life_ends_a_row_of_short_ones() -> None:
    policy = RestartPolicy(100, 30.0)
    for now in range(10):
        policy.next_delay(now, 0.0)
    assert policy.next_delay(10, STABLE) == 0.0
    delay = policy.next_delay(11, 0.0)
    assert delay is not None
    assert delay <= policy.FIRST


def test_an_actor_that_never_served_lived_shortly() -> None:
    delay = RestartPolicy(1, 30.0).next_delay(5.0, 5.0 - float("inf"))
    assert delay is not None
    assert delay > 0


def test_more_restarts_than_allowed_in_the_period_are_refused() -> None:
    policy = RestartPolicy(3, 10.0)
    assert [policy.next_delay(now, 1.0) for now in (0, 1, 2)] == [0.0] * 3
    assert policy.next_delay(9.9, 1.0) is None
    assert policy.next_delay(10.0, 1.0) == 0.0  # the first of them is too long ago to count
    assert policy.next_delay(10.5, 1.0) is None


def test_no_restarts_may_be_allowed_at_all() -> None:
    assert RestartPolicy(0, 10.0).next_delay(0.0, 1.0) is None


# ---------------------------------------------------------------------- exits


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


# ---------------------------------------------------------------------- threads


@pytest.mark.anyio
async def test_a_blocking_call_leaves_the_loop_free() -> None:
    caller = threading.get_ident()
    assert await on_daemon_thread(PATIENCE, threading.get_ident) != caller
    assert await on_daemon_thread(PATIENCE, divmod, 7, 2) == (3, 1)


@pytest.mark.anyio
async def test_its_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await on_daemon_thread(PATIENCE, divmod, 1, 0)


@pytest.mark.anyio
async def test_a_call_that_does_not_return_is_abandoned() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        await on_daemon_thread(0.05, release.wait, PATIENCE)
    release.set()


def test_a_call_that_returns_after_its_loop_was_closed_disturbs_nobody() -> None:
    release = threading.Event()

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            await on_daemon_thread(0.05, release.wait, PATIENCE)

    asyncio.run(abandon())
    release.set()
    while any(thread.name == "flowgentic:Event.wait" for thread in threading.enumerate()):
        time.sleep(0.005)  # an error in a thread would be a warning, and warnings are errors


# ---------------------------------------------------------------------- processes


def test_a_private_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "spec"
    for content in (b"long before", b"now"):
        write_private(path, content)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_childs_command_uses_this_package_and_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    command = python_command("flowgentic_actors.actors.process", str(tmp_path / "missing.spec"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr  # so it is our program that ran
    assert "shadowed" not in done.stderr
    assert command[0] == sys.executable


def test_a_factory_is_found_by_name() -> None:
    assert isinstance(make_actor("tests.support.counter:make", {"kind": "counter"}), Counter)
    with pytest.raises(AttributeError):
        make_actor("tests.support.counter:nothing", {})


def test_the_limit_on_open_files_is_lifted_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_files(512)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, before[1])
        allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, before[1])
        assert not is_reserved(512 - 129)
        assert is_reserved(512 - 128)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_log_has_a_bound(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    script = """
import logging, sys
from pathlib import Path
from flowgentic_actors.actors import logfile
logfile.LOG_BYTES = 10_000
logfile.send_streams_to(Path(sys.argv[1]))
logfile.log_to(Path(sys.argv[1]))
for number in range(1000):
    logging.warning("line %d", number)
print("the end")
"""
    subprocess.run([sys.executable, "-c", script, str(log)], check=True, cwd=REPOSITORY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    assert all(path.stat().st_size < 11_000 for path in tmp_path.iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert log.read_text().splitlines()[-2:][0].endswith("line 999")
    assert log.read_text().endswith("the end\n")


def test_a_process_runs_the_copy_of_the_package_that_started_it(tmp_path: Path) -> None:
    """Another one may be installed, or on the user's PYTHONPATH."""
    other = tmp_path / "flowgentic_actors"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the other copy')")
    command = python_command("flowgentic_actors.actors.process", str(tmp_path / "missing.spec"))
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert "the other copy" not in done.stderr
    assert "missing.spec" in done.stderr


# ---------------------------------------------------------------------- the event loop


def test_an_actor_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_loop() is asyncio.run
    fake = ModuleType("uvloop")
    fake.run = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", fake)
    assert run_loop() is fake.run
