"""The environment of this process: a Dragon runtime, a scheduler's job, or neither."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

DESCRIPTOR_VARIABLE: Final = "FLOWGENTIC_MEMORY"
"""Names the descriptor file of the cluster to attach to."""

_SCHEDULER_TIMEOUT = 10.0
_SEPARATOR = re.compile(r",(?![^\[]*\])")  # commas outside of brackets
_RANGES = re.compile(r"\[([^\]]*)\]")


class SchedulerJob(NamedTuple):
    """The batch job that this process runs in."""

    scheduler: str
    job_id: str
    nodes: int


def scheduler_job(environ: Mapping[str, str] = os.environ) -> SchedulerJob | None:
    """The SLURM, PBS or LSF job that this process runs in, or None. Reads variables alone."""
    if job_id := environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID"):
        nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES")
        return SchedulerJob("slurm", job_id, _count(nodes))
    if job_id := environ.get("PBS_JOBID"):
        return SchedulerJob("pbs", job_id, _count(environ.get("PBS_NUM_NODES")))
    if job_id := environ.get("LSB_JOBID"):
        return SchedulerJob("lsf", job_id, max(1, len(_lsf_hosts(environ))))
    return None


class StepRank(NamedTuple):
    """This process's rank in a job step, such as one of `srun -n 4 ...`.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        step: Names that command's run, on this machine's whole cluster.
    """

    rank: int
    size: int
    step: str


_LAST_STEP: Final = 0xFFFF_FFF0  # SLURM's steps from here on are batch scripts and shells
_RANKS: Final = (
    ("PALS_RANKID", "PALS_SIZE", "PALS_APID"),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_ID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE"),
    ("PMI_RANK", "PMI_SIZE", "PMI_JOBID"),
)
"""Variables of rank, size and run: PBS with PALS, LSF's jsrun, Open MPI, MPICH."""


def step_rank(environ: Mapping[str, str] = os.environ) -> StepRank | None:
    """The rank in a job step of several processes, None outside of one.

    A Dragon process inherits the variables of the one that its launcher was, and has no rank.
    """
    job = scheduler_job(environ)
    if job is None or inside_dragon(environ):
        return None
    if job.scheduler == "slurm":
        step = environ.get("SLURM_STEP_ID", "")  # a batch script has a rank, and no step
        if not step.isdecimal() or int(step) >= _LAST_STEP:
            return None
        size = _count(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS"))
        run = f"slurm-{job.job_id}.{step}-{environ.get('SLURM_RESTART_COUNT', '0')}"
        return _step_rank(environ.get("SLURM_PROCID", ""), size, run)
    for rank, size_name, name in _RANKS:
        if rank in environ:
            run = f"{job.scheduler}-{job.job_id}-{environ.get(name, '')}"
            return _step_rank(environ[rank], _count(environ.get(size_name)), run)
    return None


def _step_rank(rank: str, size: int, run: str) -> StepRank | None:
    if size < 2 or not rank.isdecimal():
        return None
    return StepRank(int(rank), size, re.sub(r"[^A-Za-z0-9.-]", "_", run))


def job_hosts(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The names of the nodes of this job, each once, in the scheduler's order. May read a file.

    Empty outside of a job, and where the scheduler does not tell.
    """
    job = scheduler_job(environ)
    if job is None:
        return ()
    if job.scheduler == "slurm":
        told = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""
        return tuple(dict.fromkeys(expand_hosts(told)))
    if job.scheduler == "lsf":
        return _lsf_hosts(environ)
    try:
        lines = Path(environ["PBS_NODEFILE"]).read_text().split()
    except (KeyError, OSError):
        return ()
    return tuple(dict.fromkeys(lines))


def expand_hosts(text: str) -> list[str]:
    """The hosts of a list as SLURM writes it: `node[01-03,7],login` are five."""
    found: list[str] = []
    for part in _SEPARATOR.split(text.strip()):
        match = _RANGES.search(part)
        if match is None:
            found += [part] if part else []
            continue
        before, after = part[: match.start()], part[match.end() :]
        for number in _numbers(match[1]):
            found += expand_hosts(f"{before}{number}{after}")
    return found


def _numbers(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if not last:
            yield first
        elif first.isdecimal() and last.isdecimal():
            for number in range(int(first), int(last) + 1):
                yield str(number).zfill(len(first))


def _lsf_hosts(environ: Mapping[str, str]) -> tuple[str, ...]:
    counted = environ.get("LSB_MCPU_HOSTS", "").split()[::2]  # host and slots, in turn
    return tuple(dict.fromkeys(counted or environ.get("LSB_HOSTS", "").split()))


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def job_end(environ: Mapping[str, str] = os.environ) -> float | None:
    """The time at which the scheduler ends this job, in seconds since the epoch. Blocks.

    SLURM (`squeue`) and LSF (`bjobs`) are asked, since a job's limit can be changed while it runs;
    PBS tells the length of the job, which began when its node file was written. None where nobody
    tells.
    """
    job_id = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    if job_id:
        told = environ.get("SLURM_JOB_END_TIME", "")
        return _squeue_end(job_id) or (float(told) if told.isdecimal() else None)
    if job_id := environ.get("LSB_JOBID"):
        return _bjobs_end(job_id)
    length, nodes = environ.get("PBS_WALLTIME", ""), environ.get("PBS_NODEFILE")
    if length.isdecimal() and nodes:
        with contextlib.suppress(OSError):
            return Path(nodes).stat().st_mtime + float(length)
    return None


def _squeue_end(job_id: str) -> float | None:
    answer = _ask_scheduler("squeue", "-h", "-j", job_id, "-o", "%e")
    try:
        # The time zone is this node's, as `squeue` printed it.
        return datetime.fromisoformat(answer.split()[0]).astimezone().timestamp()
    except (ValueError, IndexError):
        return None  # it does not answer, or there is no limit ("NONE")


def _bjobs_end(job_id: str) -> float | None:
    answer = _ask_scheduler("bjobs", "-noheader", "-o", "time_left", job_id)
    left = re.match(r"\s*(\d+):(\d+)", answer)  # hours and minutes
    return None if left is None else time.time() + 3600 * int(left[1]) + 60 * int(left[2])


def _ask_scheduler(name: str, *arguments: str) -> str:
    """The output of one of the scheduler's commands, empty when it does not answer."""
    command = shutil.which(name)
    if command is None:
        return ""
    try:
        return subprocess.run(  # noqa: S603 - a job's id is an argument, never a part of a shell
            [command, *arguments],
            capture_output=True,
            text=True,
            timeout=_SCHEDULER_TIMEOUT,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def inside_dragon(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a running Dragon runtime."""
    return "DRAGON_MY_PUID" in environ


def without_dragon(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment whose processes do not take part in the Dragon runtime of this one."""
    return {name: value for name, value in environ.items() if not name.startswith("DRAGON_")}


def dragon_launcher() -> str | None:
    """Path of the `dragon` command that belongs to this Python, or of one on PATH."""
    folders = [Path(sys.prefix) / "bin"]
    if sys.executable:
        folders.insert(0, Path(sys.executable).parent)
    if packages := _dragon_folder():
        folders.append(packages / "bin")  # `pip install --target`
    for folder in folders:
        command = folder / "dragon"
        if command.is_file() and os.access(command, os.X_OK):
            return str(command)
    return shutil.which("dragon")


def with_dragon(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Dragon's own programs find Dragon where this process does."""
    path = [environ.get("PYTHONPATH", ""), str(_dragon_folder() or "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _dragon_folder() -> Path | None:
    """The folder that the package dragonhpc is installed in."""
    spec = importlib.util.find_spec("dragon")
    found = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(found[0]).parent if found else None


def why_no_dragon() -> str | None:
    """The reason why Dragon cannot run here, with what to do about it; None when it can."""
    if importlib.util.find_spec("dragon") is None:
        if sys.platform not in ("linux", "darwin"):
            return f"dragonhpc has no packages for {sys.platform}: use mode='local'"
        return "the package dragonhpc is not installed: pip install dragonhpc"
    if not inside_dragon() and dragon_launcher() is None:
        return (
            "dragonhpc is installed but its command `dragon` is neither beside this Python nor on "
            "PATH: reinstall dragonhpc in this environment"
        )
    return None


@functools.cache
def processors() -> float:
    """The processors that this process may use at one time, by affinity and cgroup. Blocks."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(usable, cgroup_quota())


def cgroup_quota(root: Path = Path("/")) -> float:
    """The processors that this process's cgroups allow it, `math.inf` without a limit. Blocks.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    least = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            least = min(least, _quota(folder))
            if folder == top:
                break
    return least


def _quota(folder: Path) -> float:
    """The limit of one cgroup, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # there is no limit ("max"), or no such file
        return math.inf
    return limit if limit > 0 else math.inf


@functools.cache
def machine() -> str:
    """An id of this machine, whose processes can share Unix sockets."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}".rstrip()
