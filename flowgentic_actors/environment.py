"""What machine this is: a Dragon runtime, a scheduler's job, or neither."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

DESCRIPTOR_VARIABLE: Final = "FLOWGENTIC_MEMORY"
"""Names the descriptor file of the cluster to attach to."""


class SchedulerJob(NamedTuple):
    """The batch job that this process runs in."""

    scheduler: str
    job_id: str
    nodes: int


def scheduler_job(environ: Mapping[str, str] = os.environ) -> SchedulerJob | None:
    """The SLURM job that this process runs in, or None."""
    job_id = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    if not job_id:
        return None
    nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES") or "1"
    return SchedulerJob("slurm", job_id, int(nodes) if nodes.isdecimal() else 1)


def inside_dragon(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a running Dragon runtime."""
    return "DRAGON_MY_PUID" in environ


def dragon_launcher() -> str | None:
    """Path of the `dragon` command that belongs to this Python, or of one on PATH."""
    beside = Path(sys.executable).parent / "dragon"
    if beside.is_file() and os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("dragon")


def why_no_dragon() -> str | None:
    """Why Dragon cannot run here and what to do about it, or None when it can."""
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
