"""Folders on the way to a memory that other users could exchange, and what was left in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flowgentic_actors import UntrustedPathError
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import (
    TRUSTED_VARIABLE,
    make_folder,
    make_folders,
    open_log,
    overwrite,
    write_private,
)
from tests.support.users import ANN, MALLORY, NEEDS_OTHER_USERS, User, open_memory

pytestmark = NEEDS_OTHER_USERS


# ---------------------------------------------------------------------- folders on the way


def trust(folder: Path | None) -> None:
    os.environ.pop(TRUSTED_VARIABLE, None)
    if folder is not None:
        os.environ[TRUSTED_VARIABLE] = f"/elsewhere:{folder}"


@pytest.mark.parametrize(
    ("owner", "mode", "who"),
    [
        (MALLORY, 0o755, "its owner"),
        (MALLORY, 0o1777, "its owner"),
        (ANN, 0o777, "everybody"),
        (ANN, 0o2775, "group 65532"),
        (0, 0o777, "everybody"),
        (0, 0o2775, "group 65532"),
    ],
)
def test_a_folder_that_others_could_exchange_is_refused_unless_its_parent_is_trusted(
    shared: Path, ann: User, owner: int, mode: int, who: str
) -> None:
    project = shared / "project"
    memory = project / "ann" / "memory"
    memory.mkdir(parents=True, mode=0o700)
    for path in (memory, memory.parent):
        os.chown(path, ANN, ANN)
    os.chown(project, owner, MALLORY)
    project.chmod(mode)
    with pytest.raises(UntrustedPathError) as refused:
        ann.does(open_memory, memory)
    told = f"{project} belongs to user {_name(owner)}, mode {mode:04o}: {who} could exchange"
    assert told in str(refused.value)
    assert f"{TRUSTED_VARIABLE}={project}" in str(refused.value)
    ann.does(trust, project)
    try:
        ann.does(open_memory, memory)
        memory.chmod(0o770)
        os.chown(memory, ANN, MALLORY)
        with pytest.raises(UntrustedPathError, match="memory belongs to user 65533, mode 0770"):
            ann.does(open_memory, memory)  # what is trusted is the way, and nothing else
    finally:
        ann.does(trust, None)


def _name(uid: int) -> str:
    return "root (0)" if uid == 0 else str(uid)


def test_links_of_this_user_and_of_root_are_followed(shared: Path, ann: User) -> None:
    ann.does(make_folders, shared / "anns" / "memory")
    ann.does((shared / "by-ann").symlink_to, shared / "anns")
    (shared / "by-root").symlink_to("by-ann/../anns/memory")
    ann.does(open_memory, shared / "by-root")
    assert (shared / "anns" / "memory" / "manifest.json").exists()


# ---------------------------------------------------------------------- leftovers


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "generation-1",
        "generation-1/shard-0",
        "manifest.json",
        "holder.lock",
        "generation-1/shard-0/journal.lock",
        "generation-1/shard-0/*.sealed",
    ],
)
def test_a_memory_in_which_others_could_write_is_refused(
    shared: Path, ann: User, place: str
) -> None:
    """As an earlier version under umask 000, or a restored copy, may have left it."""
    memory = shared / "memory"
    ann.does(open_memory, memory)
    (path,) = memory.glob(place) if "*" in place else [memory / place]
    mode, writable = stat.S_IMODE(path.stat().st_mode), 0o777 if path.is_dir() else 0o666
    path.chmod(writable)
    with pytest.raises(
        UntrustedPathError, match=f"{path} belongs to user {ANN}, mode 0{writable:o}"
    ):
        ann.does(open_memory, memory)
    path.chmod(mode)
    os.chown(path, MALLORY, MALLORY)
    if path.is_dir() or path.name == "journal.lock":
        path.chmod(0o777)
    else:
        path.chmod(0o644)
    with pytest.raises(UntrustedPathError, match=f"{path} belongs to user {MALLORY}"):
        ann.does(open_memory, memory)
    path.chmod(mode)
    os.chown(path, ANN, ANN)
    ann.does(open_memory, memory)


def make_all(folder: Path) -> None:
    """With each of our ways to make something, under the worst umask."""
    os.umask(0)
    try:
        make_folders(folder / "one" / "two" / "three")
        make_folder(folder / "four")
        write_private(folder / "written", b"")
        overwrite(folder / "overwritten", b"")
        os.close(RealDisk().create(folder / "created", 10))
        lock = FileLock(folder / "locked")
        lock.acquire()
        lock.release()
        open_log(folder / "log").close()
    finally:
        os.umask(0o022)


def test_what_is_made_is_private_whatever_the_umask(shared: Path, ann: User) -> None:
    ann.does(make_folders, shared / "anns")
    ann.does(make_all, shared / "anns")
    made = list((shared / "anns").rglob("*"))
    assert len(made) == 9
    assert {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in made} == {
        (True, 0o700),
        (False, 0o600),
    }


def leave(path: Path) -> None:
    path.write_bytes(b"mallory's, and longer than what comes")
    path.chmod(0o666)


def test_no_leftover_is_written_into(shared: Path, ann: User, mallory: User) -> None:
    """Even in a folder that everybody may write to, which the way to it would be refused for."""
    folder = shared / "open"
    folder.mkdir()
    folder.chmod(0o777)
    mallory.does(leave, folder / "note.new")
    ann.does(write_private, folder / "note", b"ann's")
    found = (folder / "note").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (ANN, 0o600)
    assert (folder / "note").read_bytes() == b"ann's"
    writes: dict[str, Callable[..., None]] = {"a": overwrite, "b": take_lock}
    for name, write in writes.items():
        mallory.does(leave, folder / name)
        with pytest.raises(UntrustedPathError, match="mode 0666"):
            ann.does(write, folder / name, b"ann's")
        assert (folder / name).read_bytes() == b"mallory's, and longer than what comes"


def take_lock(path: Path, _data: bytes) -> None:
    FileLock(path).acquire()
