"""Runs the tests of `interrupts.py` in a process of their own.

A tracing function that raises leaves Python's interpreter itself in a state that no program meets
(exceptions that count as handled still), which would show in whatever is tested after them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_whatever_is_interrupted_takes_effect_whole_or_not_at_all() -> None:
    suite = Path(__file__).with_name("interrupts.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=", str(suite)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stdout[-10_000:]
