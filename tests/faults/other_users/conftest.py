"""Two other users, and a folder that all users share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.users import ANN, MALLORY, User, open_memory


@pytest.fixture(scope="module")
def users(scratch: Path) -> Iterator[tuple[User, User]]:
    for _ in range(2):  # all that is imported late, which the others may not be able to
        open_memory(scratch / "memory")
        "".encode("ascii")
    shutil.rmtree(scratch / "memory")
    both = User(ANN), User(MALLORY)
    yield both
    for user in both:
        user.end()


@pytest.fixture
def ann(users: tuple[User, User]) -> User:
    return users[0]


@pytest.fixture
def mallory(users: tuple[User, User]) -> User:
    return users[1]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp, where everybody may make files."""
    folder = Path(tempfile.mkdtemp(prefix="fga-shared-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)
