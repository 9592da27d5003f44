"""Files and folders of this user alone, and what is noted in them on a full disk."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowgentic_actors.actors.process_record import RECORD_FILE, ProcessRecord
from flowgentic_actors.cluster.host import event_log
from flowgentic_actors.cluster.host.event_log import HISTORY_FILE, EventLog
from flowgentic_actors.cluster.persistence import memory_lock as holders
from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.persistence.memory_lock import (
    HOLDER_FILE,
    MemoryLock,
    is_held,
    read_lock_owner,
)
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.errors import UntrustedPathError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.replication.follower import TERM_FILE, read_term, write_term
from flowgentic_actors.storage import private_files
from flowgentic_actors.storage.private_files import (
    check_folder,
    make_folder,
    make_folders,
    open_private,
    overwrite,
    read_private,
    trusted_path,
    write_private,
)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which no file gets larger, and no new one has room for anything."""
    write, pwrite = os.write, os.pwrite

    def refuse(descriptor: int, end: int) -> None:
        if end > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_write(descriptor: int, data: bytes) -> int:
        refuse(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) + len(data))
        return write(descriptor, data)

    def full_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        refuse(descriptor, offset + len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "write", full_write)
    monkeypatch.setattr(os, "pwrite", full_pwrite)


def test_what_is_overwritten_has_its_room_already(tmp_path: Path) -> None:
    path = tmp_path / "file"
    overwrite(path, b"one")
    size, inode = path.stat().st_size, path.stat().st_ino
    assert (size, path.stat().st_mode & 0o777) == (4096, 0o600)
    for data in (b"x" * 4096, b"", b"two"):
        overwrite(path, data)
        assert path.read_bytes().rstrip() == data
        assert (path.stat().st_size, path.stat().st_ino) == (size, inode)
    overwrite(path, b"y" * 5000)
    assert path.read_bytes().rstrip() == b"y" * 5000
    assert path.stat().st_size == 10_000


def test_what_has_no_room_is_refused(tmp_path: Path, full: None) -> None:
    with pytest.raises(OSError, match="space"):
        overwrite(tmp_path / "file", b"one")


def test_a_term_is_noted_in_the_place_of_the_last_one(tmp_path: Path) -> None:
    write_term(tmp_path, 9)
    before = (tmp_path / TERM_FILE).stat()
    write_term(tmp_path, 10)
    after = (tmp_path / TERM_FILE).stat()
    assert read_term(tmp_path) == 10
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_processes_are_noted_at_the_same_time_and_after_a_line_that_was_cut(
    tmp_path: Path,
) -> None:
    record = ProcessRecord(tmp_path)
    threads = [
        threading.Thread(target=record.note, args=(f"actor-{number}", number, os.getpid()))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.epochs() == {f"actor-{number}": number for number in range(20)}
    file = tmp_path / RECORD_FILE
    cut = file.read_bytes().rstrip()[:-10]
    file.write_bytes(cut.ljust(4096))
    record.note("next", 7, os.getpid())
    assert len(record.entries()) == 20
    assert ProcessRecord(tmp_path).epochs()["next"] == 7


def test_a_process_is_noted_on_a_full_disk(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    record = ProcessRecord(tmp_path)
    record.note("actor", 1, os.getpid())
    request.getfixturevalue("full")
    for epoch in range(2, 10):
        record.note("actor", epoch, os.getpid())
    assert record.epochs() == {"actor": 9}


def test_the_next_host_goes_on_counting_events_on_a_full_disk(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = EventLog(tmp_path)
    for number in range(3):
        first.add(EventKind.ACTOR_RUNNING, "", f"event {number}")
    first.close()
    request.getfixturevalue("full")
    second = EventLog(tmp_path)
    assert second.next_number == 3
    second.add(EventKind.ACTOR_RUNNING, "", "not on the disk")
    assert [event.detail for event in second.since(2)] == ["event 2", "not on the disk"]
    second.close()


def test_an_event_after_a_line_that_was_cut_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        events = EventLog(tmp_path)
        events.add(EventKind.ACTOR_RUNNING, "", f"event {number}")
        events.close()
        with (tmp_path / HISTORY_FILE).open("ab") as file:
            file.write(b'{"number": 7, "ti')
    assert [event.detail for event in EventLog(tmp_path).since(0)] == ["event 0", "event 1"]


def test_only_the_last_events_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_KEPT", 5)
    for _ in range(4):
        events = EventLog(tmp_path)
        for _ in range(4):
            events.add(EventKind.ACTOR_RUNNING, "", "")
        events.close()
    assert [event.number for event in EventLog(tmp_path).since(0)] == [11, 12, 13, 14, 15]
    assert len((tmp_path / HISTORY_FILE).read_bytes().splitlines()) == 5


def test_a_memory_is_held_again_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = MemoryLock(tmp_path)
    dead.take("name", "", lambda: None)
    dead.forget()

    def full_disk(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(holders, "write_private", full_disk)
    hold = MemoryLock(tmp_path)
    hold.take("name", "", lambda: pytest.fail("the hold was lost"))
    assert is_held(tmp_path)
    assert read_lock_owner(tmp_path) is not None
    hold.release()
    assert not (tmp_path / HOLDER_FILE).exists()
    with pytest.raises(OSError, match="space"):
        MemoryLock(tmp_path).take("name", "", lambda: None)


def test_the_manifest_stays_as_it_is_for_the_next_host_of_one_cluster(tmp_path: Path) -> None:
    opened = []
    for instance in ("one", "one", "two"):
        memory = StoredMemory(tmp_path)
        memory.open(name="name", instance=instance, shards=2, namespace_depth=2)
        opened.append((tmp_path / MANIFEST).stat().st_ino)
        memory.close(orderly=False)
    assert opened[0] == opened[1] != opened[2]


# ---------------------------------------------------------------------- whose they are


def test_folders_are_made_each_with_its_own_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made: list[Path] = []
        folder = make_folders(tmp_path / "one" / "two", made=made.append)
    finally:
        os.umask(before)
    assert made == [tmp_path / "one", tmp_path / "one" / "two"]
    assert folder == tmp_path / "one" / "two"
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    assert make_folders(folder, made=made.append) == folder
    assert len(made) == 2


def test_a_folder_that_others_can_write_to_is_refused_with_owner_mode_and_remedy(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for mode in (0o777, 0o757):
        folder.chmod(mode)
        told = f"{folder} belongs to user .* \\({os.geteuid()}\\), mode 0{mode:o}: everybody.*go-w"
        for check in (make_folders, make_folder, check_folder):
            with pytest.raises(UntrustedPathError, match=told):
                check(folder)
        with pytest.raises(UntrustedPathError, match=r"could exchange.*TRUSTED_FOLDERS=/"):
            make_folders(folder / "below")
        assert not (folder / "below").exists()
    folder.chmod(0o755)
    make_folder(folder)
    with pytest.raises(UntrustedPathError, match="only its owner may read it"):
        make_folder(folder, secret=True)


def test_the_sticky_bit_and_trust_make_the_way_good_and_not_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = tmp_path / "way"
    way.mkdir()
    way.chmod(0o1777)
    make_folders(way / "one")
    with pytest.raises(UntrustedPathError, match="mode 1777"):
        make_folders(way)
    way.chmod(0o777)
    with pytest.raises(UntrustedPathError):
        make_folders(way / "one")
    monkeypatch.setenv("FLOWGENTIC_TRUSTED_FOLDERS", f"/elsewhere:{way}")
    make_folders(way / "one")
    with pytest.raises(UntrustedPathError, match="mode 0777"):
        make_folders(way)


def test_the_group_that_is_the_users_own_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o775)
    gid = folder.stat().st_gid
    user = SimpleNamespace(pw_name="ann", pw_gid=gid)
    group = SimpleNamespace(gr_name="ann", gr_mem=["ann"])
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    make_folders(folder / "below")
    make_folders(folder)
    for change in ({"gr_mem": ["ann", "mallory"]}, {"gr_name": "team"}):
        other = SimpleNamespace(**{**vars(group), **change})
        monkeypatch.setattr(grp, "getgrgid", lambda _, other=other: other)
        for path in (folder, folder / "below"):
            with pytest.raises(UntrustedPathError, match=f"mode 0775: group .* \\({gid}\\)"):
                make_folders(path)


def test_links_are_followed_part_by_part(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/../real/deep")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    for path in ("link", "absolute", "real/deep", "link/../deep", "./real//deep"):
        assert trusted_path(tmp_path / path) == tmp_path.resolve() / "real" / "deep"
    assert trusted_path(tmp_path / "absolute" / "new" / "one") == (
        tmp_path.resolve() / "real" / "deep" / "new" / "one"
    )
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        trusted_path(tmp_path / "loop")


def test_a_part_that_is_not_there_is_taken_away_by_two_dots(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert make_folders(tmp_path / "own/a/b/../../../c/d/../e") == tmp_path / "c" / "e"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / name for name in ("c", "c/e", "own")]
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(UntrustedPathError, match="everybody could exchange"):
        trusted_path(tmp_path / "own/a/../../link/b")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    write_private(tmp_path / "file", b"data")
    match kind:
        case "link":
            path.symlink_to("file")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(UntrustedPathError, match=f"{path} belongs to user .*, and is no file"):
        read_private(path, secret=True)
    assert read_private(tmp_path / "file") == b"data"


def test_a_file_that_others_can_write_to_or_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"data")
    path.chmod(0o644)
    os.close(open_private(path, os.O_RDWR))
    with pytest.raises(UntrustedPathError, match="mode 0644: only its owner may read it"):
        read_private(path, secret=True)
    path.chmod(0o646)
    with pytest.raises(UntrustedPathError, match="mode 0646: everybody may write to it"):
        read_private(path)
    with pytest.raises(UntrustedPathError, match="mode 0646"):
        overwrite(path, b"new")
    assert path.read_bytes() == b"data"
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "missing")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_folders_of_the_machines_root_are_roots_in_a_container_that_does_not_know_it(
    tmp_path: Path,
) -> None:
    """In a user namespace without them, all of the machine's other users look the same."""
    folder = tmp_path / "folder"
    (folder / "own").mkdir(parents=True)
    os.chown(folder, 65533, 65533)
    program = (
        "from pathlib import Path; "
        "from flowgentic_actors.storage.private_files import make_folders; "
        f"make_folders(Path({str(folder / 'own')!r}))"
    )
    inside = ["unshare", "--user", "--map-root-user"]
    with pytest.raises(UntrustedPathError, match="65533"):
        make_folders(folder / "own")
    if subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("needs root: user namespaces are not allowed here")
    subprocess.run([*inside, sys.executable, "-c", program], check=True)
    os.chown(folder / "own", 65533, 65533)
    assert subprocess.run(
        [*inside, sys.executable, "-c", program], check=False, capture_output=True
    ).returncode


def list_of(other: int) -> bytes:
    """An access control list, as Linux keeps it, by which another user may write, too."""
    nobody = 0xFFFF_FFFF
    entries = [(1, 7, nobody), (2, 7, other), (4, 5, nobody), (16, 7, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("what", ["way", "folder", "file"])
def test_an_access_control_list_counts_where_the_group_is_the_users_own(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_files, "_is_private", lambda gid: True)
    folder = tmp_path / "folder"
    make_folder(folder)
    write_private(folder / "file", b"data")
    path = folder / "file" if what == "file" else folder
    path.chmod(0o770 if path.is_dir() else 0o660)
    uses: dict[str, Callable[[], object]] = {
        "way": lambda: trusted_path(folder / "file"),
        "folder": lambda: check_folder(folder),
        "file": lambda: read_private(folder / "file"),
    }
    use = uses[what]
    use()
    try:
        os.setxattr(path, "system.posix_acl_access", list_of(os.geteuid() + 1))
    except OSError as error:
        pytest.skip(f"no access control lists on this file system: {error}")
    with pytest.raises(UntrustedPathError, match="access control list"):
        use()
