"""Runs a command on a small cluster that exists only while the command runs, on this machine.

    fakehosts.py [--nodes N] [--timeout SECONDS] [--keep FOLDER]... [--mute PROGRAM]... [--on HOST]
                 -- COMMAND...

There are a login host, `login`, and the hosts `node0`, `node1`, ... The command runs on `login`, or
where `--on` says. To programs a host is a machine of its own: it has its own network interface and
address, processes, /tmp, /dev/shm, System V IPC, host name and boot id. Hosts share all other files
of this machine, and the folders below /tmp given by `--keep`. A program given by `--mute` does and
says nothing there.

Two commands are on PATH everywhere:

    ssh HOST COMMAND            runs a command there, as the same user, with a clean environment
    fakenode kill HOST          power loss: its link goes dead, then all its processes
    fakenode cut|heal HOST      pulls the network cable, and plugs it in again

How: every host is a set of Linux namespaces below one process namespace, that of the "switch". The
switch holds a bridge that the hosts' interfaces are plugged into, and serves the two commands. When
it ends, for whatever reason, the kernel ends every process below, and with the last process go the
interfaces, the mounts and the shared memory.

It needs root, or the right to make user namespaces, and the commands `ip`, `mount`, `nsenter`,
`setpriv` and `unshare`. Exit status: the command's, 124 when it took too long, or 125 when there is
no cluster to be had here; stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

TOOK_TOO_LONG = 124
NOT_POSSIBLE = 125
VARIABLE = "FAKEHOSTS"
"""Names the cluster's folder, in the environment of every process on the hosts."""

_NETWORK = "10.93.0"
_SWITCH = 250  # last number of its address: everyone's route to the outside, which leads nowhere
_LOGIN = 254
_SHM_SIZE = "6g"  # no more than a limit
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_COMMANDS = ("ip", "mount", "nsenter", "setpriv", "unshare")
_UNSHARE = ("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
_ENTER = ("nsenter", "--net", "--mount", "--uts", "--ipc", "--pid")


class Host(NamedTuple):
    """One machine of the cluster."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return f"{_NETWORK}.{self.number}"


def hosts_of(nodes: int) -> list[Host]:
    """The hosts of a cluster with so many nodes."""
    return [Host("login", _LOGIN), *(Host(f"node{n}", n + 1) for n in range(nodes))]


def run(*command: str) -> None:
    """Run one of the system's commands; what it has to complain about is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}`: {done.stderr.strip() or done.returncode}")


def python(*arguments: str) -> list[str]:
    """This file as a program, whatever PYTHONPATH says."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *arguments]


# ---------------------------------------------------------------------- outside of the cluster


def outside(options: argparse.Namespace) -> int:
    """Set the switch going with a time limit, and remove the folder that hosts and switch share."""
    missing = [command for command in _COMMANDS if shutil.which(command, path=_PATH) is None]
    if missing:
        print(f"fakehosts: not installed: {', '.join(missing)}", file=sys.stderr)
        return NOT_POSSIBLE
    with tempfile.TemporaryDirectory(prefix="fakehosts-") as folder:
        settings = {**vars(options), "keep": [*options.keep, folder, os.fspath(Path.cwd())]}
        Path(folder, "settings").write_text(json.dumps(settings))
        Path(folder, "mute").write_text("#!/bin/sh\n")
        Path(folder, "mute").chmod(0o755)
        as_root = [] if os.geteuid() == 0 and not options.user_namespace else ["--map-root-user"]
        switch = subprocess.Popen(
            # Should this process be killed, then so is `unshare`, and with it the switch.
            ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, *as_root, "--", *python("switch")],
            env={**os.environ, VARIABLE: folder, "PATH": f"{os.environ['PATH']}:{_PATH}"},
        )
        try:
            return switch.wait(options.timeout)
        except subprocess.TimeoutExpired:
            return TOOK_TOO_LONG
        finally:
            switch.kill()
            switch.wait()


# ---------------------------------------------------------------------- the switch


class Switch:
    """Process 1 above all hosts: plugs them together, and does what programs there ask of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = json.loads((folder / "settings").read_text())
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}  # when that ends, so does the host
        self._pids: dict[str, int] = {}  # process 1 of each host, as it is seen from here
        self._unreachable: set[str] = set()
        self._dead: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def main(self) -> int:
        hosts = hosts_of(self._settings["nodes"])
        try:
            self._plug_together(hosts)
        except OSError as error:
            print(f"fakehosts: {error}", file=sys.stderr)
            return NOT_POSSIBLE
        threading.Thread(target=self._serve, daemon=True).start()
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        command, pid = self._settings["command"], str(self._pids[self._settings["on"]])
        there = ["--target", pid, f"--wd={Path.cwd()}", "--", "env", f"PATH={path}"]
        return subprocess.call([*_ENTER, *there, *command])

    def _plug_together(self, hosts: list[Host]) -> None:
        private_mounts()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "switch", "type", "bridge")
        run("ip", "address", "add", f"{_NETWORK}.{_SWITCH}/24", "dev", "switch")
        run("ip", "link", "set", "switch", "up")
        names = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)]
        (self._folder / "hosts").write_text("\n".join(names) + "\n")
        (self._folder / "bin").mkdir()
        for name in ("ssh", "fakenode"):
            script = self._folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(python(name))} "$@"\n')
            script.chmod(0o755)
        self._listener.bind(str(self._folder / "socket"))
        self._listener.listen(64)
        for host in hosts:
            process = subprocess.Popen([*_UNSHARE, "--", *python("host", *map(str, host))])
            self._hosts[host.name] = process
            self._listener.settimeout(10)
            with self._listener.accept()[0] as line:
                line.settimeout(10)
                line.recv(1)
                # Process numbers differ between namespaces; the kernel translates.
                who = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                pid = self._pids[host.name] = struct.unpack("3i", who)[0]
                ends = (f"to-{host.name}", "type", "veth", "peer", "name", "eth0")
                run("ip", "link", "add", *ends, "netns", str(pid))
                run("ip", "link", "set", f"to-{host.name}", "master", "switch", "up")
                line.send(b"plugged in")
                if line.recv(16) != b"up" or process.poll() is not None:
                    raise OSError(f"{host.name} does not come up")
        self._listener.settimeout(None)

    def _serve(self) -> None:
        while True:
            threading.Thread(target=self._answer, args=(self._listener.accept()[0],)).start()

    def _answer(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            request, files, _, _ = socket.recv_fds(line, 1 << 20, 3)
            status = self._do(files, *json.loads(request))
            line.send(str(status).encode())

    def _do(self, files: list[int], what: str, name: str, command: str) -> int:
        try:
            if name not in self._pids:
                os.write(files[2], f"{name}: there is no such host\n".encode())
                return 255
            if what == "run":
                return self._run_on(name, command, files)
        finally:
            for file in files:
                os.close(file)
        if what == "heal":
            self._unreachable -= {name} - self._dead
            run("ip", "link", "set", f"to-{name}", "up")
            return 0
        self._unreachable.add(name)
        # Dead links come first: processes that end close their connections, and power loss does not
        run("ip", "link", "set", f"to-{name}", "down")
        if what == "kill":
            self._dead.add(name)
            self._hosts[name].kill()
            self._hosts[name].wait()
        return 0

    def _run_on(self, name: str, command: str, files: list[int]) -> int:
        if name in self._unreachable:
            os.write(files[2], f"ssh: connect to host {name} port 22: No route to host\n".encode())
            return 255
        environ = {
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PATH": f"{self._folder / 'bin'}:{_PATH}",
            "SHELL": "/bin/bash",
            "USER": os.environ.get("USER", "root"),
            VARIABLE: str(self._folder),
        }
        there = [*_ENTER, "--target", str(self._pids[name]), "--", "/bin/bash", "-c", command]
        status = subprocess.Popen(
            there,
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            env=environ,
            start_new_session=True,
        ).wait()
        return 255 if status < 0 or name in self._unreachable else status


# ---------------------------------------------------------------------- a host


def private_mounts() -> None:
    """Mounts that are seen in this namespace alone, and a /proc that shows its processes."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")


def make_host(folder: Path, host: Host) -> None:
    """Turn the fresh namespaces of this process into a machine, and plug it in."""
    private_mounts()
    run("mount", "-t", "tmpfs", "-o", f"size={_SHM_SIZE},mode=1777", "tmpfs", "/dev/shm")
    settings = json.loads((folder / "settings").read_text())
    hide_tmp(sorted({Path(kept).resolve() for kept in settings["keep"]}))
    socket.sethostname(host.name)
    boot_id = folder / f"{host.name}.boot_id"
    boot_id.write_text(f"00000000-0000-4000-8000-{host.number:012d}\n")
    run("mount", "--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
    run("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    for program in settings["mute"]:
        if Path(program).exists():
            run("mount", "--bind", str(folder / "mute"), program)
    run("ip", "link", "set", "lo", "up")
    with ask_switch(folder) as line:
        line.send(b"?")
        assert line.recv(16) == b"plugged in"
        run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "link", "set", "eth0", "up")
        # Programs that look for "the" address of this host take that of the default route.
        run("ip", "route", "add", "default", "via", f"{_NETWORK}.{_SWITCH}")
        line.send(b"up")


def hide_tmp(keep: Iterable[Path]) -> None:
    """A /tmp of its own, in which some folders of the machine's are."""
    below = [folder for folder in keep if Path("/tmp") in folder.parents and folder.exists()]
    run("mount", "--bind", "/tmp", "/mnt")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp")
    for folder in below:
        folder.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", str("/mnt" / folder.relative_to("/tmp")), str(folder))
    run("umount", "/mnt")


def be_host(folder: Path, host: Host) -> None:
    """Process 1 of a host."""
    try:
        make_host(folder, host)
    except OSError as error:
        sys.exit(f"fakehosts: {host.name}: {error}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what is orphaned
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


# ---------------------------------------------------------------------- the commands on the hosts


def ask_switch(folder: Path) -> socket.socket:
    """A connection to the switch, from any host: files are shared, so are sockets among them."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect(str(folder / "socket"))
    return line


def request(folder: Path, what: str, name: str, command: str = "") -> int:
    """Have the switch do something; it gets this process's stdin, stdout and stderr for it."""
    with ask_switch(folder) as line:
        socket.send_fds(line, [json.dumps([what, name, command]).encode()], [0, 1, 2])
        return int(line.recv(16) or 255)


def ssh(folder: Path, arguments: list[str]) -> int:
    """As much of `ssh` as launchers use: options are ignored, the rest is a shell command."""
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[1:]
    return request(folder, "run", arguments[0], " ".join(arguments[1:]))


def main(arguments: list[str]) -> Any:
    role, *rest = arguments or [""]
    folder = Path(os.environ.get(VARIABLE, ""))
    match role, rest:
        case "switch", []:
            return Switch(folder).main()
        case "host", [name, number]:
            return be_host(folder, Host(name, int(number)))
        case "ssh", [_, *_]:
            return ssh(folder, rest)
        case "fakenode", ["kill" | "cut" | "heal" as what, name]:
            return request(folder, what, name)
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--keep", action="append", default=[])
    parser.add_argument("--mute", action="append", default=[])
    parser.add_argument("--on", default="login")
    parser.add_argument("--user-namespace", action="store_true")  # even as root
    parser.add_argument("command", nargs="+")
    # Being told to end is to clean up all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return outside(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
