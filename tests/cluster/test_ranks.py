"""Several processes of one job step, and the one memory that they see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.processes import ROOT, wait_until

RANK = """
    import asyncio, os, sys, time
    from pathlib import Path
    from flowgentic_actors import MemoryCluster

    how, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])  # of all that is started
    settings = dict(mode="distributed", spawner="subprocess", rendezvous=Path("meeting"))

    async def use(number):
        async with MemoryCluster(**settings, open_timeout=30) as memory:
            print("open", flush=True)
            await memory.store.aput(("ranks", str(number)), str(rank), {"rank": rank})
            while len(found := await memory.store.asearch(("ranks", str(number)))) < size:
                await asyncio.sleep(0.05)
            print("sees", *sorted(item.key for item in found), flush=True)
            if how == "last" and rank == size - 1:
                await asyncio.sleep(1.5)  # the first is done by now
            if how == "crash" and rank == size - 1:
                os._exit(9)
            if how == "wait" and rank == size - 1:
                await asyncio.sleep(600)
            await memory.store.aput(("left", str(number)), str(rank), {})
        print("closed", flush=True)

    async def main():
        if how == "broken" and rank == 0:
            settings["persist_path"] = "/proc/nowhere/memory"
        for number in range(2 if how == "twice" else 1):
            await use(number)

    asyncio.run(main())
"""


class Step:
    """What one `srun` command starts."""

    def __init__(self, folder: Path, how: str, size: int, ranks: Sequence[int] = ()) -> None:
        program = folder / "rank.py"
        program.write_text(textwrap.dedent(RANK))
        self.folder = folder
        ranks = ranks or range(size)
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(program), how, str(number), str(len(ranks))],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": ROOT,
                    "SLURM_JOB_ID": "77",
                    "SLURM_STEP_ID": "3",
                    "SLURM_PROCID": str(rank),
                    "SLURM_NTASKS": str(size),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, rank in enumerate(ranks)
        ]

    def output(self, rank: int, timeout: float = 60.0) -> tuple[list[str], str]:
        """What a rank printed until its end, and what it complained of."""
        out, err = self.ranks[rank].communicate(timeout=timeout)
        return out.splitlines(), err

    def end(self) -> None:
        for process in self.ranks:
            process.kill()
            process.communicate()


@pytest.fixture
def step(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Step]:
    started = Step(tmp_path, *request.param)
    yield started
    started.end()


@pytest.mark.parametrize("step", [("last", 4)], indirect=True)
def test_four_ranks_see_one_memory_and_the_first_waits_for_the_last(step: Step) -> None:
    for rank in range(4):
        out, err = step.output(rank)
        assert out == ["open", "sees 0 1 2 3", "closed"], err
    assert not list((step.folder / "meeting").iterdir())


@pytest.mark.parametrize("step", [("twice", 2)], indirect=True)
def test_a_program_may_open_one_cluster_after_another(step: Step) -> None:
    for rank in range(2):
        out, err = step.output(rank)
        assert out == ["open", "sees 0 1", "closed"] * 2, err


@pytest.mark.parametrize("step", [("crash", 2)], indirect=True)
def test_a_rank_that_dies_is_not_waited_for(step: Step) -> None:
    out, err = step.output(0)
    assert out[-1] == "closed", err
    assert step.ranks[1].wait(10) == 9


@pytest.mark.parametrize("step", [("broken", 2)], indirect=True)
def test_when_the_first_cannot_open_it_all_are_told_why(step: Step) -> None:
    _, err = step.output(1)
    assert "rank 0 of this step could not open it: PersistError" in err
    assert step.ranks[0].wait(30) != 0


@pytest.mark.parametrize("step", [("wait", 2)], indirect=True)
def test_how_to_attach_is_private_and_the_first_ones_end_is_told(step: Step) -> None:
    meeting = step.folder / "meeting"
    wait_until(lambda: meeting.is_dir() and any(meeting.glob("slurm-77.3-0-0.json")), 30)
    (file,) = meeting.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert meeting.stat().st_mode & 0o777 == 0o700
    assert step.ranks[1].stdout is not None
    assert step.ranks[1].stdout.readline() == "open\n"
    time.sleep(0.5)
    step.ranks[0].send_signal(signal.SIGTERM)  # as a scheduler does; its cluster is closed
    assert step.ranks[0].wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("step", [("last", 2, [0, 0, 1, 1])], indirect=True)
def test_processes_that_inherit_a_rank_see_the_same_memory(step: Step) -> None:
    for number in range(4):
        out, err = step.output(number)
        assert out == ["open", "sees 0 1 2 3", "closed"], err
    assert not list((step.folder / "meeting").iterdir())


@pytest.mark.parametrize("step", [("alone", 2, [0])], indirect=True)
def test_a_first_rank_that_is_alone_with_its_memory_closes_it_at_once(step: Step) -> None:
    first = step.ranks[0]
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    began = time.monotonic()  # open_timeout is 30 s
    assert first.stdout.read() == "sees 0\nclosed\n"
    assert time.monotonic() - began < 15

    late = Step(step.folder, "alone", 2, [1])
    began = time.monotonic()
    _, err = late.output(0)
    assert time.monotonic() - began < 15
    assert "rank 0 of this step closed its cluster at" in err
