"""An actor's process: its factory, what it may open, its event loop."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import Raw
from msgspec.structs import replace

from flowgentic_actors.actors.process import run_loop
from flowgentic_actors.actors.serving import make_actor
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.python import python_command
from flowgentic_actors.storage.private_files import write_private
from flowgentic_actors.wire.file_limits import allow_files, is_reserved
from tests.support.counter import FACTORY, REPOSITORY, Counter

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
    spec = ChildSpec(name="a", factory=FACTORY, arguments=Raw(b'{"kind": "counter"}'), address="")
    assert isinstance(make_actor(spec), Counter)
    with pytest.raises(AttributeError):
        make_actor(replace(spec, factory="tests.support.counter:nothing"))


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
