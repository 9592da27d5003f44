"""Who holds a folder: locks where there are some, signs of life where there are none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowgentic_actors.cluster.persistence import memory_lock as holders
from flowgentic_actors.cluster.persistence.memory_lock import (
    HOLDER_FILE,
    SILENCE,
    LockOwner,
    MemoryLock,
    is_held,
)
from flowgentic_actors.errors import PersistError, PersistHeldError
from flowgentic_actors.storage.lock import FileLock


def never() -> None:
    pytest.fail("the hold was lost")


def leave_behind(folder: Path, *, age: float = 0.0, **fields: Any) -> None:
    """What a holder that did not let go has left."""
    hold = MemoryLock(folder)
    hold.take("old", "slurm 1", never)
    data = (folder / HOLDER_FILE).read_bytes()
    hold.release()
    told = msgspec.structs.replace(msgspec.json.decode(data, type=LockOwner), **fields)
    (folder / HOLDER_FILE).write_bytes(msgspec.json.encode(told))
    os.utime(folder / HOLDER_FILE, (time.time() - age, time.time() - age))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(lock: FileLock, *, wait: bool = False) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(holders, "_SETTLE", 0.05)


def test_a_hold_excludes_others_and_is_let_go(tmp_path: Path) -> None:
    first = MemoryLock(tmp_path)
    first.take("first", "", never)
    assert is_held(tmp_path)
    with pytest.raises(PersistHeldError, match=f"'first' .*pid {os.getpid()}") as refused:
        MemoryLock(tmp_path).take("second", "", never)
    assert refused.value.dead_in is None
    first.release()
    assert not is_held(tmp_path)
    MemoryLock(tmp_path).check()
    assert not (tmp_path / HOLDER_FILE).exists()


def test_a_holder_that_is_ending_is_worth_waiting_for(tmp_path: Path) -> None:
    hold = MemoryLock(tmp_path)
    hold.take("first", "", never)
    hold.announce_end()
    deadline = time.monotonic() + 5
    while b"true" not in (tmp_path / HOLDER_FILE).read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(PersistHeldError, match="which is ending") as refused:
        MemoryLock(tmp_path).check()
    assert refused.value.dead_in == 0
    hold.release()


def test_a_holder_that_was_killed_here_is_dead_at_once(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal\n"
        "from flowgentic_actors.cluster.persistence.memory_lock import MemoryLock\n"
        f"MemoryLock(pathlib.Path({str(tmp_path)!r})).take('killed', '', print)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert (tmp_path / HOLDER_FILE).exists()
    assert not is_held(tmp_path)
    MemoryLock(tmp_path).check()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_process_tells(tmp_path: Path) -> None:
    leave_behind(tmp_path, pid=os.getpid(), age=9999.0)
    with pytest.raises(PersistHeldError):
        MemoryLock(tmp_path).check()
    leave_behind_dead = msgspec.json.decode((tmp_path / HOLDER_FILE).read_bytes(), type=LockOwner)
    reused = msgspec.structs.replace(leave_behind_dead, started="1")  # another process's pid now
    (tmp_path / HOLDER_FILE).write_bytes(msgspec.json.encode(reused))
    MemoryLock(tmp_path).check()


def test_a_holder_elsewhere_is_dead_after_a_silence(tmp_path: Path) -> None:
    leave_behind(tmp_path, host="node17", age=5.0, boot="another")
    with pytest.raises(PersistHeldError, match=r"node17.*5 s ago.*in 40 s") as refused:
        MemoryLock(tmp_path).check()
    assert refused.value.dead_in == pytest.approx(SILENCE - 5, abs=2)
    (tmp_path / HOLDER_FILE).unlink()
    leave_behind(tmp_path, host="node17", age=SILENCE + 1, boot="another")
    MemoryLock(tmp_path).check()


def test_signs_of_life_are_given_and_a_replaced_holder_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "HEARTBEAT", 0.02)
    lost = threading.Event()
    hold = MemoryLock(tmp_path)
    hold.take("first", "", lost.set)
    file = tmp_path / HOLDER_FILE
    os.utime(file, (1, 1))
    deadline = time.monotonic() + 5
    while file.stat().st_mtime < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not lost.is_set()
    other = msgspec.json.decode(file.read_bytes(), type=LockOwner)
    changed = msgspec.structs.replace(other, token="another")
    (tmp_path / "x").write_bytes(msgspec.json.encode(changed))
    (tmp_path / "x").replace(file)
    assert lost.wait(5)
    hold.release()
    assert file.exists()  # it is the other's


@pytest.mark.usefixtures("no_locks")
def test_of_two_that_take_a_folder_without_locks_at_once_one_has_it(tmp_path: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(2)
    holds = [MemoryLock(tmp_path), MemoryLock(tmp_path)]

    def take(hold: MemoryLock) -> None:
        start.wait()
        try:
            hold.take("x", "", lambda: None)
        except PersistHeldError:
            outcomes.append("refused")
        else:
            outcomes.append("held")

    threads = [threading.Thread(target=take, args=(hold,)) for hold in holds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hold in holds:
        hold.release()
    assert sorted(outcomes) == ["held", "refused"]


def test_a_damaged_holder_file_is_told(tmp_path: Path) -> None:
    (tmp_path / HOLDER_FILE).write_text("{")
    with pytest.raises(PersistError, match="is damaged"):
        MemoryLock(tmp_path).check()
