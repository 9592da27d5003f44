"""Which machine this is, from its environment variables alone."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowgentic_actors import environment
from flowgentic_actors.environment import (
    SchedulerJob,
    StepRank,
    cgroup_quota,
    expand_hosts,
    inside_dragon,
    job_hosts,
    scheduler_job,
    step_rank,
)

_QUOTA, _PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/user/job", {}, math.inf),
        ("0::/user/job", {"user/job/cpu.max": "max 100000"}, math.inf),
        ("0::/user/job", {"user/job/cpu.max": "150000 100000"}, 1.5),
        ("0::/user/job", {"user/cpu.max": "50000 100000", "user/job/cpu.max": "max 100000"}, 0.5),
        ("0::/", {"cpu.max": "400000 100000"}, 4.0),  # of a container
        ("1:cpu:/job", {f"cpu/job/{_QUOTA}": "-1", f"cpu/job/{_PERIOD}": "9"}, math.inf),
        ("1:cpu:/job", {f"cpu/job/{_QUOTA}": "10", f"cpu/job/{_PERIOD}": "5"}, 2.0),
        ("1:cpu,cpuacct:/gone", {f"cpu,cpuacct/{_QUOTA}": "5", f"cpu,cpuacct/{_PERIOD}": "5"}, 1.0),
        ("3:cpuset:/job", {"cpuset/job/cpu.max": "1 2"}, math.inf),
        ("0::/job", {"job/cpu.max": "a lot"}, math.inf),
    ],
)
def test_a_quota_of_processors_is_read_from_the_cgroups(
    own: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    for name, text in {
        "proc/self/cgroup": own,
        **{f"sys/fs/cgroup/{n}": t for n, t in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert cgroup_quota(tmp_path) == quota


def test_there_is_no_quota_without_cgroups(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) == math.inf


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
        ({"PBS_JOBID": "17.head"}, SchedulerJob("pbs", "17.head", 1)),
        ({"PBS_JOBID": "17.head", "PBS_NUM_NODES": "3"}, SchedulerJob("pbs", "17.head", 3)),
        ({"PBS_NODEFILE": "/somewhere"}, None),
        ({"LSB_JOBID": "17"}, SchedulerJob("lsf", "17", 1)),
        ({"LSB_JOBID": "17", "LSB_HOSTS": "a a b"}, SchedulerJob("lsf", "17", 2)),
        ({"LSB_JOBID": "17", "LSB_MCPU_HOSTS": "a 4 b 4 c 1"}, SchedulerJob("lsf", "17", 3)),
        ({"LSB_HOSTS": "a"}, None),
    ],
)
def test_a_scheduler_job_is_known_by_its_variables(
    environ: dict[str, str], job: SchedulerJob | None
) -> None:
    assert scheduler_job(environ) == job


@pytest.mark.parametrize(
    ("told", "hosts"),
    [
        ("", ""),
        ("login", "login"),
        ("n1,n2", "n1 n2"),
        ("node[01-03,07],login", "node01 node02 node03 node07 login"),
        ("r[1-2]n[8-10]", "r1n8 r1n9 r1n10 r2n8 r2n9 r2n10"),
        ("n[1,3]-ib,x", "n1-ib n3-ib x"),
    ],
)
def test_slurms_lists_of_hosts_are_expanded(told: str, hosts: str) -> None:
    assert " ".join(expand_hosts(told)) == hosts
    assert " ".join(job_hosts({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": told})) == hosts


def test_the_hosts_of_a_job_are_those_that_its_scheduler_names(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("a\na\nb\n")
    assert job_hosts({"PBS_JOBID": "1", "PBS_NODEFILE": str(nodes)}) == ("a", "b")
    assert job_hosts({"PBS_JOBID": "1", "PBS_NODEFILE": str(tmp_path / "none")}) == ()
    assert job_hosts({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "a 2 b 1 a 1"}) == ("a", "b")
    assert job_hosts({"SLURM_JOB_NODELIST": "a"}) == ()


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


DRAGON = SimpleNamespace(submodule_search_locations=None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in an environment where dragonhpc is installed, and its command is not."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: DRAGON)
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


# ---------------------------------------------------------------------- the ranks of a step

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (STEP, StepRank(3, 4, "slurm-7.2-0")),
        (STEP | {"SLURM_STEP_NUM_TASKS": "5"}, StepRank(3, 5, "slurm-7.2-0")),
        (STEP | {"SLURM_RESTART_COUNT": "1"}, StepRank(3, 4, "slurm-7.2-1")),
        (
            {"PBS_JOBID": "9.head/x", "PALS_RANKID": "0", "PALS_SIZE": "2", "PALS_APID": "a b"},
            StepRank(0, 2, "pbs-9.head_x-a_b"),
        ),
        (
            {"LSB_JOBID": "5", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
            StepRank(1, 2, "lsf-5-"),
        ),
        (
            {"PBS_JOBID": "9", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"},
            StepRank(1, 8, "pbs-9-"),
        ),
        ({"PBS_JOBID": "9", "PMI_RANK": "1", "PMI_SIZE": "3"}, StepRank(1, 3, "pbs-9-")),
    ],
)
def test_a_process_knows_its_rank(environ: dict[str, str], expected: StepRank) -> None:
    assert step_rank(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"},  # a batch script
        STEP | {"SLURM_STEP_ID": "4294967291"},  # a batch script's own step
        STEP | {"SLURM_STEP_ID": "4294967290"},  # a shell of salloc
        STEP | {"SLURM_NTASKS": "1"},
        STEP | {"SLURM_PROCID": ""},
        STEP | {"DRAGON_MY_PUID": "1"},  # inherited from the launcher
        {"PMI_RANK": "1", "PMI_SIZE": "3"},  # no job
    ],
)
def test_a_process_that_is_alone_has_no_rank(environ: dict[str, str]) -> None:
    assert step_rank(environ) is None


def test_a_machine_has_one_name() -> None:
    assert environment.machine() == environment.machine()
    assert environment.machine().startswith(socket.gethostname())
