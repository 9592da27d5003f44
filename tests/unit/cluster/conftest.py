"""What tests of clusters' parts share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.fixture
def folder(scratch: Path) -> Path:
    """A private folder whose path is short enough for sockets."""
    made = scratch / f"c{random.randbytes(4).hex()}"
    made.mkdir(mode=0o700)
    return made
