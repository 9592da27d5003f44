"""Runs a command under a real SLURM, on the hosts of `fakehosts.py`.

    slurm.py unpack FOLDER                  once: fetch and unpack SLURM (Debian, Ubuntu)
    fakehosts.py --nodes 2 --keep FOLDER -- slurm.py run FOLDER COMMAND...

Nothing is installed on this machine: where there is an `srun`, Dragon takes the machine for a part
of a cluster. What is in FOLDER is laid over /usr of the hosts alone, for as long as they exist.
`login` gets the controller, each other host a daemon that runs jobs; COMMAND may use `srun`,
`salloc`, `sbatch`, `squeue`, `scancel`, `scontrol` and `sinfo`. There is no accounting, and nobody
clears up after a job: what it leaves running stays, for a test to find. SLURM's own logs go to the
folder `slurm-log` in the working directory.

It takes root, in earnest: both daemons set supplementary groups. Exit status: the command's, or
125 when SLURM does not come up; stderr says why.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOT_POSSIBLE = 125
LOGS = "slurm-log"
NODE_TIMEOUT = 10
"""Seconds after which the controller gives up a node that it does not hear of."""

_PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins"),
    *("munge", "libmunge2", "libhwloc15", "liblua5.1-0"),
)
_START = 60.0
_ALTERNATIVE = "-wlm"  # what Debian's alternatives would drop from the names of programs
_CONFIGURATION = f"""
ClusterName=hosts
SlurmctldHost=login
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
StateSaveLocation=/run/slurm/controller
SlurmdSpoolDir=/run/slurm/daemon
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile={{log}}/slurmctld
SlurmdLogFile={{log}}/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=0,bf_interval=5
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout={NODE_TIMEOUT}
MessageTimeout=10
InactiveLimit=0
KillWait=5
PartitionName=all Nodes={{nodes}} Default=YES MaxTime=INFINITE State=UP
"""


def unpack(root: Path) -> None:
    """Fetch the packages and unpack them below a folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", *_PACKAGES], cwd=folder, check=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "content"], cwd=folder, check=True)
        content = Path(folder, "content", "usr")
        shutil.rmtree(content / "share")
        shutil.copytree(content, root / "usr", symlinks=True, dirs_exist_ok=True)
    for program in [*(root / "usr/bin").iterdir(), *(root / "usr/sbin").iterdir()]:
        if program.name.endswith(_ALTERNATIVE):
            plain = program.with_name(program.name.removesuffix(_ALTERNATIVE))
            if not plain.is_symlink():
                plain.symlink_to(program.name)


def why_not(root: Path) -> str | None:
    """Why SLURM cannot be run from a folder, or None when it can."""
    if not (root / "usr/sbin/slurmctld").exists():
        return f"no SLURM in {root}: `python {Path(__file__).name} unpack {root}` fetches it"
    if os.geteuid() or Path("/proc/self/setgroups").read_text().strip() != "allow":
        return "SLURM's daemons need root, and not that of a user namespace"
    return None


def ends_of_logs(folder: Path) -> list[str]:
    """The last lines of what SLURM wrote down where it was run."""
    found: list[str] = []
    for log in sorted((folder / LOGS).glob("*")):
        found += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-20:]]
    return found


def call(*command: str) -> None:
    """Run one of the system's commands."""
    subprocess.run(command, check=True)


# ---------------------------------------------------------------------- on every host


def be_part(folder: Path, daemon: str) -> None:
    """Lay SLURM over this host's files, and start a daemon of it."""
    root = (folder / "root").resolve()
    lower = folder / "lower"
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for place in ("munge", "slurm/controller", "slurm/daemon"):
        Path("/run", place).mkdir(parents=True)
    hosts = Path("/etc/hosts").read_text()
    call("mount", "-t", "overlay", "-o", f"lowerdir={root / 'usr'}:/usr", "overlay", "/usr")
    call("mount", "-t", "overlay", "-o", f"lowerdir={lower}:/etc", "overlay", "/etc")
    (folder / "hosts").write_text(hosts)  # the same on all of them; the overlay hid it
    call("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    call("mount", "--bind", str(folder / "etc"), "/etc/slurm")
    key = Path("/run/munge/key")
    key.touch(mode=0o600)
    key.write_bytes((folder / "key").read_bytes())
    call(
        *("munged", f"--key-file={key}", "--socket=/run/munge/munge.socket.2", "--num-threads=2"),
        *("--pid-file=/run/munge/pid", "--seed-file=/run/munge/seed"),
        "--log-file=/run/munge/log",
    )
    subprocess.run([daemon], stdin=subprocess.DEVNULL, check=True)


# ---------------------------------------------------------------------- on the login host


def run(root: Path, command: list[str]) -> int:
    """Bring SLURM up on all hosts and run a command on this one."""
    if (reason := why_not(root)) is not None:
        print(f"slurm: {reason}", file=sys.stderr)
        return NOT_POSSIBLE
    folder = Path(os.environ["FAKEHOSTS"], "slurm")  # all hosts see it, and it ends with them
    try:
        come_up(folder, root)
    except (OSError, subprocess.SubprocessError, TimeoutError) as error:
        print(f"slurm: {error}", file=sys.stderr)
        print(*ends_of_logs(Path.cwd()), sep="\n", file=sys.stderr)
        return NOT_POSSIBLE
    try:
        return subprocess.call(command)
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root"], check=False, timeout=10)


def come_up(folder: Path, root: Path) -> None:
    """Write the configuration, start all daemons and wait until every node takes jobs.

    Raises:
        OSError, subprocess.SubprocessError, TimeoutError: If they do not.
    """
    lines = [line.split() for line in Path("/etc/hosts").read_text().splitlines()]
    nodes = {name: address for address, name in lines if name not in ("localhost", "login")}
    logs = Path.cwd() / LOGS
    for place in (folder / "etc", folder / "lower/slurm", logs):
        place.mkdir(parents=True)
    (folder / "root").symlink_to(root)
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    written = [
        f"NodeName={name} NodeAddr={address} CPUs=8 RealMemory=4000 State=UNKNOWN"
        for name, address in nodes.items()
    ]
    all_of_it = _CONFIGURATION.format(log=logs, nodes=",".join(nodes))
    partition = all_of_it.index("PartitionName")  # comes after the nodes it names
    text = "\n".join([all_of_it[:partition], *written, all_of_it[partition:]])
    (folder / "etc" / "slurm.conf").write_text(text)

    be_part(folder, "slurmctld")
    itself = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    command = shlex.join([*itself, "part", str(folder), "slurmd"])
    started = {node: subprocess.Popen(["ssh", node, command]) for node in nodes}
    for node, process in started.items():
        if process.wait(_START):
            raise OSError(f"slurmd did not start on {node}")
    deadline = time.monotonic() + _START
    while True:
        asked = ["sinfo", "-h", "-r", "-N", "-t", "idle", "-o", "%N"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if set(answer.stdout.split()) == set(nodes):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"of {', '.join(nodes)} only these take jobs: {answer.stdout}")
        time.sleep(0.1)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["unpack", folder]:
            unpack(Path(folder))
        case ["run", folder, *command] if command:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            return run(Path(folder).resolve(), command)
        case ["part", folder, daemon]:
            be_part(Path(folder), daemon)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
