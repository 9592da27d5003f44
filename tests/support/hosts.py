"""Tests' way to the hosts of `fakehosts.py`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil

from flowgentic_actors.dragon.fixes import with_fixes
from tests.support import fakehosts

ROOT = Path(__file__).parents[2]


@functools.cache
def why_no_hosts() -> str | None:
    """Why this machine cannot pretend to be several, or None when it can."""
    if sys.platform != "linux":
        return f"several hosts on one machine are made of Linux namespaces, this is {sys.platform}"
    tried = subprocess.run(
        [*fakehosts.python("--nodes", "1", "--timeout", "20", "--"), "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode == 0:
        return None
    lines = tried.stderr.strip().splitlines()
    why = lines[-1] if lines else f"exit status {tried.returncode}"
    return (
        f"this machine cannot pretend to be several hosts ({why}): that takes root or user "
        "namespaces, and the packages util-linux and iproute2"
    )


class Hosts:
    """Runs programs on hosts that exist for the time of one call.

    Args:
        shared: A folder that all hosts see, as they would a shared file system, and so does the
            test. It is the programs' working directory.
    """

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def run(
        self,
        program: str | Path,
        *arguments: str,
        nodes: int = 2,
        launcher: Literal["dragon", "python"] = "dragon",
        timeout: float = 90.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program on them, to its end.

        Anywhere below, `fakenode kill node1` (or `cut`, or `heal`) is a command. Dragon's launcher
        does not end by itself once a node is dead; `fakenode kill login` ends it and the run.

        Args:
            program: The program's text, or its file.
            arguments: The program's.
            nodes: How many hosts there are besides the login host: node0, node1, ...
            launcher: `dragon` makes it the head program of a runtime over all nodes, launched on
                the login host. `python` runs it on node0 with nothing around it.
            timeout: Seconds until all of it is ended by force, which fails the test.
        """
        names = [f"node{number}" for number in range(nodes)]
        if launcher == "dragon":
            where = "login"
            how = ["dragon", "-w", "ssh", "--hostlist", ",".join(names), "-t", "tcp"]
        else:
            where, how = "node0", [sys.executable]
        file = self.write(program) if isinstance(program, str) else program
        return self.run_command(
            [*how, str(file), *arguments],
            nodes=nodes,
            on=where,
            fixes=launcher == "dragon",
            timeout=timeout,
        )

    def write(self, program: str) -> Path:
        """Put a program's text where all hosts find it."""
        file = self.shared / "program.py"
        file.write_text(textwrap.dedent(program))
        return file

    def run_command(
        self,
        command: Sequence[str],
        *,
        nodes: int = 2,
        on: str = "login",
        fixes: bool = False,
        keep: Sequence[Path] = (),
        timeout: float = 90.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on them, to its end.

        Args:
            command: What to run; programs beside this Python are on PATH.
            nodes: How many hosts there are besides the login host.
            on: The host to run it on.
            fixes: Whether Python has this package's fixes of Dragon from the beginning.
            keep: Further folders that the hosts are to see, if they are below /tmp.
            timeout: Seconds until all of it is ended by force, which fails the test.
        """
        beside = Path(sys.executable).parent  # the launcher calls helpers of its own by name
        environ = {
            **os.environ,
            "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        if fixes:
            environ = with_fixes(environ)
        folders = [ROOT, sys.prefix, sys.base_prefix, self.shared, *keep]
        # The harness's own folder is in this test run's scratch; that is not a folder of the hosts.
        harness = fakehosts.python(
            *(f"--keep={folder}" for folder in folders),
            # Asked six times by each host which GPUs there are: none, after a second each.
            f"--mute={beside / 'dragon-config'}",
            *("--nodes", str(nodes), "--timeout", str(timeout), "--on", on),
            *("--", "env", "--unset=TMPDIR", *command),
        )
        done = subprocess.run(
            harness,
            cwd=self.shared,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout + 30,
            check=False,
        )
        output = f"{done.stdout}\n{done.stderr}"
        assert done.returncode != fakehosts.TOOK_TOO_LONG, f"not done in {timeout:g} s:\n{output}"
        assert done.returncode != fakehosts.NOT_POSSIBLE, output
        return done


def left_on_hosts() -> list[psutil.Process]:
    """Processes of clusters that this test run made."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(fakehosts.VARIABLE, "").startswith(tempfile.gettempdir()):
                found.append(process)
        except psutil.Error:
            continue  # it is gone, or another user's
    return found
