"""Another user exchanges files and folders while they are used."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from flowgentic_actors import UntrustedPathError
from flowgentic_actors.storage import private_files
from flowgentic_actors.storage.private_files import (
    make_folders,
    read_private,
    trusted_path,
    write_private,
)
from tests.support.users import ANN, MALLORY, NEEDS_OTHER_USERS, User

pytestmark = NEEDS_OTHER_USERS
RACE = 1.5


def read_for_a_while(path: Path) -> tuple[int, int]:
    """How many reads there were, and how many of what is mallory's."""
    reads = stolen = 0
    until = time.monotonic() + RACE
    while time.monotonic() < until:
        reads += 1
        with contextlib.suppress(OSError):
            stolen += read_private(path, secret=True) != b"ann's"
    return reads, stolen


def exchange_files(folder: Path) -> None:
    """Put ann's file and another one in each other's place, again and again."""
    until = time.monotonic() + RACE + 0.5
    path, mine = folder / "file", folder / "mine"
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            path.rename(folder / "anns")
            mine.write_bytes(b"mallory's")
            mine.chmod(0o666)
            mine.rename(path)
            path.rename(mine)
            path.symlink_to(mine)
            path.unlink()
            (folder / "anns").rename(path)


def test_a_race_for_a_file_is_never_won(shared: Path, ann: User, mallory: User) -> None:
    folder = shared / "open"
    folder.mkdir()
    folder.chmod(0o777)
    ann.does(write_private, folder / "file", b"ann's")
    mallory.begins(exchange_files, folder)
    reads, stolen = ann.does(read_for_a_while, folder / "file")
    mallory.has_done()
    assert reads > 100
    assert stolen == 0


def write_for_a_while(path: Path) -> tuple[int, list[str]]:
    """How many folders could be made and written to, and which of those were not ann's alone."""
    made, wrong = 0, []
    until = time.monotonic() + RACE
    while time.monotonic() < until:
        try:
            folder = make_folders(path / "memory")
            write_private(folder / "secret", b"ann's")
        except OSError:
            continue
        made += 1
        for part in (folder / "secret", folder, folder.parent):
            found = part.lstat()
            if found.st_uid != ANN or found.st_mode & 0o077:
                wrong.append(f"{part} {found.st_uid} {found.st_mode:o}")
        shutil.rmtree(path)
    return made, wrong


def exchange_folders(path: Path) -> None:
    """Have a folder, a link or nothing at a path, again and again."""
    until = time.monotonic() + RACE + 0.5
    mine = path.parent / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    while time.monotonic() < until:
        for take in (partial(path.symlink_to, mine), partial(path.mkdir, 0o777)):
            with contextlib.suppress(OSError):
                take()
                (path / "memory").mkdir()
            for leave_it in (path.unlink, partial(shutil.rmtree, path)):
                with contextlib.suppress(OSError):
                    leave_it()


def test_a_race_for_a_folder_is_never_won(shared: Path, ann: User, mallory: User) -> None:
    mallory.begins(exchange_folders, shared / "wanted")
    made, wrong = ann.does(write_for_a_while, shared / "wanted")
    mallory.has_done()
    assert made > 0
    assert wrong == []
    assert not list((shared / "mine").rglob("*secret*"))


def make_late(path: Path, signs: Path) -> None:
    """Make a folder, and let another user be faster after the way to it was looked at."""

    def followed(path: Path) -> Path:
        found = trusted_path(path)
        if not (signs / "looked").exists():
            (signs / "looked").touch()
            until(signs / "made")
        return found

    setattr(private_files, "trusted_path", followed)  # noqa: B010 - it is final elsewhere
    try:
        make_folders(path)
    finally:
        setattr(private_files, "trusted_path", trusted_path)  # noqa: B010


def be_faster(kind: str, path: Path, signs: Path) -> None:
    before = os.umask(0)
    until(signs / "looked")
    if kind == "folder":
        path.mkdir(0o777)
    else:
        path.symlink_to(path.parent / "anns")
    (signs / "made").touch()
    os.umask(before)


def until(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_on_the_way_that_somebody_makes_meanwhile_is_refused(
    shared: Path, ann: User, mallory: User, kind: str
) -> None:
    signs = shared / "signs"
    signs.mkdir()
    signs.chmod(0o777)
    ann.does(make_folders, shared / "anns")
    path = shared / "wanted"
    mallory.begins(be_faster, kind, path, signs)
    with pytest.raises(UntrustedPathError, match=f"{path} belongs to user {MALLORY}"):
        ann.does(make_late, path / "deep" / "memory", signs)
    mallory.has_done()
