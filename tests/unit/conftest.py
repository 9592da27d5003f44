"""What unit tests share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.fixture
def path(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where to serve: short enough for a socket."""
    return scratch / f"{random.randbytes(4).hex()}.sock"
