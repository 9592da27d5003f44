"""Another user tries every path of a cluster that is open, this process's own, root's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from tests.support.users import NEEDS_OTHER_USERS, User

pytestmark = NEEDS_OTHER_USERS


@pytest.mark.parametrize(
    ("umask", "settings"),
    [
        (0o000, {"n_nodes": 2, "replicas": 2, "ack": "replica"}),
        (0o000, {"persist_path": "deep/memory"}),
        (0o077, {"persist_path": "deep/memory"}),
    ],
    ids=["nodes", "persist", "persist-077"],
)
def test_nobody_else_gets_at_what_a_cluster_has(
    shared: Path, mallory: User, umask: int, settings: dict[str, Any]
) -> None:
    if "persist_path" in settings:
        settings = settings | {"persist_path": shared / settings["persist_path"]}
    scratch = shared / "scratch"
    scratch.mkdir()
    scratch.chmod(0o1777)
    before = os.umask(umask)
    try:
        with MemoryCluster(
            mode="distributed", spawner="subprocess", scratch=scratch, **settings
        ) as memory:
            memory.store.put(("team",), "key", {"text": "secret"})
            paths = [path for path in sorted(shared.rglob("*")) if path != scratch]
            assert {"cluster.json", "host.spec", "host.sock", "host.log", "memory"} <= {
                path.name for path in paths
            }
            assert mallory.does(attack, [shared, *paths]) == []
            assert [oct(p.lstat().st_mode) for p in paths if _is_open(p)] == []
            assert memory.store.get(("team",), "key") is not None
    finally:
        os.umask(before)


def _is_open(path: Path) -> bool:
    """Whether a mode lets others in; those of links and sockets do not count."""
    found = path.lstat()
    checked = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    return checked and bool(found.st_mode & 0o077)


def attack(paths: list[Path]) -> list[str]:
    """Everything that can be done to a path from outside; what succeeded."""
    shared, *paths = paths
    mine = shared / "mallorys"
    mine.mkdir()
    done = []
    for path in paths:
        attempts: dict[str, Callable[[], object]] = {
            "list": partial(os.listdir, path),
            "read": partial(os.open, path, os.O_RDONLY | os.O_NONBLOCK),
            "write": partial(os.open, path, os.O_WRONLY | os.O_NONBLOCK),
            "cut": partial(os.truncate, path, 0),
            "connect": partial(_connect, path),
            "rename": partial(os.rename, path, mine / "moved"),
            "replace": partial(_replace, mine, path),
            "link": partial(os.link, path, mine / "linked"),
            "remove": partial(os.unlink, path),
            "make in it": partial(os.mkdir, path / "mallorys"),
            "link in it": partial(os.symlink, mine, path / "mallorys-link"),
            "change": partial(os.chmod, path, 0o777),
        }
        for what, attempt in attempts.items():
            with contextlib.suppress(OSError):
                attempt()
                done.append(f"{what} {path}")
    shutil.rmtree(mine)
    return done


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def _replace(mine: Path, path: Path) -> None:
    mallorys = mine / "mallorys"
    mallorys.write_text("{}")
    mallorys.replace(path)
