"""Each way in which a Python program can end while its memory is open, and what is left then.

The programs of one mode run side by side, once, as far as they are selected; each test looks at one
of them.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import textwrap
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from flowgentic_actors import MemoryCluster
from tests.support.processes import gone, output_of, python, wait_until

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")
CAN_UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
)

MODES: dict[str, dict[str, Any]] = {
    "local with journal": {"mode": "local"},
    "subprocess": {"mode": "distributed", "spawner": "subprocess"},
}

COMMON = """
    import asyncio, atexit, json, os, signal, sys, threading, time
    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.errors import FlowgenticError

    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, and a shell's background, ignore them
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def put(memory):
        memory.store.put(("a",), "key", {"n": 1})
        status = asyncio.run(memory.status())
        pids = [status.host_pid, *(actor.pid for actor in status.actors)]
        print(json.dumps([pid for pid in pids if pid != os.getpid()]))

    def opened():
        memory = MemoryCluster(**settings).open()
        put(memory)
        return memory

    def generator():
        with MemoryCluster(**settings) as memory:
            put(memory)
            yield memory

    async def async_generator():
        async with MemoryCluster(**settings) as memory:
            await asyncio.to_thread(put, memory)
            yield memory

    def send(number):  # from outside, as a scheduler does
        print(int(number))
        time.sleep(60)
"""


class Way(NamedTuple):
    """One program."""

    body: str
    code: int = 0
    orderly: bool = True  # whether the cluster is closed, so that its journals are sealed
    says: str = ""  # the last line of its standard error


WAYS: dict[str, Way] = {
    "returns": Way("memory = opened()"),
    "sys.exit": Way("memory = opened(); sys.exit(3)", 3),
    "raises": Way("memory = opened(); raise ValueError('mine')", 1, says="ValueError: mine"),
    "generator": Way("it = generator(); memory = next(it)"),
    "async generator": Way(
        """
    loop = asyncio.new_event_loop(); it = async_generator()
    memory = loop.run_until_complete(anext(it))
    loop.close()
    """
    ),
    "async generator in asyncio.run": Way(
        """
    async def main():
        global it
        it = async_generator()
        memory = await anext(it)
        await memory.store.aput(("b",), "key", {})
    asyncio.run(main())
    """
    ),
    "asyncio.run raises": Way(
        """
    async def main():
        async with MemoryCluster(**settings) as memory:
            await asyncio.to_thread(put, memory)
            async with asyncio.timeout(0.1):
                await asyncio.sleep(60)
    asyncio.run(main())
    """,
        1,
        says="TimeoutError",
    ),
    "sys.exit in a thread": Way(
        """
    def work():
        with MemoryCluster(**settings) as memory:
            put(memory)
            sys.exit(3)
    threading.Thread(target=work).start()
    """
    ),
    "a thread outlives main": Way(
        """
    def work():
        with MemoryCluster(**settings) as memory:
            time.sleep(0.5)
            put(memory)
    threading.Thread(target=work).start()
    """
    ),
    "daemon threads use it": Way(
        """
    memory = opened()
    def use():
        try:
            while True:
                memory.store.put(("b",), "key", {})
        except FlowgenticError as error:
            print(type(error).__name__)
    async def ause():
        try:
            while True:
                await memory.store.aput(("b",), "key", {})
        except FlowgenticError as error:
            print(type(error).__name__)
    threading.Thread(target=use, daemon=True).start()
    threading.Thread(target=lambda: asyncio.run(ause()), daemon=True).start()
    time.sleep(0.3)
    """
    ),
    "a daemon thread has it open": Way(
        """
    there = threading.Event()
    def work():
        with MemoryCluster(**settings) as memory:
            put(memory)
            there.set()
            time.sleep(60)
    threading.Thread(target=work, daemon=True).start()
    there.wait()
    """
    ),
    "atexit": Way(
        """
    memory = opened()
    @atexit.register
    def last():
        memory.store.put(("b",), "last", {})
        memory.close()
    """
    ),
    "atexit of before": Way(
        """
    atexit.unregister(sys.modules["flowgentic_actors.cluster.opener.exit_hook"]._close_all)
    memory = opened()
    atexit.register(memory.close)
    """
    ),
    "forks": Way(
        """
    memory = opened()
    if os.fork() == 0:
        sys.exit(5)
    print("child", os.waitstatus_to_exitcode(os.wait()[1]))
    memory.store.put(("b",), "after", {})
    """
    ),
    "os._exit": Way("memory = opened(); sys.stdout.flush(); os._exit(4)", 4, orderly=False),
    "SIGKILL": Way("memory = opened(); send(signal.SIGKILL)", -9, orderly=False),
    "SIGHUP": Way("memory = opened(); send(signal.SIGHUP)", -1, orderly=False),
    "SIGTERM": Way("memory = opened(); send(signal.SIGTERM)", -15),
    "SIGINT": Way("memory = opened(); send(signal.SIGINT)", -2, says="KeyboardInterrupt"),
    "SIGINT on a loop": Way(
        """
    async def main():
        async with MemoryCluster(**settings) as memory:
            await asyncio.to_thread(put, memory)
            print(int(signal.SIGINT))
            await asyncio.sleep(60)
    asyncio.run(main())
    """,
        -2,
        says="KeyboardInterrupt",
    ),
    "own handler": Way(
        """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    memory = opened(); send(signal.SIGTERM)
    """,
        7,
    ),
    "SIGINT while it is closed": Way(
        """
    memory = opened()
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    memory.close()
    time.sleep(60)
    """,
        -2,
        says="KeyboardInterrupt",
    ),
}


QUICK = {
    "local with journal": {
        *("sys.exit", "generator", "asyncio.run raises", "sys.exit in a thread", "own handler"),
        *("a daemon thread has it open", "atexit", "atexit of before", "SIGHUP"),
        *("SIGINT on a loop", "returns", "SIGKILL", "SIGTERM"),
    },
    "subprocess": {"returns", "raises", "SIGINT", "SIGTERM", "SIGKILL", "os._exit", "forks"},
}
"""One of those that have the cluster closed by the same code, and most of them in a local one."""

CASES = [
    pytest.param(mode, name, marks=() if name in QUICK[mode] else pytest.mark.slow)
    for mode in MODES
    for name in WAYS
]


class Ended(NamedTuple):
    """What became of a program."""

    code: int
    seconds: float
    err: str
    pids: list[int]
    memory: Path
    scratch: Path


def run(way: Way, settings: dict[str, Any], folder: Path) -> Ended:
    """Run one program to its end."""
    scratch = folder / "s"
    scratch.mkdir()
    folders = {"persist_path": str(folder / "memory")}
    if settings["mode"] == "distributed":
        folders["scratch"] = str(scratch)
    options = json.dumps({**settings, **folders})
    program = textwrap.dedent(COMMON) + textwrap.dedent(way.body)
    with python(program, options, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        if "print(int(" in way.body or "send(" in way.body:
            process.send_signal(int(process.stdout.readline()))
        begun = time.monotonic()
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        seconds = time.monotonic() - begun
    return Ended(process.returncode, seconds, err, pids, folder / "memory", scratch)


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of each selected program, in a mode."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    cases = [case.params for case in selected if case and "ended" in case.params]
    names = [case["name"] for case in cases if case["ended"] == request.param]
    with ThreadPoolExecutor(4) as pool:
        return {
            name: pool.submit(
                run, WAYS[name], MODES[request.param], tmp_path_factory.mktemp("ended")
            )
            for name in names
        }


@pytest.mark.parametrize(("ended", "name"), CASES, indirect=["ended"])
def test_a_program_ends_and_leaves_nothing_but_its_memory(
    name: str, ended: dict[str, Future[Ended]]
) -> None:
    way, program = WAYS[name], ended[name].result()
    assert program.code == way.code, program.err
    assert program.seconds < 30  # by the dozen at a time; one alone takes a second
    assert "Exception ignored" not in program.err
    assert program.err.strip().rpartition("\n")[2].startswith(way.says)
    assert program.err == "" or way.says
    wait_until(lambda: all(map(gone, program.pids)))
    if way.orderly or program.pids:  # a host ends in order when its owner is gone
        assert json.loads((program.memory / "manifest.json").read_text())["closed"]
    left = program.scratch.glob("flowgentic-*/memory-*")
    wait_until(lambda: not any(folder.exists() for folder in left))
    with MemoryCluster(mode="local", persist_path=program.memory) as memory:
        assert memory.store.get(("a",), "key") is not None


FIRST = """
    import asyncio, json, sys, time
    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.errors import ClusterClosingError

    async def main():
        async with MemoryCluster(**json.loads(sys.argv[1])) as memory:
            await memory.store.aput(("a",), "key", {})
            print("open")
            time.sleep(60)

    asyncio.run(main())
"""


@pytest.mark.skipif(not CAN_UNSHARE, reason="this user may not make PID namespaces")
@pytest.mark.parametrize("mode", [*MODES, "local"])
def test_sigterm_ends_the_first_process_of_a_container(mode: str, tmp_path: Path) -> None:
    lasting = mode in MODES
    path = {"persist_path": str(tmp_path / "memory")} if lasting else {}
    settings = json.dumps({**MODES.get(mode, {"mode": "local"}), **path})
    with python(FIRST, settings, within=UNSHARE, stderr=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "open\n"
        (first,) = psutil.Process(unshare.pid).children()
        begun = time.monotonic()
        first.terminate()
        unshare.communicate(timeout=60)
    assert unshare.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 20
    if lasting:
        assert json.loads((tmp_path / "memory" / "manifest.json").read_text())["closed"]


CLOSED_BY_SIGNAL = """
    import asyncio, json, os, signal, sys, time
    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.cluster.opener import signals
    from flowgentic_actors.errors import ClusterClosingError

    async def main():
        memory = MemoryCluster(**json.loads(sys.argv[1]))
        await memory.__aenter__()
        await memory.store.aput(("a",), "key", {})
        signals.os.kill = lambda *_: None  # as the kernel does to the first process of a container
        signals.os._exit = lambda _: None
        signal.raise_signal(signal.SIGTERM)
        await asyncio.to_thread(signals.on_sigterm.done.wait)
        begun = time.monotonic()
        blocking = asyncio.to_thread(memory.store.get, ("a",), "key")
        for call in (memory.store.aget(("a",), "key"), blocking):
            try:
                await call
            except ClusterClosingError as error:
                print("SIGTERM" in str(error), time.monotonic() - begun < 2)

    asyncio.run(main())
"""


def test_after_sigterm_calls_are_refused_at_once() -> None:
    """What runs beside the closing must not wait for actors that have ended."""
    options = json.dumps(MODES["subprocess"])
    assert output_of(CLOSED_BY_SIGNAL, options).splitlines() == ["True True", "True True"]
