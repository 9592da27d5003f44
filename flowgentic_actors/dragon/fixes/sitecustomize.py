"""Runs at the start of every Python process whose PYTHONPATH begins with this folder.

It does four things, and nothing else: run the `sitecustomize` that it hides; end this process when
the actor that owns it has ended; have a launcher of several nodes run its program on the node that
`FLOWGENTIC_DRAGON_PRIMARY` names, which is otherwise the one with the smallest number in its boot
id; and mend dragonhpc 0.15.0, whose waits spin:

- `native.queue.Queue.poll(timeout)` returns at once, so a thread of every `ProcessGroup` (every
  DDict's orchestrator has one) takes a whole core;
- `Queue.get(timeout)` begins every wait with a spin, and a group manager waits in slices of 0.3 s:
  a fifth of a core.

- `dragon-tcp`, one or two on each node of several, waits for messages in slices of 0.1 s, each of
  which begins with a spin: a quarter of a core. The slices are longer here, and the messages no
  later;
- Local Services gives `dragon-tcp` 10 s to start, which a busy node does not always manage: it gets
  a minute.

The first two wait with short naps instead. Other versions of dragonhpc are left alone, and so is
what is not as it was when it was looked at. No import of this package here: it must cost nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

FIXED_VERSION = "0.15.0"
FIXED_MODULE = "dragon.native.queue"
CLIENT_MODULE = "dragon.transport.tcp.client"
FACTS_MODULE = "dragon.infrastructure.facts"
LAUNCHER_MODULE = "dragon.launcher.network_config"
PRIMARY_VARIABLE = "FLOWGENTIC_DRAGON_PRIMARY"
"""Host name of the node on which a launcher's program is to run."""
OWNER_VARIABLE = "FLOWGENTIC_DDICT_OWNER"
"""`pid:start time` of the process without which this one must not be."""

_NOTICE = 0.2  # seconds that Dragon has to notice the end of a process before that of the next
_LAST = 3.0  # seconds after which a process does not wait for younger ones any more
_FIRST_NAP, _LONGEST_NAP = 0.001, 0.05
_SLICE = 1.0  # also what the end of a waiting `dragon-tcp` takes
_START = 60


# ---------------------------------------------------------------------- the user's own


def _run_hidden() -> None:
    # Only what comes later on the path: one that in turn runs what it hides never leads back here.
    here = os.path.realpath(__file__.rpartition("/")[0])
    later: list[str] = []
    for path in reversed(sys.path):
        if os.path.realpath(path or ".") == here:
            break
        later.insert(0, path)
    spec = PathFinder.find_spec("sitecustomize", later)
    if spec is not None and spec.loader is not None:
        module = _module(spec)
        sys.modules.setdefault("hidden_sitecustomize", module)
        spec.loader.exec_module(module)


def _module(spec: ModuleSpec) -> ModuleType:
    from importlib.util import module_from_spec  # noqa: PLC0415 - only where there is one

    return module_from_spec(spec)


# ---------------------------------------------------------------------- the owner


def _end_with(owner: str) -> None:
    """Start a thread that ends this process when `owner` ends; a DDict has no other end."""
    import select  # noqa: PLC0415 - only in a DDict's processes
    import signal  # noqa: PLC0415
    import threading  # noqa: PLC0415
    import time  # noqa: PLC0415

    pid, _, started = owner.partition(":")

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        pidfd = os.pidfd_open(int(pid))
        same = _started(pid) == int(started)
    except (ProcessLookupError, FileNotFoundError):
        same = False
    if not same:
        end()

    def watch() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        # The youngest first, and one after another: when a group manager ends together with its
        # managers, the whole runtime breaks down.
        last = time.monotonic() + _LAST
        while _younger() and time.monotonic() < last:
            time.sleep(_NOTICE)
        time.sleep(_NOTICE)
        end()

    threading.Thread(target=watch, name="flowgentic:owner", daemon=True).start()


def _started(pid: str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib costs 5 ms
        return int(stat.read().rpartition(b")")[2].split()[19])


def _younger() -> bool:
    """Whether a process that was started later works in this one's folder."""
    here, me = os.readlink("/proc/self/cwd"), os.getpid()  # noqa: PTH115
    mine = _started("self"), me
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        try:
            if os.readlink(f"/proc/{pid}/cwd") == here and (_started(pid), int(pid)) > mine:  # noqa: PTH115
                return True
        except (OSError, IndexError):
            continue  # it has ended, or is another user's
    return False


# ---------------------------------------------------------------------- the spin


def expected(queue: Any) -> bool:
    """Whether a `Queue` class is the one that `mend` was written for."""
    try:
        poll, get = queue.poll.__code__, queue.get.__code__
    except AttributeError:
        return False
    found = poll.co_names, poll.co_varnames, get.co_varnames[:4]
    return found == (
        ("_poll",),
        ("self", "timeout"),
        ("self", "block", "timeout", "stream_channel"),
    )


def mend(module: ModuleType) -> None:
    """Give the module's `Queue` waits that nap, if it is as expected."""
    import time  # noqa: PLC0415 - only where Dragon is used

    queue = module.Queue
    if not expected(queue):
        return
    ask, take = queue.poll, queue.get

    def poll(self: Any, timeout: float | None = 0) -> Any:
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        nap = _FIRST_NAP
        while not ask(self, 0):
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(nap, left))
            nap = min(nap * 1.5, _LONGEST_NAP)
        return True

    def get(
        self: Any, block: bool = True, timeout: float | None = None, *, stream_channel: Any = None
    ) -> Any:
        if block and timeout and not self.closed:
            poll(self, timeout)
            timeout = 0  # it is there, or it is Empty; others who take from it may be faster
        return take(self, block, timeout, stream_channel=stream_channel)

    queue.poll, queue.get = poll, get


def lengthen(module: ModuleType) -> None:
    """Give the module's `Client.recv` a longer slice, if it is as expected."""
    receive = module.Client.recv
    if receive.__defaults__ == (0.1,) and receive.__code__.co_varnames[:2] == ("self", "interval"):
        receive.__defaults__ = (_SLICE,)


def be_patient(module: ModuleType) -> None:
    """Give a node's transport more time to start."""
    vars(module)["TA_PING_TIMEOUT"] = max(_START, vars(module).get("TA_PING_TIMEOUT", 0))


def prefer(module: ModuleType) -> None:
    """Have a launcher choose a node as its first, if it is not told another, and has that one."""
    config, primary = module.NetworkConfig, os.environ[PRIMARY_VARIABLE]
    select = config._select_primary  # noqa: SLF001 - no option of the launcher leads there

    def choose(self: Any, primary_hostname: str | None = None) -> None:
        names = [node.name for node in self.network_config.values()]
        if primary_hostname is None and names.count(primary) == 1:
            primary_hostname = primary
        select(self, primary_hostname)

    config._select_primary = choose  # noqa: SLF001


class _Mender(MetaPathFinder):
    """Finds one module the usual way and has it mended after it was loaded."""

    def __init__(self, module: str, then: Callable[[ModuleType], None]) -> None:
        self._module = module
        self._then = then

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and _installed() == FIXED_VERSION:
            _after(spec.loader, self._then)
        return spec


def _after(loader: Loader, then: Callable[[ModuleType], None]) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        then(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow

    try:
        return version("dragonhpc")
    except PackageNotFoundError:
        return ""


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Mender(FIXED_MODULE, mend))
    sys.meta_path.insert(0, _Mender(CLIENT_MODULE, lengthen))
    sys.meta_path.insert(0, _Mender(FACTS_MODULE, be_patient))
    if PRIMARY_VARIABLE in os.environ:
        sys.meta_path.insert(0, _Mender(LAUNCHER_MODULE, prefer))
    if _owner := os.environ.get(OWNER_VARIABLE):
        _end_with(_owner)
    _run_hidden()
