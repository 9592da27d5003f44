"""Which machine this is, from its environment variables alone."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from flowgentic_actors import environment
from flowgentic_actors.environment import SchedulerJob, inside_dragon, scheduler_job


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_CLUSTER_NAME": "x", "SLURM_NNODES": "3"}, None),  # a login node
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "17"}, SchedulerJob("slurm", "17", 1)),
        ({"SLURM_JOBID": "17"}, SchedulerJob("slurm", "17", 1)),
        ({"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "4"}, SchedulerJob("slurm", "17", 4)),
        ({"SLURM_JOB_ID": "17", "SLURM_NNODES": "4"}, SchedulerJob("slurm", "17", 4)),
        ({"SLURM_JOB_ID": "17", "SLURM_NNODES": "2-4"}, SchedulerJob("slurm", "17", 1)),
        ({"SLURM_JOB_ID": "17", "SLURM_NNODES": "\u00b2"}, SchedulerJob("slurm", "17", 1)),
    ],
)
def test_a_scheduler_job_is_known_by_its_variables(
    environ: dict[str, str], job: SchedulerJob | None
) -> None:
    assert scheduler_job(environ) == job


def test_a_dragon_runtime_is_known_by_its_variables() -> None:
    assert inside_dragon({"DRAGON_MY_PUID": "4294967296"})
    assert not inside_dragon({"DRAGON_BASE_DIR": "/somewhere"})


def test_the_process_s_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "23")
    monkeypatch.setenv("DRAGON_MY_PUID", "1")

    job = scheduler_job()
    assert job is not None
    assert job.job_id == "23"
    assert inside_dragon()


# ---------------------------------------------------------------------- why Dragon cannot run


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment where dragonhpc is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("DRAGON_MY_PUID", raising=False)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert "pip install dragonhpc" in (environment.why_no_dragon() or "")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "mode='local'" in (environment.why_no_dragon() or "")


@pytest.mark.usefixtures("installed")
def test_a_missing_command_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)

    assert "PATH" in (environment.why_no_dragon() or "")
    monkeypatch.setenv("DRAGON_MY_PUID", "1")  # inside a runtime, no command is needed
    assert environment.why_no_dragon() is None


@pytest.mark.usefixtures("installed")
def test_the_command_beside_this_python_comes_before_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/on/path/{name}")
    assert environment.dragon_launcher() == "/on/path/dragon"

    beside = tmp_path / "dragon"
    beside.touch()
    assert environment.dragon_launcher() == "/on/path/dragon"  # it cannot be run
    beside.chmod(0o755)

    assert environment.dragon_launcher() == str(beside)
    assert environment.why_no_dragon() is None
