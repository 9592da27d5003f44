"""Which of several processes with the first rank's variables opens the step's cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.actors.process_record import started_at
from flowgentic_actors.cluster.opener import rendezvous
from flowgentic_actors.cluster.opener.rendezvous import FirstRank, Note, Rendezvous
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.environment import StepRank, machine
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.secret import Secret, revealed
from flowgentic_actors.storage.private_files import write_private

ELSEWHERE = Descriptor(
    name="a", host="/nowhere/host.sock", secret=Secret(b"s" * 32), max_message_bytes=1
)


@pytest.fixture
def place(tmp_path: Path) -> Rendezvous:
    return Rendezvous(StepRank(0, 2, "slurm-1.0-0"), tmp_path / "meeting")


def begins(place: Rendezvous, scratch: Path, note: Note | None = None) -> bool:
    """Whether it becomes the first rank when a note exists already."""
    if note is not None:
        place._folder.mkdir(mode=0o700)
        place._file.write_bytes(msgspec.json.encode(note, enc_hook=revealed))
        place._file.chmod(0o600)
    place.begin(scratch)
    return place.is_first


def of(pid: int, started: int | None = None, where: str | None = None) -> FirstRank:
    started = started_at(pid) if started is None else started
    return FirstRank(machine=where or machine(), pid=pid, started=started)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_first_of_several_is_first_and_removes_its_note(
    place: Rendezvous, scratch: Path
) -> None:
    assert begins(place, scratch)
    place.remove()
    assert not place._file.exists()


def test_another_living_process_stays_the_first(place: Rendezvous, scratch: Path) -> None:
    note = Note(first=of(os.getppid()), descriptor=ELSEWHERE)
    assert not begins(place, scratch, note)
    assert place.find(1.0) == note
    place.remove()  # which is not this one's to remove
    assert place.find(1.0) == note


@pytest.mark.parametrize("what", ["dead", "reused pid", "closed", "elsewhere", "garbage"])
def test_what_an_earlier_run_left_is_replaced(
    place: Rendezvous, scratch: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_ANSWER", 0.2)
    note = {
        "dead": Note(first=of(dead_pid(), 1), descriptor=ELSEWHERE),
        "reused pid": Note(first=of(os.getppid(), 1), descriptor=ELSEWHERE),
        "closed": Note(first=of(os.getppid()), closed=1.0),
        "elsewhere": Note(first=of(1, where="another machine"), descriptor=ELSEWHERE),
        "garbage": None,
    }[what]
    if note is None:
        place._folder.mkdir(mode=0o700)
        write_private(place._file, b"{")
    assert begins(place, scratch, note)


def test_a_first_rank_that_died_while_it_opened_is_not_waited_for(
    place: Rendezvous, scratch: Path
) -> None:
    begins(place, scratch, Note(first=of(os.getppid())))
    place._file.write_bytes(msgspec.json.encode(Note(first=of(dead_pid(), 1))))
    with pytest.raises(ClusterOpenError, match="ended while it opened"):
        place.find(30.0)
