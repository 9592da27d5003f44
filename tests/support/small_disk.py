"""A small file system of its own, which a namespace of the user's makes possible."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

_INSIDE = ["unshare", "--user", "--map-root-user", "--mount"]


class SmallDisk:
    """Mounted anew for each program that runs.

    Args:
        path: Where.
        size: Of it, as mount takes it.
    """

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        self._mount = f"mount -t tmpfs -o size={size} tmpfs {path}"

    @property
    def is_possible(self) -> bool:
        """Whether it can be mounted here."""
        return shutil.which("unshare") is not None and not self._run(self._mount, 30).returncode

    def run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run Python with some arguments."""
        return self._run(f'{self._mount} && exec "$@"', timeout, sys.executable, *arguments)

    def _run(self, script: str, timeout: float, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_INSIDE, "sh", "-c", script, "sh", *command],
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@contextlib.contextmanager
def small_disk(scratch: Path, size: str) -> Iterator[SmallDisk]:
    """One below a folder; skips the test where none can be mounted."""
    path = scratch / "disk"
    path.mkdir()
    disk = SmallDisk(path, size)
    try:
        if not disk.is_possible:
            pytest.skip("no file system can be mounted here for this test")
        yield disk
    finally:
        path.rmdir()
