"""Running things in other processes, and looking at processes from outside."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = str(Path(__file__).parents[2])


def in_fork(work: Callable[[], Any], timeout: float = 30.0) -> Any:
    """What `work` returns or raises in a forked child, which ends without any cleaning up."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                result = work()
            except BaseException as error:
                result = error
            os.write(write_end, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        ready, _, _ = select.select([read_end], [], [], timeout)
        data = os.read(read_end, 1 << 16) if ready else b""
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert data, "the forked child gave no answer"
    return pickle.loads(data)


def python(
    program: str, *arguments: str, within: Sequence[str] = (), **options: Any
) -> subprocess.Popen[str]:
    """Start another Python with a program, within a command; it can import this package."""
    return subprocess.Popen(
        [*within, sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"},
        **options,
    )


def run_in_runtime(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as the head of a Dragon runtime of its own, to its end."""
    (folder / "program.py").write_text(textwrap.dedent(program))
    launcher = Path(sys.executable).parent / "dragon"
    path = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [launcher, "-s", folder / "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output_of(program: str, *arguments: str, timeout: float = 60.0) -> str:
    """What a program prints; it must end well."""
    with python(program, *arguments) as process:
        out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out
    return out.strip()


def is_orphan(folder: str) -> bool:
    """Whether nothing but the memory is left of a cluster, secrets and sockets least of all."""
    try:
        return {p.name for p in Path(folder).iterdir()} <= {"memory", "owner.lock", "host.lock"}
    except FileNotFoundError:
        return False


def remove_orphan(folder: str) -> None:
    """Check that the memory of a dead cluster was kept, and nothing else, and remove it."""
    wait_until(lambda: is_orphan(folder), 10)
    assert (Path(folder) / "memory" / "manifest.json").is_file()
    shutil.rmtree(folder)


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Block until something is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[bool]], timeout: float = 20.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
